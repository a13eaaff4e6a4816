"""Kept videos over HTTP: upload once, ask by id on every route, look at file and frames, and delete."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events, upload
from PIL import Image
from socket_client import open_socket
from support import Server

ABSENT = "0" * 64
GREEDY = {"temperature": 0.0, "max_tokens": 12}


def keep(base: str, path: Path, **fields: str) -> requests.Response:
    with path.open("rb") as file:
        return requests.post(f"{base}/v1/videos", files={"video": (path.name, file)}, data=fields, timeout=TIMEOUT)


def get(base: str, address: str, **options: Any) -> requests.Response:
    return requests.get(base + address, timeout=TIMEOUT, **options)


@pytest.fixture
def kept(server: Server, clips: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """A kept video."""
    response = keep(server.base, clips["one"])
    assert response.status_code == 201, response.text
    yield response.json()
    requests.delete(f"{server.base}/v1/videos/{response.json()['id']}", timeout=TIMEOUT)


def test_a_video_is_kept_found_renamed_listed_and_deleted(server: Server, clips: dict[str, Path]) -> None:
    response = keep(server.base, clips["two"])
    video = response.json()
    content = clips["two"].read_bytes()
    assert (response.status_code, response.headers["Location"]) == (201, f"/v1/videos/{video['id']}")
    assert video["id"] == hashlib.sha256(content).hexdigest()
    assert (video["filename"], video["size_bytes"], video["media_type"]) == (
        "two_events.mp4",
        len(content),
        "video/mp4",
    )
    assert (video["kind"], video["container"], video["codec"]) == ("video", "MP4", "h264")
    assert video["duration_seconds"] == pytest.approx(10, abs=0.2)
    assert video["expires_at"] == pytest.approx(video["created_at"] + 7 * 24 * 3600, abs=1)
    again = keep(server.base, clips["two"], filename="again.mp4")
    assert (again.status_code, again.json()["filename"]) == (200, "two_events.mp4")
    address = f"{server.base}/v1/videos/{video['id']}"
    name = "../../Küche <b>\u202e montags.mp4"
    renamed = requests.patch(address, json={"filename": name}, timeout=TIMEOUT).json()
    assert renamed["filename"] == "Küche <b> montags.mp4"
    assert get(server.base, "/v1/videos").json()["data"][0] == renamed == requests.get(address, timeout=TIMEOUT).json()
    assert requests.delete(address, timeout=TIMEOUT).status_code == 204
    gone = requests.delete(address, timeout=TIMEOUT)
    assert (gone.status_code, error_of(gone)["code"]) == (404, "video_not_found")


def test_the_list_comes_in_pages(server: Server, clips: dict[str, Path]) -> None:
    ids = [keep(server.base, clips[name]).json()["id"] for name in ("jpeg", "png", "webp")]
    first = get(server.base, "/v1/videos?limit=2").json()
    second = get(server.base, f"/v1/videos?limit=2&cursor={first['next_cursor']}").json()
    assert [video["id"] for video in first["data"] + second["data"]][:3] == ids[::-1]
    assert [video["kind"] for video in first["data"]] == ["image", "image"]
    assert first["has_more"]
    found = get(server.base, "/v1/videos?query=PNG").json()["data"]
    assert [video["id"] for video in found] == [ids[1]]
    assert get(server.base, "/v1/videos?query=p%25g").json()["data"] == []
    for video_id in ids:
        requests.delete(f"{server.base}/v1/videos/{video_id}", timeout=TIMEOUT)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "cursor=x", "cursor=-1"])
def test_a_wrong_page_is_named(server: Server, query: str) -> None:
    response = get(server.base, f"/v1/videos?{query}")
    assert (response.status_code, error_of(response)["param"]) == (400, query.partition("=")[0])


@pytest.mark.parametrize("name", ["text", "zero", "truncated", "audio"])
def test_what_is_no_video_is_not_kept(server: Server, clips: dict[str, Path], name: str) -> None:
    response = keep(server.base, clips[name])
    assert (response.status_code, error_of(response)["param"]) == (415, "video")
    digest = hashlib.sha256(clips[name].read_bytes()).hexdigest()
    assert get(server.base, f"/v1/videos/{digest}").status_code == 404
    assert not list((server.storage / "library" / "videos").glob(digest))


def test_a_form_without_a_file_or_with_another_field_is_refused(server: Server, clips: dict[str, Path]) -> None:
    response = requests.post(f"{server.base}/v1/videos", files={"filename": (None, "x")}, timeout=TIMEOUT)
    assert (response.status_code, error_of(response)["param"]) == (400, "video")
    response = keep(server.base, clips["one"], colour="red")
    assert (response.status_code, error_of(response)["param"]) == (400, "colour")


def test_a_url_is_fetched_and_kept_through_the_guard(server: Server, clips: dict[str, Path]) -> None:
    sample = f"{server.base}/static/samples/red-circle.mp4"
    response = requests.post(f"{server.base}/v1/videos", json={"video_url": sample}, timeout=TIMEOUT)
    assert (response.status_code, response.json()["filename"]) == (201, "red-circle.mp4")
    requests.delete(f"{server.base}/v1/videos/{response.json()['id']}", timeout=TIMEOUT)
    data = "data:image/png;base64," + base64.b64encode(clips["png"].read_bytes()).decode()
    body = {"video_url": data, "filename": "still.png"}
    response = requests.post(f"{server.base}/v1/videos", json=body, timeout=TIMEOUT)
    assert (response.status_code, response.json()["media_type"]) == (201, "image/png")
    requests.delete(f"{server.base}/v1/videos/{response.json()['id']}", timeout=TIMEOUT)
    for url in ("file:///etc/passwd", f"video_id:{ABSENT}", "http://127.0.0.1:9/none.mp4"):
        response = requests.post(f"{server.base}/v1/videos", json={"video_url": url}, timeout=TIMEOUT)
        assert (response.status_code, error_of(response)["param"]) == (400, "video_url")


def test_many_who_send_the_same_at_once_get_one_video(server: Server, clips: dict[str, Path]) -> None:
    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(lambda _: keep(server.base, clips["one_frame"]), range(8)))
    assert sorted(response.status_code for response in responses) == [200] * 7 + [201]
    (video_id,) = {response.json()["id"] for response in responses}
    requests.delete(f"{server.base}/v1/videos/{video_id}", timeout=TIMEOUT)


# Questions


def asked_by_id(base: str, video_id: str) -> Iterator[tuple[str, requests.Response]]:
    """The same question on every route: the field that holds the id, and the answer."""
    body = {"prompt": QUESTION, "video_id": video_id, "generation_params": GREEDY}
    for route in ("/v1/inference/url", "/predict"):
        yield "video_id", requests.post(base + route, json=body, timeout=TIMEOUT)
    as_url = {**body, "video_url": f"video_id:{video_id}"}
    del as_url["video_id"]
    yield "video_url", requests.post(base + "/predict", json=as_url, timeout=TIMEOUT)
    form = {name: (None, str(value)) for name, value in {"prompt": QUESTION, "video_id": video_id, **GREEDY}.items()}
    for route in ("/v1/inference/upload", "/predict"):
        yield "video_id", requests.post(base + route, files=form, timeout=TIMEOUT)
    for part in ({"video_id": video_id}, {"url": f"video_id:{video_id}"}):
        content = [{"type": "video_url", "video_url": part}, {"type": "text", "text": QUESTION}]
        chat = {"messages": [{"role": "user", "content": content}], **GREEDY}
        param = f"messages.0.content.0.video_url.{next(iter(part))}"
        yield param, requests.post(base + "/v1/chat/completions", json=chat, timeout=TIMEOUT)
    for part in ({"video_id": video_id}, {"video_url": f"video_id:{video_id}"}):
        content = [{"type": "input_video", **part}, {"type": "input_text", "text": QUESTION}]
        body = {"input": [{"role": "user", "content": content}], "temperature": 0.0, "max_output_tokens": 12}
        param = f"input.0.content.0.{next(iter(part))}"
        yield param, requests.post(base + "/v1/responses", json=body, timeout=TIMEOUT)


def text_of(answer: dict[str, Any]) -> str:
    if "output" in answer:
        return answer["output"][0]["content"][0]["text"]
    return answer["text"] if "text" in answer else answer["choices"][0]["message"]["content"]


def test_every_route_answers_about_a_kept_video_as_about_an_upload(
    server: Server, clips: dict[str, Path], kept: dict[str, Any]
) -> None:
    expected = upload(server.base, clips["one"], max_tokens=12).json()["text"]
    for _, response in asked_by_id(server.base, kept["id"]):
        assert response.status_code == 200, response.text
        assert text_of(response.json()) == expected
    for fields in ({"video_id": kept["id"]}, {"video_url": f"video_id:{kept['id']}"}):
        with open_socket(server) as socket:
            socket.say({"prompt": QUESTION, "generation_params": GREEDY, **fields})
            assert socket.answer()["text"] == expected
    plan = requests.post(f"{server.base}/v1/plan", json={"video_id": kept["id"]}, timeout=TIMEOUT).json()
    assert plan["media"]["size_bytes"] == kept["size_bytes"]
    assert get(server.base, "/v1/health/detailed").json()["library"]["used_bytes"] >= kept["size_bytes"]
    assert (server.storage / "library" / "videos" / kept["id"]).stat().st_nlink == 1  # all borrowed names are gone


@pytest.mark.parametrize("video_id", [ABSENT, "../../../../etc/passwd", "%00"])
def test_an_unknown_id_is_not_found_by_the_name_of_its_field(server: Server, video_id: str) -> None:
    for param, response in asked_by_id(server.base, video_id):
        error = error_of(response)
        assert (response.status_code, error["param"], error["code"]) == (404, param, "video_not_found")
    response = requests.post(f"{server.base}/v1/plan", json={"video_id": video_id}, timeout=TIMEOUT)
    assert (response.status_code, error_of(response)["param"]) == (404, "video_id")
    body = {"prompt": QUESTION, "video_id": video_id, "stream": True}
    response = requests.post(f"{server.base}/v1/inference/url", json=body, timeout=TIMEOUT)
    assert (response.status_code, error_of(response)["param"]) == (404, "video_id")
    with open_socket(server) as socket:
        socket.say({"prompt": QUESTION, "video_id": video_id})
        error = socket.answer()["error"]
    assert (error["type"], error["param"], error["code"]) == ("not_found_error", "video_id", "video_not_found")


def test_one_video_is_named_in_one_way(server: Server, clips: dict[str, Path]) -> None:
    body = {"prompt": QUESTION, "video_id": ABSENT, "video_url": "http://127.0.0.1:9/x.mp4"}
    response = requests.post(f"{server.base}/v1/inference/url", json=body, timeout=TIMEOUT)
    assert (response.status_code, error_of(response)["param"]) == (400, "video_id")
    response = upload(server.base, clips["one"], video_id=ABSENT)
    assert (response.status_code, error_of(response)["param"]) == (400, "video_id")


def test_a_question_that_has_begun_goes_on_when_its_video_is_deleted(server: Server, clips: dict[str, Path]) -> None:
    video_id = keep(server.base, clips["two"]).json()["id"]
    body = {"prompt": QUESTION, "video_id": video_id, "stream": True, "generation_params": {"temperature": 0.0}}
    with requests.post(f"{server.base}/v1/inference/url", json=body, timeout=TIMEOUT, stream=True) as response:
        stream = events(response)
        name, _ = next(stream)
        assert name == "status"
        assert requests.delete(f"{server.base}/v1/videos/{video_id}", timeout=TIMEOUT).status_code == 204
        *_, (last, answer) = stream
    assert (last, answer["finish_reason"]) == ("done", "stop")
    assert "red circle" in answer["text"]


# The file


def test_the_file_comes_whole_and_can_do_nothing(server: Server, clips: dict[str, Path], kept: dict[str, Any]) -> None:
    content = clips["one"].read_bytes()
    address = f"/v1/videos/{kept['id']}/content"
    response = get(server.base, address)
    assert (response.status_code, response.content) == (200, content)
    headers = response.headers
    assert (headers["Content-Type"], headers["Accept-Ranges"]) == ("video/mp4", "bytes")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Content-Disposition"] == "inline; filename*=utf-8''red_circle_left.mp4"
    assert get(server.base, f"{address}?download=true").headers["Content-Disposition"].startswith("attachment;")
    assert get(server.base, address, headers={"If-None-Match": headers["ETag"]}).status_code == 304
    head = requests.head(server.base + address, timeout=TIMEOUT)
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(content)))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=100-199", slice(100, 200)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-50", slice(-50, None)),
        ("bytes=100-99999999999", slice(100, None)),
        ("bytes=-99999999999", slice(0, None)),
    ],
)
def test_a_range_comes_alone(
    server: Server, clips: dict[str, Path], kept: dict[str, Any], asked: str, expected: slice
) -> None:
    content = clips["one"].read_bytes()
    response = get(server.base, f"/v1/videos/{kept['id']}/content", headers={"Range": asked})
    assert (response.status_code, response.content) == (206, content[expected])
    begin, end, _ = expected.indices(len(content))
    assert response.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(content)}"


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=0-1,5-6"},
        {"Range": "bytes=9-3"},
        {"Range": "bytes=-"},
        {"Range": "frames=0-1"},
        {"Range": f"bytes={'9' * 5000}-"},
        {"Range": "bytes=0-1", "If-Range": '"another"'},
    ],
)
def test_a_range_that_makes_no_sense_is_ignored(
    server: Server, clips: dict[str, Path], kept: dict[str, Any], headers: dict[str, str]
) -> None:
    response = get(server.base, f"/v1/videos/{kept['id']}/content", headers=headers)
    assert (response.status_code, response.content) == (200, clips["one"].read_bytes())


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(server: Server, kept: dict[str, Any], asked: str) -> None:
    response = get(server.base, f"/v1/videos/{kept['id']}/content", headers={"Range": asked})
    assert (response.status_code, error_of(response)["code"]) == (416, "range_not_satisfiable")
    assert response.headers["Content-Range"] == f"bytes */{kept['size_bytes']}"


# What it looks like


def test_the_frames_are_those_that_a_question_sees(server: Server, kept: dict[str, Any]) -> None:
    params = {"fps": 1, "video_start": 1}
    body = {"prompt": QUESTION, "video_id": kept["id"], "video_params": params, "generation_params": GREEDY}
    seen = requests.post(f"{server.base}/v1/inference/url", json=body, timeout=TIMEOUT).json()["video"]
    frames = get(server.base, f"/v1/videos/{kept['id']}/frames", params={**params, "format": "png"}).json()
    assert frames["video"] == {**seen, "frames_url": None}
    assert [frame["time_seconds"] for frame in frames["data"]] == seen["frame_timestamps"]
    for frame in frames["data"]:
        response = get(server.base, frame["url"])
        assert (response.status_code, response.headers["Content-Type"]) == (200, "image/png")
        image = Image.open(io.BytesIO(response.content))
        assert (image.format, image.size) == ("PNG", (seen["width"], seen["height"]))
    jpeg = get(server.base, seen["frames_url"].replace("{index}", "0")).content
    small = get(server.base, frames["data"][0]["url"].replace(".png?", ".jpeg?max_side=320&")).content
    assert small == jpeg


@pytest.mark.parametrize(("image_format", "name"), [("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_a_frame_comes_in_the_format_and_size_that_is_asked_for(
    server: Server, kept: dict[str, Any], image_format: str, name: str
) -> None:
    response = get(server.base, f"/v1/videos/{kept['id']}/frames/1.{image_format}?nframes=2&max_side=64")
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, max(image.size)) == (name, 64)
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("address", "status", "param"),
    [
        ("frames?fps=0", 400, "fps"),
        ("frames?fps=2&nframes=4", 400, "nframes"),
        ("frames?colour=red", 400, "colour"),
        ("frames?fps=1&fps=2", 400, "fps"),
        ("frames?format=gif", 400, "format"),
        ("frames?nframes=1000", 400, "nframes"),
        ("frames/2.jpeg?nframes=2", 404, "index"),
        ("frames/0.gif", 400, "image_format"),
        ("frames/-1.jpeg", 400, "index"),
        ("frames/0.jpeg?max_side=1", 400, "max_side"),
    ],
)
def test_a_wrong_sampling_is_named(server: Server, kept: dict[str, Any], address: str, status: int, param: str) -> None:
    response = get(server.base, f"/v1/videos/{kept['id']}/{address}")
    assert (response.status_code, error_of(response)["param"]) == (status, param)


def test_a_poster_and_an_images_frame(server: Server, clips: dict[str, Path], kept: dict[str, Any]) -> None:
    poster = get(server.base, f"/v1/videos/{kept['id']}/thumbnail")
    assert max(Image.open(io.BytesIO(poster.content)).size) <= 480
    assert (
        get(
            server.base, f"/v1/videos/{kept['id']}/thumbnail", headers={"If-None-Match": poster.headers["ETag"]}
        ).status_code
        == 304
    )
    for name in ("webp", "one_frame"):
        video_id = keep(server.base, clips[name]).json()["id"]
        assert get(server.base, f"/v1/videos/{video_id}/thumbnail").status_code == 200
        assert len(get(server.base, f"/v1/videos/{video_id}/frames").json()["data"]) in (1, 2)
        requests.delete(f"{server.base}/v1/videos/{video_id}", timeout=TIMEOUT)


@pytest.mark.parametrize("below", ["", "/content", "/thumbnail", "/frames", "/frames/0.jpeg"])
def test_what_is_not_kept_is_not_found(server: Server, below: str) -> None:
    for video_id in (ABSENT, "..%2f..%2fetc", "library.sqlite3"):
        response = get(server.base, f"/v1/videos/{video_id}{below}")
        assert response.status_code == 404
        error_of(response)
