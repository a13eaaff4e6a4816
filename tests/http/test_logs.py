"""The log of a real server: one form in every process, the request's id on the way, and nothing that is private."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, events, upload_stream
from socket_client import data_uri
from support import Server, start_server
from watching import Brake, wait_until
from websockets.sync.client import connect

from tru_vlm.api.keys import hash_key, new_key
from tru_vlm.telemetry.logs import build_handler

UPLOAD = "/v1/inference/upload"
ACCESS = "tru_vlm.telemetry.access_log"
CANARY = "canary"
PROMPT = f"{CANARY}-prompt: what happens?"
Line = dict[str, Any]


@dataclass(frozen=True)
class Logged:
    """A server whose log is read, and its key."""

    server: Server
    key: str

    @property
    def base(self) -> str:
        return self.server.base

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def lines(self) -> list[Line]:
        """All lines so far, each of which is one JSON object."""
        text = self.server.log.read_text()
        return [json.loads(line) for line in text.splitlines() if not line.startswith("import time:")]

    def about(self, request_id: str) -> list[Line]:
        return [line for line in self.lines() if line.get("request_id") == request_id]

    def access(self, request_id: str) -> Line:
        """The one line of an exchange's end, which may be written after the client has its answer."""

        def found() -> list[Line]:
            return [line for line in self.about(request_id) if line["logger"] == ACCESS]

        wait_until(lambda: found() != [])
        (line,) = found()
        return line

    def upload(self, path: Path, request_id: str, **fields: str) -> requests.Response:
        with path.open("rb") as file:
            return requests.post(
                self.base + UPLOAD,
                files={"video": (path.name, file)},
                data={"prompt": PROMPT, "temperature": "0", **fields},
                headers={**self.headers, "X-Request-Id": request_id},
                timeout=TIMEOUT,
            )


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    folder = tmp_path_factory.mktemp("logged")
    key = new_key()
    server = start_server(
        folder,
        LOG_FORMAT="json",
        LOG_LEVEL="debug",
        API_KEYS=json.dumps({"name": "alice", "hash": hash_key(key)}),
        FRAME_CACHE_MEMORY_BYTES="0",
        PYTHONPROFILEIMPORTTIME="1",  # every import of every process is told on stderr
    )
    try:
        yield Logged(server, key)
    finally:
        server.stop()


def test_every_process_and_library_logs_in_one_form(logged: Logged) -> None:
    wait_until(lambda: f"ready at {logged.base}" in logged.server.log.read_text())
    lines = logged.lines()
    for line in lines:
        assert {"timestamp", "level", "logger", "process", "pid", "message"} <= set(line)
        assert line["timestamp"].endswith("Z")
    assert {line["process"] for line in lines} == {"main", "http", "worker"}
    assert {"litserve.server", "uvicorn.error", "tru_vlm.launch"} <= {line["logger"] for line in lines}


def test_a_question_has_one_line_with_all_that_became_of_it(logged: Logged, clips: dict[str, Path]) -> None:
    answer = logged.upload(clips["one"], "one-line").json()
    line = logged.access("one-line")
    told = {name: line[name] for name in ("level", "process", "method", "route", "status", "outcome", "principal")}
    assert told == {
        "level": "info",
        "process": "http",
        "method": "POST",
        "route": UPLOAD,
        "status": 200,
        "outcome": "success",
        "principal": "alice",
    }
    assert (line["model"], line["variant"], line["finish_reason"]) == ("demo", "demo", answer["finish_reason"])
    assert line["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert line["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert line["received_bytes"] > clips["one"].stat().st_size
    assert line["sent_bytes"] == len(json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode())
    for name, seconds in answer["timings"].items():
        if name != "fetch":
            assert line[f"{name}_seconds"] == pytest.approx(seconds, abs=1e-5)
    assert 0 < line["probe_seconds"] < line["total_seconds"] <= line["duration_seconds"]


def test_the_id_goes_to_the_worker_and_the_number_of_lines_does_not_follow_the_tokens(
    logged: Logged, clips: dict[str, Path]
) -> None:
    num_lines = {}
    for request_id, tokens in (("short", 8), ("long", 200)):
        answer = logged.upload(clips["one"], request_id, max_tokens=str(tokens), ignore_eos="true").json()
        assert answer["usage"]["completion_tokens"] == tokens
        lines = logged.about(request_id)
        num_lines[request_id] = len(lines)
        (of_worker,) = [line for line in lines if line["process"] == "worker"]
        assert of_worker["completion_tokens"] == tokens
        assert of_worker["pid"] != next(line["pid"] for line in lines if line["process"] == "http")
    assert num_lines["short"] == num_lines["long"] <= 4


def test_a_client_that_leaves_and_a_refusal_have_their_line(logged: Logged, clips: dict[str, Path]) -> None:
    brake = Brake(logged.server, logged.headers)
    response = requests.post(
        logged.base + UPLOAD,
        files={"video": clips["one"].read_bytes()},
        data={"prompt": PROMPT, "stream": "true", "max_tokens": "2000", "ignore_eos": "true"},
        headers={**logged.headers, "X-Request-Id": "leaver"},
        timeout=TIMEOUT,
        stream=True,
    )
    stream = events(response)  # held: requests closes the connection of an iterator that nobody has any more
    assert any(name == "delta" for name, _ in stream)
    with brake:
        response.close()
        assert logged.access("leaver")
    assert logged.upload(clips["text"], "refused").status_code == 415
    assert (
        requests.get(logged.base + "/v1/models", headers={"X-Request-Id": "nobody"}, timeout=TIMEOUT).status_code == 401
    )
    refused = logged.access("refused")
    assert (refused["status"], refused["outcome"], refused["error"]) == (415, "rejected", "unsupported_media")
    nobody = logged.access("nobody")
    assert (nobody["status"], nobody["outcome"], nobody["error"]) == (401, "rejected", "missing_api_key")
    assert "principal" not in nobody
    leaver = logged.access("leaver")
    assert (leaver["outcome"], leaver["stage"]) == ("abort", "generating")


def test_each_question_of_a_socket_has_a_line_and_so_has_the_socket(logged: Logged, clips: dict[str, Path]) -> None:
    before = len(logged.lines())
    url = logged.base.replace("http", "ws") + f"/v1/inference/ws?token={CANARY}-socket"
    with connect(url, additional_headers=logged.headers) as connection:
        for name in ("a", "b"):
            connection.send(json.dumps({"id": name, "prompt": PROMPT, "video_url": data_uri(clips["one"])}))
            while (kind := json.loads(connection.recv(timeout=TIMEOUT))["type"]) != "done":
                assert kind != "error"

    def ends() -> list[Line]:
        since = logged.lines()[before:]
        return [line for line in since if line["logger"] == ACCESS and line.get("method") == "WEBSOCKET"]

    wait_until(lambda: ends() != [])
    (end,) = ends()
    assert (end["route"], end["status"], end["principal"]) == ("/v1/inference/ws", 101, "alice")
    questions = [line for line in logged.lines()[before:] if line["message"] == "question success"]
    assert len({line["request_id"] for line in questions} | {end["request_id"]}) == 3
    assert all(line["completion_tokens"] > 0 and line["principal"] == "alice" for line in questions)
    assert end["received_bytes"] > 2 * len(data_uri(clips["one"]))


def test_an_error_in_the_worker_is_told_with_the_id_and_a_traceback(logged: Logged, clips: dict[str, Path]) -> None:
    """Its frames vanish before the worker opens them."""
    health = requests.get(logged.base + "/v1/health/detailed", headers=logged.headers, timeout=TIMEOUT).json()
    pid = health["workers"][0]["pid"]
    kept = set(logged.server.storage.rglob("*.npy"))
    os.kill(pid, signal.SIGSTOP)
    try:
        response = requests.post(
            logged.base + UPLOAD,
            files={"video": clips["two"].read_bytes()},
            data={"prompt": PROMPT, "stream": "true", "nframes": "6"},
            headers={**logged.headers, "X-Request-Id": "no-frames"},
            timeout=TIMEOUT,
            stream=True,
        )
        stream = events(response)
        next(name for name, data in stream if data.get("stage") == "prefilling")
        (frames,) = set(logged.server.storage.rglob("*.npy")) - kept
        frames.unlink()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [name for name, _ in stream] == ["error"]
    (error,) = [line for line in logged.about("no-frames") if line["level"] == "error"]
    assert (error["process"], error["pid"]) == ("worker", pid)
    assert "FileNotFoundError" in error["exception"]
    line = logged.access("no-frames")
    assert (line["outcome"], line["error"]) == ("error", "internal_error")


def test_nothing_private_is_in_any_line(logged: Logged, clips: dict[str, Path], tmp_path: Path) -> None:
    """What clients send, and what they are told, by every way that may end in the log."""
    named = tmp_path / f"{CANARY}-file.mp4"
    for kind in ("one", "text", "truncated"):
        shutil.copy(clips[kind], named)
        logged.upload(named, f"private-{kind}")
    body = {"video_url": f"http://127.0.0.1:9/{CANARY}-path?token={CANARY}-token", "prompt": PROMPT}
    url = logged.base + "/v1/inference/url"
    refused = requests.post(url, json=body, headers=logged.headers, timeout=TIMEOUT)
    assert refused.status_code == 400
    body["video_url"] = f"ftp://user:{CANARY}-password@host/{CANARY}-path"
    assert requests.post(url, json=body, headers=logged.headers, timeout=TIMEOUT).status_code == 400
    wrong = {"X-API-Key": f"{CANARY}-key", "X-Request-Id": f"{CANARY} no id"}
    assert (
        requests.get(f"{logged.base}/v1/models?key={CANARY}-query", headers=wrong, timeout=TIMEOUT).status_code == 401
    )
    requests.get(f"{logged.base}/{CANARY}-path?key={CANARY}", headers=logged.headers, timeout=TIMEOUT)
    requests.get(f"{logged.base}/v1/videos/{CANARY}-id", headers=logged.headers, timeout=TIMEOUT)
    socket = logged.base.replace("http", "ws") + f"/v1/inference/ws?token={CANARY}-socket"
    with connect(socket, additional_headers=logged.headers) as connection:
        connection.send(json.dumps({"id": f"{CANARY}-id", "prompt": PROMPT, "video_url": f"{CANARY}-url"}))
        connection.recv(timeout=TIMEOUT)
    with pytest.raises(Exception, match="401"):
        connect(socket)
    text = logged.upload(clips["one"], "private-answer").json()["text"]
    assert len(text) > 20
    lines = [json.dumps(line) for line in logged.lines() if line["level"] != "debug"]
    assert lines
    for line in lines:
        for secret in (CANARY, logged.key, text, hash_key(logged.key)):
            assert secret not in line


def test_no_process_loads_the_exporter_where_nothing_is_traced(logged: Logged) -> None:
    imports = [line for line in logged.server.log.read_text().splitlines() if line.startswith("import time:")]
    num_processes = sum(line.endswith(" tru_vlm.telemetry.spans") for line in imports)
    assert num_processes >= 2, "the main process, from which HTTP's is forked, and the worker"
    assert not [line for line in imports if "opentelemetry.exporter" in line or "tru_vlm.telemetry.otlp" in line]


def test_a_line_of_text_stays_a_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("w") as stream:
        handler = build_handler("text", stream)
        record = logging.LogRecord("name", logging.INFO, "", 0, "a\n2026 INFO %s", ("b\x1b[31m\r",), None)
        record.fields = {"status": 200}
        handler.handle(record)
    assert file.read_text().splitlines()[0].endswith(" name: a\\x0a2026 INFO b\\x1b[31m\\x0d status=200")
    assert len(file.read_text().splitlines()) == 1


def test_the_servers_own_text_log_has_the_same_facts(server: Server, clips: dict[str, Path]) -> None:
    response = upload_stream(server.base, clips["one"], prompt=QUESTION)
    name = response.headers["X-Request-Id"]
    assert [kind for kind, _ in events(response)][-1] == "done"
    (line,) = [line for line in server.log.read_text().splitlines() if f"request_id={name}" in line]
    assert " INFO http[" in line
    assert f": POST {UPLOAD} 200 success request_id={name} method=POST" in line
    assert " model=demo variant=demo finish_reason=stop " in line
