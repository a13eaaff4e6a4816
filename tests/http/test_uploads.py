"""Resumable uploads over HTTP: the tus protocol by the letter and by its own client, and ``kill -9`` on the way."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of
from support import Server, start_server
from tusclient import client as tus

VERSION = {"Tus-Resumable": "1.0.0"}
PIECES = {**VERSION, "Content-Type": "application/offset+octet-stream"}


def create(base: str, size_bytes: int, **headers: str) -> requests.Response:
    headers = {**VERSION, "Upload-Length": str(size_bytes), **headers}
    return requests.post(f"{base}/v1/uploads", headers=headers, timeout=TIMEOUT)


def begin(base: str, content: bytes) -> str:
    """The address of a new upload."""
    return base + create(base, len(content)).headers["Location"]


def send(address: str, offset: int, data: bytes, **headers: str) -> requests.Response:
    return requests.patch(
        address, data=data, headers={**PIECES, "Upload-Offset": str(offset), **headers}, timeout=TIMEOUT
    )


def head(address: str) -> requests.Response:
    return requests.head(address, headers=VERSION, timeout=TIMEOUT)


def ask(base: str, video_id: str) -> str:
    body = {"video_id": video_id, "prompt": QUESTION, "generation_params": {"temperature": 0.0}}
    return requests.post(f"{base}/predict", json=body, timeout=TIMEOUT).json()["text"]


def test_the_protocols_own_client_uploads_breaks_off_and_resumes(server: Server, clips: dict[str, Path]) -> None:
    content = clips["one"].read_bytes()
    client = tus.TusClient(f"{server.base}/v1/uploads")
    options: dict[str, Any] = {"chunk_size": 5000, "metadata": {"filename": "von tuspy.mp4"}, "upload_checksum": True}
    with clips["one"].open("rb") as file:
        first = client.uploader(file_stream=file, **options)
        first.upload(stop_at=5000)
        second = client.uploader(file_stream=file, url=first.url, **options)
        assert second.offset == 5000
        second.upload()
    video_id = hashlib.sha256(content).hexdigest()
    assert second.request.response_headers["video-id"] == video_id
    assert requests.get(f"{server.base}/v1/videos/{video_id}", timeout=TIMEOUT).json()["filename"] == "von tuspy.mp4"
    assert requests.get(f"{server.base}/v1/videos/{video_id}/content", timeout=TIMEOUT).content == content
    assert "red circle" in ask(server.base, video_id)
    requests.delete(f"{server.base}/v1/videos/{video_id}", timeout=TIMEOUT)


def test_every_answer_is_as_the_protocol_has_it(server: Server, clips: dict[str, Path]) -> None:
    content = clips["jpeg"].read_bytes()
    abilities = requests.options(f"{server.base}/v1/uploads", timeout=TIMEOUT)
    assert (abilities.status_code, abilities.headers["Tus-Version"]) == (204, "1.0.0")
    assert set(abilities.headers["Tus-Extension"].split(",")) == {"creation", "expiration", "checksum", "termination"}
    assert "sha1" in abilities.headers["Tus-Checksum-Algorithm"].split(",")
    metadata = f"filename {base64.b64encode(b'a.jpg').decode()},is_test"
    created = create(server.base, len(content), **{"Upload-Metadata": metadata})
    address = server.base + created.headers["Location"]
    assert (created.status_code, created.headers["Tus-Resumable"]) == (201, "1.0.0")
    assert created.headers["Upload-Expires"].endswith(" GMT")
    at = head(address)
    assert (at.status_code, at.headers["Cache-Control"], at.headers["Upload-Metadata"]) == (200, "no-store", metadata)
    assert (at.headers["Upload-Offset"], at.headers["Upload-Length"]) == ("0", str(len(content)))
    digest = base64.b64encode(hashlib.sha1(content[:99], usedforsecurity=False).digest()).decode()
    patched = send(address, 0, content[:99], **{"Upload-Checksum": f"sha1 {digest}"})
    assert (patched.status_code, patched.headers["Upload-Offset"], patched.content) == (204, "99", b"")
    override = {**PIECES, "Upload-Offset": "99", "X-HTTP-Method-Override": "PATCH"}
    last = requests.post(address, data=content[99:], headers=override, timeout=TIMEOUT)
    assert (last.status_code, last.headers["Video-Id"]) == (204, hashlib.sha256(content).hexdigest())
    assert head(address).headers["Video-Id"] == last.headers["Video-Id"]
    shown = requests.get(address, timeout=TIMEOUT).json()
    assert (shown["video_id"], shown["offset"], shown["filename"]) == (last.headers["Video-Id"], len(content), "a.jpg")
    assert requests.delete(address, headers=VERSION, timeout=TIMEOUT).status_code == 204
    assert head(address).status_code == 404
    video = f"{server.base}/v1/videos/{last.headers['Video-Id']}"
    assert requests.delete(video, timeout=TIMEOUT).status_code == 204


@pytest.mark.parametrize(
    ("headers", "status", "param"),
    [
        ({"Tus-Resumable": "0.2.2"}, 412, "Tus-Resumable"),
        ({"Upload-Length": "-1"}, 400, "Upload-Length"),
        ({"Upload-Length": "9" * 30}, 400, "Upload-Length"),
        ({"Upload-Length": "٣"}, 400, "Upload-Length"),
        ({"Upload-Length": "0"}, 400, "Upload-Length"),
        ({"Upload-Length": str(1 << 40)}, 413, "Upload-Length"),
        ({"Upload-Metadata": "filename !"}, 400, "Upload-Metadata"),
        ({"Upload-Metadata": "x" * 5000}, 400, "Upload-Metadata"),
    ],
)
def test_an_upload_that_cannot_be_is_refused(server: Server, headers: dict[str, str], status: int, param: str) -> None:
    raw = {**VERSION, "Upload-Length": "10", **headers}
    encoded = {name: value.encode() for name, value in raw.items()}
    response = requests.post(f"{server.base}/v1/uploads", headers=encoded, timeout=TIMEOUT)
    assert (response.status_code, error_of(response)["param"]) == (status, param)
    assert response.headers["Tus-Resumable"] == "1.0.0"
    assert (status == 412) == (response.headers.get("Tus-Version") == "1.0.0")


@pytest.mark.parametrize(
    ("offset", "headers", "status", "param"),
    [
        ("1", {}, 409, "Upload-Offset"),
        ("x", {}, 400, "Upload-Offset"),
        ("0", {"Content-Type": "video/mp4"}, 415, "Content-Type"),
        ("0", {"Upload-Checksum": "crc32 AAAA"}, 400, "Upload-Checksum"),
        ("0", {"Upload-Checksum": "sha1 !"}, 400, "Upload-Checksum"),
        ("0", {"Upload-Checksum": "sha1 AAAA"}, 460, "Upload-Checksum"),
        ("0", {"Tus-Resumable": "2"}, 412, "Tus-Resumable"),
    ],
)
def test_bytes_that_are_wrong_do_not_count(
    server: Server, offset: str, headers: dict[str, str], status: int, param: str
) -> None:
    address = begin(server.base, b"0123456789")
    response = requests.patch(
        address, data=b"01234", headers={**PIECES, "Upload-Offset": offset, **headers}, timeout=TIMEOUT
    )
    assert (response.status_code, error_of(response)["param"]) == (status, param)
    assert head(address).headers["Upload-Offset"] == "0"
    requests.delete(address, headers=VERSION, timeout=TIMEOUT)


def test_more_bytes_than_announced_and_what_is_no_video_are_refused(server: Server) -> None:
    content = b"This is no video. " * 10
    address = begin(server.base, content)
    assert send(address, 0, content + b"!").status_code == 413
    response = send(address, 0, content)
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_media")
    assert head(address).status_code == 404
    assert send(f"{server.base}/v1/uploads/..%2f..%2flibrary.sqlite3", 0, content).status_code == 404


def cut_off(server: Server, address: str, content: bytes, until: int) -> socket.socket:
    """A PATCH of the whole content of which only so much is sent; the connection stays open."""
    host, _, port = server.base.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), TIMEOUT)
    lines = [
        f"PATCH {address.removeprefix(server.base)} HTTP/1.1",
        f"Host: {host}",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in {**PIECES, "Upload-Offset": "0"}.items()),
    ]
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content[:until])
    return connection


def wait_for_bytes(path: Path, num_bytes: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while path.stat().st_size < num_bytes:
        assert time.monotonic() < deadline, "the bytes do not reach the file"
        time.sleep(0.01)


def test_a_hanging_connection_makes_way_for_the_client_that_comes_back(server: Server, clips: dict[str, Path]) -> None:
    padded = clips["png"].read_bytes().ljust(3 << 20, b"\0")
    address = begin(server.base, padded)
    file = server.storage / "library" / "uploads" / address.rpartition("/")[-1]
    with cut_off(server, address, padded, (2 << 20) + 5) as connection:
        wait_for_bytes(file, 1 << 20)
        at = int(head(address).headers["Upload-Offset"])
        assert at >= 1 << 20
        assert b" 409 " in connection.recv(1000)
        last = send(address, at, padded[at:])
    assert last.headers["Video-Id"] == hashlib.sha256(padded).hexdigest()
    requests.delete(f"{server.base}/v1/videos/{last.headers['Video-Id']}", timeout=TIMEOUT)


def test_a_killed_server_loses_neither_videos_nor_bytes_and_its_quota_holds(
    tmp_path: Path, clips: dict[str, Path]
) -> None:
    limits = {"MAX_LIBRARY_BYTES": str(4 << 20), "DECODE_PROCESSES": "1"}
    first = start_server(tmp_path, **limits)
    content = clips["two"].read_bytes().ljust(3 << 20, b"\0")
    with clips["one"].open("rb") as file:
        kept = requests.post(f"{first.base}/v1/videos", files={"video": file}, timeout=TIMEOUT).json()
    address = begin(first.base, content)
    upload_id = address.rpartition("/")[-1]
    full = create(first.base, 2 << 20)
    assert (full.status_code, error_of(full)["code"]) == (507, "library_full")
    assert str((3 << 20) + kept["size_bytes"]) in error_of(full)["message"]
    with cut_off(first, address, content, 2 << 20):
        wait_for_bytes(first.storage / "library" / "uploads" / upload_id, 1 << 20)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait(TIMEOUT)
    second = start_server(tmp_path, **limits)
    try:
        address = f"{second.base}/v1/uploads/{upload_id}"
        at = int(head(address).headers["Upload-Offset"])
        assert at >= 1 << 20
        last = send(address, at, content[at:])
        assert last.headers["Video-Id"] == hashlib.sha256(content).hexdigest()
        listed = requests.get(f"{second.base}/v1/videos", timeout=TIMEOUT).json()["data"]
        assert [video["id"] for video in listed] == [last.headers["Video-Id"], kept["id"]]
        text = ask(second.base, last.headers["Video-Id"])
        assert "red circle" in text
        assert "blue square" in text
        big = clips["png"].read_bytes().ljust(2 << 20, b"\0")
        full = requests.post(f"{second.base}/v1/videos", files={"video": ("a.png", big)}, timeout=TIMEOUT)
        assert (full.status_code, error_of(full)["param"]) == (507, "video")
    finally:
        assert second.stop() == 0
