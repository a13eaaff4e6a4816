"""The server as a whole: health, documentation, start, and what settings of its own do to it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from client import TIMEOUT, error_of, events, upload, upload_stream
from support import ROOT, START_SECONDS, Server, free_port, require_reader, start_server
from watching import Brake, files_below

from qwen_vl_utils import backend_status

MAX_UPLOAD_BYTES = 100_000

ROUTES = {
    "/": {"get"},
    "/predict": {"post"},
    "/v1/inference/url": {"post"},
    "/v1/inference/upload": {"post"},
    "/v1/inference/ws": {"get"},
    "/v1/plan": {"post"},
    "/v1/videos": {"get", "post"},
    "/v1/videos/{video_id}": {"get", "patch", "delete"},
    "/v1/videos/{video_id}/content": {"get"},
    "/v1/videos/{video_id}/thumbnail": {"get"},
    "/v1/videos/{video_id}/frames": {"get"},
    "/v1/videos/{video_id}/frames/{index}.{image_format}": {"get"},
    "/v1/uploads": {"post"},
    "/v1/uploads/{upload_id}": {"get", "head", "patch", "delete"},
    "/v1/chat/completions": {"post"},
    "/v1/responses": {"post"},
    "/v1/models": {"get"},
    "/v1/models/{model_id}": {"get"},
    "/v1/frames/{content_key}/{index}.jpg": {"get"},
    "/v1/chats": {"get", "post"},
    "/v1/chats/{chat_id}": {"get", "patch", "delete"},
    "/v1/chats/{chat_id}/export": {"get"},
    "/v1/chats/{chat_id}/turns": {"post"},
    "/v1/chats/{chat_id}/turns/{index}/retry": {"post"},
    "/v1/inference/batch": {"post"},
    "/v1/jobs": {"get"},
    "/v1/jobs/{job_id}": {"get", "delete"},
    "/v1/jobs/{job_id}/events": {"get"},
    "/v1/jobs/{job_id}/results": {"get"},
    "/v1/jobs/{job_id}/resume": {"post"},
    "/v1/health": {"get"},
    "/v1/health/live": {"get"},
    "/v1/health/ready": {"get"},
    "/v1/health/detailed": {"get"},
    "/metrics": {"get"},
}


def test_our_own_page_answers_at_the_root(server: Server) -> None:
    response = requests.get(server.base + "/", timeout=TIMEOUT)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert "demo" in response.text
    assert "litserve running" not in response.text


def test_health(server: Server) -> None:
    assert requests.get(server.base + "/v1/health", timeout=TIMEOUT).json() == {"status": "ok"}
    assert requests.get(server.base + "/health", timeout=TIMEOUT).text == "ok"
    for path in ("/v1/health/live", "/v1/health/ready"):
        assert requests.get(server.base + path, timeout=TIMEOUT).json() == {"status": "ok"}


def test_detailed_health_says_what_runs(server: Server) -> None:
    body = requests.get(server.base + "/v1/health/detailed", timeout=TIMEOUT).json()
    assert body["model"]["name"] == "demo"
    (worker,) = body["workers"]
    assert worker["state"] == "ready"
    engine = worker["engine"]
    assert (engine["backend"], engine["device"], engine["dtype"]) == ("hf", "cpu", "float32")
    assert (engine["attention"], engine["quantization"]) == ("sdpa", "none")
    assert engine["attention_reason"] == "flash-attn needs CUDA; the device is cpu"
    assert engine["weight_bytes"] == engine["full_weight_bytes"] == 4 * engine["num_parameters"]
    assert worker["stats"]["kv_cache_tokens"] > 0
    assert worker["stats"]["device_memory_bytes"] > 0
    assert body["video"]


def test_a_second_question_finds_the_frames_and_health_says_where(server: Server, clips: dict[str, Path]) -> None:
    def hits() -> int:
        cache = requests.get(server.base + "/v1/health/detailed", timeout=TIMEOUT).json()["video"]["cache"]
        return int(cache["num_memory_hits"] + cache["num_disk_hits"])

    assert upload(server.base, clips["one"]).status_code == 200
    before = hits()
    assert upload(server.base, clips["one"], prompt="Which colour?").status_code == 200
    assert hits() == before + 1


@pytest.fixture(scope="module")
def peculiar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with several settings that no other has; each has its test here, and none touches another's."""
    reader = {"VIDEO_READER": "torchcodec"} if backend_status(("torchcodec",))["torchcodec"] == "available" else {}
    running = start_server(
        tmp_path_factory.mktemp("peculiar"),
        QUANTIZATION="int4",
        MAX_QUEUED_REQUESTS="1",
        MAX_BATCH_SIZE="1",
        MAX_UPLOAD_BYTES=str(MAX_UPLOAD_BYTES),
        **reader,
    )
    try:
        yield running
    finally:
        assert running.stop() == 0


def test_int4_answers_and_says_what_it_saves(peculiar: Server, clips: dict[str, Path]) -> None:
    answer = upload(peculiar.base, clips["one"], temperature=0)
    assert answer.status_code == 200
    assert answer.json()["text"].startswith("A red circle")
    (worker,) = requests.get(peculiar.base + "/v1/health/detailed", timeout=TIMEOUT).json()["workers"]
    engine = worker["engine"]
    assert engine["quantization"] == "int4"
    assert engine["weight_bytes"] < 0.7 * engine["full_weight_bytes"]


def test_a_quantization_that_cannot_be_had_stops_the_start(tmp_path: Path) -> None:
    result = start_in_vain(tmp_path, QUANTIZATION="fp8", DEVICE="cpu")
    assert result.returncode == 1
    said = result.stdout + result.stderr
    assert "QUANTIZATION=fp8: it needs a CUDA card" in said
    assert "Accepted here: none, int4, int8." in said


def test_every_route_is_described_with_an_example(server: Server) -> None:
    schema = requests.get(server.base + "/openapi.json", timeout=TIMEOUT).json()
    described = {path: set(operations) for path, operations in schema["paths"].items() if not path.startswith("/ui/")}
    assert described == ROUTES
    native = ("/predict", "/v1/inference/url", "/v1/inference/upload", "/v1/plan")
    for path in (*native, "/v1/chat/completions", "/v1/responses"):
        operation = schema["paths"][path]["post"]
        assert all("example" in content for content in operation["requestBody"]["content"].values())
        assert "example" in operation["responses"]["200"]["content"]["application/json"]
        assert {"400", "413", "429"} <= set(operation["responses"])
    assert "ErrorBody" in schema["components"]["schemas"]


def test_docs_need_no_other_host(server: Server) -> None:
    page = requests.get(server.base + "/docs", timeout=TIMEOUT).text
    assert "//" not in page.replace("<!doctype", "")
    bundle = page.split('src="')[1].split('"')[0]
    assert requests.get(server.base + bundle, timeout=TIMEOUT).status_code == 200


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"DEFAULT_VIDEO_FPS": "-2"}, ["DEFAULT_VIDEO_FPS", "-2", "greater than 0"]),
        ({"MODEL_BACKEND": "tensorrt"}, ["MODEL_BACKEND", "tensorrt", "'hf' or 'vllm'"]),
        ({"MODEL_PATH": "/nowhere/at/all"}, ["MODEL_PATH", "/nowhere/at/all"]),
        ({"IMAGE_PATCH_SIZE": "14"}, ["IMAGE_PATCH_SIZE=14", "16 pixels a side"]),
        ({"HOST": "example.com"}, ["HOST", "example.com", "127.0.0.1"]),
        ({"VIDEO_DECODE_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}, ["VIDEO_DECODE_DEVICE=cuda", "no CUDA device"]),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(
    tmp_path: Path, environment: dict[str, str], words: list[str]
) -> None:
    result = start_in_vain(tmp_path, **environment)
    assert result.returncode == 2
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


def start_in_vain(
    folder: Path, preexec_fn: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    own = {"PORT": str(free_port()), "STORAGE_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "server.py")],
        cwd=folder,
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
        preexec_fn=preexec_fn,
    )


def test_a_reader_that_does_not_load_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "decord.py").write_text("raise ImportError('built for another machine')")
    result = start_in_vain(tmp_path, VIDEO_READER="decord", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert "VIDEO_READER=decord: decord does not import (ImportError: built for another machine)" in result.stderr
    assert "What loads here: " in result.stderr
    assert "pyav" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_reader_is_taken_when_it_is_named(peculiar: Server, clips: dict[str, Path]) -> None:
    require_reader("torchcodec")
    assert upload(peculiar.base, clips["one"]).json()["video"]["decoder"] == "torchcodec"
    pool = requests.get(peculiar.base + "/v1/health/detailed", timeout=TIMEOUT).json()["video"]["pool"]
    assert (pool["decoder"], pool["device"]) == ("torchcodec", "cpu")


def test_a_folder_that_cannot_be_written_to_stops_the_start(tmp_path: Path) -> None:
    result = start_in_vain(tmp_path, STORAGE_DIR="/dev/null/nowhere")
    assert result.returncode == 1
    (_, reason) = result.stderr.splitlines()
    assert reason.startswith("STORAGE_DIR=/dev/null/nowhere: it cannot be written to (Not a directory).")


def test_a_full_disk_stops_the_start(tmp_path: Path) -> None:
    def without_a_byte() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    result = start_in_vain(tmp_path, preexec_fn=without_a_byte, PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode == 1
    (_, reason) = result.stderr.splitlines()
    assert reason.startswith(f"STORAGE_DIR={tmp_path}: it cannot be written to (File too large).")


def test_a_database_that_is_none_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "library.sqlite3").write_text("no database, but longer than the head of one" * 9)
    result = start_in_vain(tmp_path)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("cannot be used as a database: file is not a database.")


def test_too_little_memory_stops_the_start_before_anything_is_loaded(tmp_path: Path) -> None:
    tokens = "2000000000"  # of 2 x 5 layers x 2 heads x 64 x 4 bytes
    result = start_in_vain(tmp_path, KV_CACHE_TOKENS=tokens, DEVICE="cpu")
    assert result.returncode == 1
    assert "MODEL_PATH: too little memory: about 9.54e+03 GiB of memory are needed (demo: " in result.stderr
    assert "9.54e+03 GiB for the KV cache" in result.stderr
    assert "CHECK_MEMORY=false" in result.stderr
    assert "loads demo" not in result.stderr


def test_a_taken_port_stops_the_start(server: Server, tmp_path: Path) -> None:
    port = server.base.rpartition(":")[2]
    result = start_in_vain(tmp_path, PORT=port)
    assert result.returncode == 1
    assert f"PORT={port}" in result.stderr


def test_a_full_server_says_so_and_when_to_come_back(peculiar: Server, clips: dict[str, Path]) -> None:
    with Brake(peculiar):
        running = events(upload_stream(peculiar.base, clips["two"], max_tokens=4))
        assert any(data.get("stage") == "prefilling" for _, data in running), "it has the row"
        waiting = events(upload_stream(peculiar.base, clips["two"], max_tokens=4))
        assert next(data["queue_position"] for _, data in waiting if data.get("stage") == "waiting") == 1
        refused = upload(peculiar.base, clips["one"])
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert error_of(refused)["type"] == "rate_limit_error"
    last = [[name for name, _ in taken][-1] for taken in (running, waiting)]
    assert last == ["done", "done"], "those that were taken are answered"
    assert upload(peculiar.base, clips["one"]).status_code == 200


def test_an_upload_over_the_limit_is_refused_while_it_arrives(
    peculiar: Server, clips: dict[str, Path], tmp_path: Path
) -> None:
    announced = 500_000_000
    head = (
        b'--b\r\nContent-Disposition: form-data; name="video"; filename="big.mp4"\r\n\r\n'
        + clips["one"].read_bytes()[:32]
    )
    host, port = urlsplit(peculiar.base).hostname, urlsplit(peculiar.base).port
    with socket.create_connection((host, port), timeout=TIMEOUT) as connection:
        request = (
            f"POST /v1/inference/upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: {announced}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        )
        connection.sendall(request.encode() + head + b"\0" * 2 * MAX_UPLOAD_BYTES)
        # Most of the body was never sent: the answer comes while it would arrive.
        answer = ""
        while "}}" not in answer and (piece := connection.recv(65536)):
            answer += piece.decode()
    assert answer.startswith("HTTP/1.1 413"), answer
    assert '"param":"video"' in answer
    # A client that reads only after it has sent everything is told as well, not cut off.
    big = tmp_path / "big.mp4"
    big.write_bytes(clips["one"].read_bytes() + b"\0" * 20_000_000)
    assert upload(peculiar.base, big).status_code == 413
    assert not files_below(peculiar.storage / "spool")
    assert upload(peculiar.base, clips["one"]).status_code == 200
