"""What stock LitServe 0.2.19 was measured to do on the way of a request, and what this server does: a test per row.

docs/adr/0001 tells what followed from it.  Everything is real here: processes, HTTP, the demo model.
"""

from __future__ import annotations

import http.client
import http.server
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events, upload_stream
from client import upload as upload_with_default_length
from support import Server, start_server
from watching import Brake, TricklingHost, decode_child, health, held, num_generated, wait_until

from tru_vlm.video.frame_cache import shared_memory_directory

ROWS = 4
KV_TOKENS = 26_000
TOO_MANY_TOKENS = 28_000
"""An answer that the model's context has room for, and the worker's KV cache has not."""
LONG = {"max_tokens": 8000, "ignore_eos": "true"}
"""Goes on until it is stopped."""
SHORT = {"max_tokens": 64}
FILLING = {"max_tokens": 6000, "ignore_eos": "true"}
"""Goes on for long; as many as there are rows fit into the KV cache."""


@pytest.fixture(scope="module")
def table_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker with few rows; prompts are prefilled in so small pieces that a long one takes hundreds of steps."""
    running = start_server(
        tmp_path_factory.mktemp("table"),
        MAX_BATCH_SIZE=str(ROWS),
        MAX_NEW_TOKENS="30000",
        KV_CACHE_TOKENS=str(KV_TOKENS),
        PREFILL_CHUNK_TOKENS="16",
        DECODE_PROCESSES="1",
    )
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def quiet(table_server: Server) -> Iterator[Server]:
    """The server; after the test, everything that its requests held must be given back."""
    yield table_server
    wait_until(lambda: not any(held(table_server).values()))
    assert health(table_server)["status"] == "ok"


def after_first_delta(response: requests.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a stream up to its first text; returns the rest of it."""
    assert response.status_code == 200, response.text
    stream = events(response)
    assert next(name for name, _ in stream if name in {"delta", "done", "error"}) == "delta"
    return stream


def upload(base: str, path: Path, **fields: Any) -> requests.Response:
    """Ask for a short answer: one of the default length would not fit into the KV cache."""
    return upload_with_default_length(base, path, **SHORT | fields)


class Running:
    """An answer that has begun.  It goes on for as long as this is kept: a stream that nobody holds is closed."""

    def __init__(self, server: Server, path: Path, **fields: Any) -> None:
        self._response = upload_stream(server.base, path, **fields)
        self.stream = after_first_delta(self._response)

    def close(self) -> None:
        self._response.close()


def fill_rows(server: Server, path: Path) -> list[Running]:
    """Take every row of the worker."""
    return [Running(server, path, **FILLING) for _ in range(ROWS)]


def next_position(stream: Iterator[tuple[str, dict[str, Any]]]) -> int:
    return int(next(data for name, data in stream if name == "status" and data["stage"] == "waiting")["queue_position"])


def end_of(response: requests.Response) -> tuple[str, dict[str, Any]]:
    """The one terminal event of a stream, or the error of an answer that did not become one."""
    if response.status_code != 200:
        return "error", {"error": error_of(response)}
    received = list(events(response))
    terminals = [event for event in received if event[0] in {"done", "error"}]
    assert terminals == received[-1:], received
    return terminals[0]


class Question:
    """A request whose answer nobody reads: sent on a connection of its own, which can be cut."""

    def __init__(self, server: Server, route: str, **request: Any) -> None:
        prepared = requests.Request("POST", server.base + route, **request).prepare()
        self._connection = http.client.HTTPConnection(server.base.removeprefix("http://"), timeout=TIMEOUT)
        self._connection.request("POST", route, body=prepared.body, headers=dict(prepared.headers))

    @classmethod
    def about_file(cls, server: Server, path: Path, **fields: Any) -> Question:
        given = {"prompt": QUESTION, "temperature": "0", "stream": "true"} | SHORT | fields
        data = {name: str(value) for name, value in given.items()}
        return cls(server, "/v1/inference/upload", files={"video": ("clip.mp4", path.read_bytes())}, data=data)

    def leave(self) -> None:
        self._connection.close()


# | `predict` or `decode_request` raises while streaming |


def test_decode_request_raises_while_streaming(quiet: Server, clips: dict[str, Path]) -> None:
    """Stock: HTTP 200, short or empty body, error lost.  Ours: an `error` event."""
    filling = fill_rows(quiet, clips["one"])
    stream = events(upload_stream(quiet.base, clips["two"], nframes=10, **SHORT))
    assert next_position(stream) == 1
    for folder in frame_folders(quiet):
        for frames in folder.glob("*.npy"):
            frames.unlink()
    for other in filling:
        other.close()
    *_, (name, data) = stream
    assert (name, data["error"]["code"]) == ("error", "internal_error")


@pytest.mark.parametrize("stream", ["true", "false"])
def test_predict_raises(quiet: Server, clips: dict[str, Path], stream: str) -> None:
    """Stock: HTTP 200, short or empty body, error lost.  Ours: a real status, or an `error` event with the reason."""
    response = upload(quiet.base, clips["one"], max_tokens=TOO_MANY_TOKENS, stream=stream)
    assert stream == "true" or response.status_code == 400
    name, data = end_of(response)
    assert (name, data["error"]["code"]) == ("error", "context_length_exceeded")
    assert str(TOO_MANY_TOKENS) in data["error"]["message"]


# | one bad request in a batch of 4 |


def test_one_bad_request_in_a_batch_of_4(quiet: Server, clips: dict[str, Path]) -> None:
    """Stock: all four get its error.  Ours: only that one, whichever stage finds it bad."""
    bad: list[tuple[str, dict[str, Any]]] = [
        ("text", {}),
        ("truncated", {}),
        ("one", {"max_tokens": TOO_MANY_TOKENS}),
    ]
    for name, fields in bad:
        batch = [("one", {}), ("two", {}), (name, fields), ("one", {})]
        with ThreadPoolExecutor(len(batch)) as pool:
            answers = list(pool.map(lambda item: upload(quiet.base, clips[item[0]], **item[1]), batch))
        statuses = [answer.status_code for answer in answers]
        assert statuses[:2] + statuses[3:] == [200] * 3, (name, statuses)
        assert 400 <= statuses[2] < 500, (name, statuses)
        assert all("A red circle moves left." in answer.json()["text"] for answer in answers if answer.ok)


# | client leaves after token 1 of N |


def test_client_leaves_after_token_1_of_n(quiet: Server, clips: dict[str, Path]) -> None:
    """Stock: the worker makes all N; the next client waits.  Ours: stopped, and the next client is answered."""
    before = num_generated(quiet)
    for leaving in fill_rows(quiet, clips["one"]):
        leaving.close()
    assert upload(quiet.base, clips["one"]).status_code == 200
    assert num_generated(quiet) - before < FILLING["max_tokens"], "all of them together made less than one would have"


def test_client_leaves_the_queue(quiet: Server, clips: dict[str, Path]) -> None:
    """Ours: in every stage.  Those behind it move up."""
    filling = fill_rows(quiet, clips["one"])
    leaving = Question.about_file(quiet, clips["one"])
    wait_until(lambda: health(quiet)["queue"]["num_waiting"] == 1)
    behind = events(upload_stream(quiet.base, clips["one"], **SHORT))
    assert next_position(behind) == 2
    leaving.leave()
    assert next_position(behind) == 1
    for other in filling:
        other.close()
    assert [name for name, _ in behind][-1] == "done"


@pytest.mark.parametrize("stream", [True, False])
def test_client_leaves_during_the_fetch(quiet: Server, stream: bool) -> None:
    """Ours: in every stage.  The connection to the video's server is cut, and what had come is removed."""
    with TricklingHost() as host:
        body = {"video_url": host.url, "prompt": QUESTION, "stream": stream, "generation_params": SHORT}
        leaving = Question(quiet, "/v1/inference/url", json=body)
        assert host.was_asked.wait(TIMEOUT)
        assert health(quiet)["queue"]["num_open"] == 1
        leaving.leave()
        assert host.was_left.wait(TIMEOUT)


@pytest.mark.parametrize("stream", ["true", "false"])
def test_client_leaves_during_the_video_decode(quiet: Server, clips: dict[str, Path], stream: str) -> None:
    """Ours: in every stage.  The decode process, which hangs here, is killed, and the next one works."""
    child = decode_child(quiet)
    child.suspend()
    # Frames that no other test asks for: those in the cache are not decoded.
    leaving = Question.about_file(quiet, clips["one"], stream=stream, nframes={"true": 4, "false": 6}[stream])
    wait_until(lambda: health(quiet)["video"]["pool"]["num_busy"] == 1)
    leaving.leave()
    wait_until(lambda: not child.is_running())
    assert upload(quiet.base, clips["one"]).status_code == 200


def test_client_leaves_during_prefill(quiet: Server, clips: dict[str, Path]) -> None:
    """Ours: in every stage.  Its prompt is not even prefilled to the end: no token comes of it."""
    before = num_generated(quiet)
    leaving = Question.about_file(quiet, clips["one"], prompt="why 1234567890 " * 1600, max_tokens=10)
    wait_until(lambda: health(quiet)["queue"]["num_running"] == 1)
    leaving.leave()
    wait_until(lambda: health(quiet)["queue"]["num_running"] == 0)
    wait_until(lambda: not any(held(quiet).values()))
    assert num_generated(quiet) == before


# | a request arrives just after a batch began |


def test_a_request_arrives_just_after_a_batch_began(quiet: Server, clips: dict[str, Path]) -> None:
    """Stock: waits for the whole batch.  Ours: joins at the next step, and is done before the batch is."""
    running = Running(quiet, clips["two"], **LONG)
    assert upload(quiet.base, clips["one"]).json()["finish_reason"] == "stop"
    assert health(quiet)["queue"]["num_running"] == 1, "the batch is still at work"
    running.close()


# | `timeout` |


def test_timeout(clips: dict[str, Path], tmp_path: Path) -> None:
    """Stock: counts queue time only.  Ours: a wall clock over the whole request, in whatever stage it is."""
    server = start_server(tmp_path, REQUEST_TIMEOUT_SECONDS="6", MAX_NEW_TOKENS="30000")
    try:
        with TricklingHost() as host:
            body = {"video_url": host.url, "prompt": QUESTION}
            answer = requests.post(server.base + "/v1/inference/url", json=body, timeout=TIMEOUT)
            assert answer.status_code == 504
            assert error_of(answer)["code"] == "request_timeout"
            assert host.was_left.wait(TIMEOUT)
        name, data = end_of(upload_stream(server.base, clips["one"], max_tokens=30_000, ignore_eos="true"))
        assert (name, data["error"]["code"]) == ("error", "request_timeout")
        wait_until(lambda: not any(held(server).values()))
    finally:
        server.stop()


# | SIGTERM |


@pytest.mark.parametrize("to_all", [False, True])
def test_sigterm(clips: dict[str, Path], tmp_path: Path, to_all: bool) -> None:
    """Stock: children orphaned, port still answers.  Ours: drain: in-flight streams end, then exit 0."""
    server = start_server(tmp_path)
    wait_until(lambda: "Ask a video a question" in server.log.read_text())  # printed a moment after it is ready
    family = psutil.Process(server.process.pid).children(recursive=True)
    stream = after_first_delta(upload_stream(server.base, clips["two"], max_tokens=300, ignore_eos="true"))
    # A terminal's Ctrl-C and some supervisors signal every process at once, others only the first.
    for process in [*(family if to_all else []), server.process]:
        process.send_signal(signal.SIGINT if to_all else signal.SIGTERM)
    assert [name for name, _ in stream][-1] == "done"
    assert_is_gone(server, family)
    with pytest.raises(requests.ConnectionError):
        requests.get(server.base, timeout=TIMEOUT)
    disk, *memory = frame_folders(server)
    assert list(disk.glob("*.npy"))
    assert not any(folder.exists() for folder in memory), "frames move to the disk in the end"


def test_sigterm_and_a_stream_that_outlasts_the_drain(clips: dict[str, Path], tmp_path: Path) -> None:
    """Ours: it is ended with what there is of it, not cut off."""
    server = start_server(tmp_path, DRAIN_SECONDS="1", MAX_NEW_TOKENS="30000")
    family = psutil.Process(server.process.pid).children(recursive=True)
    stream = after_first_delta(upload_stream(server.base, clips["two"], max_tokens=20_000, ignore_eos="true"))
    server.process.send_signal(signal.SIGTERM)
    *_, (name, data) = stream
    assert (name, data.get("finish_reason")) == ("done", "abort"), data
    assert data["text"].startswith("A red circle")
    assert "Traceback" not in server.log.read_text()
    assert_is_gone(server, family)


def frame_folders(server: Server) -> list[Path]:
    """Where sampled frames are: on disk, then in memory where there is such a place."""
    disk = server.storage / "frames"
    memory = shared_memory_directory(disk)
    return [disk] if memory is None else [disk, memory]


def assert_is_gone(server: Server, family: list[psutil.Process]) -> None:
    assert server.process.wait(TIMEOUT) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, alive


# | idle batched streaming worker with `batch_timeout=0` |


def test_idle_batched_streaming_worker(quiet: Server, clips: dict[str, Path]) -> None:
    """Stock: burns about one core.  Ours: all processes of an idle server together take < 2 % of a core."""
    assert upload(quiet.base, clips["one"]).status_code == 200
    wait_until(lambda: not any(held(quiet).values()))
    # The processes' own CPU time: what else runs on the machine adds nothing to it.
    began, before = time.monotonic(), cpu_seconds(quiet)
    time.sleep(4)
    after, ended = cpu_seconds(quiet), time.monotonic()
    assert before.keys() == after.keys()
    used = {process: after[process] - before[process] for process in after}
    assert sum(used.values()) < 0.02 * (ended - began), used


def cpu_seconds(server: Server) -> dict[int, float]:
    """CPU time that each process of the server has used, with all its threads."""
    root = psutil.Process(server.process.pid)
    return {process.pid: _cpu_seconds(process) for process in [root, *root.children(recursive=True)]}


def _cpu_seconds(process: psutil.Process) -> float:
    threads = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if not threads:  # no Linux: in hundredths of a second
        times = process.cpu_times()
        return float(times.user + times.system)
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


# | 300 MB multipart upload |


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's peak memory is read from /proc")
def test_300_mb_multipart_upload(quiet: Server, clips: dict[str, Path]) -> None:
    """Stock: 8 x the file in memory, pickled through a queue.  Ours: streamed to disk; a path crosses the queue."""
    assert upload(quiet.base, clips["one"]).status_code == 200
    before = peak_bytes(quiet)
    size = 300_000_000
    response = requests.post(
        quiet.base + "/v1/inference/upload",
        data=big_form(clips["one"].read_bytes(), size),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
        timeout=TIMEOUT,
    )
    assert response.status_code == 200, response.text
    assert response.json()["text"] == "A red circle moves left."
    after = peak_bytes(quiet)
    assert before.keys() == after.keys()
    grown = {process: after[process] - before[process] for process in after}
    assert sum(grown.values()) < size / 4, grown


def big_form(clip: bytes, size: int) -> Iterator[bytes]:
    """A form with a file of ``size`` bytes: a clip, and an MP4 box without meaning behind it."""
    for name, value in (("prompt", QUESTION), ("temperature", "0"), ("max_tokens", "64")):
        yield f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    yield b'--b\r\nContent-Disposition: form-data; name="video"; filename="big.mp4"\r\n\r\n'
    padding = size - len(clip)
    yield clip + padding.to_bytes(4, "big") + b"free"
    piece = bytes(1 << 20)
    for start in range(8, padding, len(piece)):
        yield piece[: padding - start]
    yield b"\r\n--b--\r\n"


def peak_bytes(server: Server) -> dict[int, int]:
    """The most memory that each process has had so far."""
    peaks = {}
    for process in psutil.Process(server.process.pid).children(recursive=True):
        status = Path(f"/proc/{process.pid}/status").read_text()
        peaks[process.pid] = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return peaks


# | `ContinuousBatchingLoop`, one `add_request` raises |


def test_continuous_batching_loop_one_add_request_raises(quiet: Server, clips: dict[str, Path]) -> None:
    """Stock: the intake task dies, all later requests hang, `/health` stays 200.  Ours: cannot happen."""
    running = Running(quiet, clips["two"], **LONG)
    for _ in range(2):
        assert end_of(upload_stream(quiet.base, clips["one"], max_tokens=TOO_MANY_TOKENS))[0] == "error"
        assert upload(quiet.base, clips["one"]).json()["finish_reason"] == "stop"
    assert next(name for name, _ in running.stream) == "delta", "the running one has noticed nothing"
    assert health(quiet)["workers"][0]["restarts"] == 0
    running.close()


# | worker killed |


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(
        tmp_path_factory.mktemp("two"), WORKERS_PER_DEVICE="2", MAX_BATCH_SIZE="2", MAX_NEW_TOKENS="30000"
    )
    try:
        wait_until(lambda: health(running)["status"] == "ok")
        yield running
    finally:
        running.stop()


def test_questions_on_a_video_go_to_the_worker_that_holds_it(two_workers: Server, clips: dict[str, Path]) -> None:
    """Two videos, two workers: each keeps its own, as health tells; in a rush on one of them the other helps."""
    before = health(two_workers)
    for _ in range(3):
        for name in ("one", "two"):
            assert upload(two_workers.base, clips[name]).status_code == 200
    after = health(two_workers)
    assert served(after, before) == [3, 3]
    counts = {name: after["affinity"][name] - before["affinity"][name] for name in after["affinity"]}
    assert counts == {"num_hits": 4, "num_misses": 2, "num_diverted": 0}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: upload(two_workers.base, clips["one"]), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8


def served(after: dict[str, Any], before: dict[str, Any]) -> list[int]:
    """How many requests each worker was given in between."""
    pairs = zip(after["workers"], before["workers"], strict=True)
    return [late["num_requests_total"] - early["num_requests_total"] for late, early in pairs]


def test_worker_killed(two_workers: Server, clips: dict[str, Path]) -> None:
    """Stock: in-flight streams hang until the client gives up; without restart the whole server stops.

    Ours: they get an `error`, the others go on, the worker restarts, health says so meanwhile.
    """
    brake = Brake(two_workers)
    responses = [upload_stream(two_workers.base, clips["two"], max_tokens=2000, ignore_eos="true") for _ in range(4)]
    streams = [after_first_delta(response) for response in responses]
    ends: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        with brake:  # a process that is stopped can be killed; the other one must not be done before
            workers = health(two_workers)["workers"]
            assert [worker["num_requests"] for worker in workers] == [2, 2], "a hot video has spread"
            readers = [pool.submit(read_to_end, stream, ends) for stream in streams]
            os.kill(workers[0]["pid"], signal.SIGKILL)
            # Asked at once, not when the readers are done: they have many words to read before the end.
            states = [worker["state"] for worker in until_degraded(two_workers)["workers"]]
            assert states == ["starting", "ready"]
            wait_until(lambda: len(ends) >= 2)
            assert requests.get(two_workers.base + "/v1/health", timeout=TIMEOUT).status_code == 200
        last = [reader.result(TIMEOUT) for reader in readers]
    assert ends == ["error", "error", "done", "done"], "the errors come at once, not when somebody gives up"
    assert {data["error"]["code"] for data in last if "error" in data} == {"worker_died"}
    assert [data["finish_reason"] for data in last if "error" not in data] == ["length", "length"]
    wait_until(lambda: health(two_workers)["status"] == "ok")
    restarted = health(two_workers)["workers"]
    assert [worker["restarts"] for worker in restarted] == [1, 0]
    assert restarted[0]["pid"] != workers[0]["pid"]
    assert restarted[1]["pid"] == workers[1]["pid"]
    assert upload(two_workers.base, clips["one"]).status_code == 200


def until_degraded(server: Server) -> dict[str, Any]:
    """Health as it is while a worker is missing."""
    deadline = time.monotonic() + TIMEOUT
    while (body := health(server))["status"] != "degraded":
        assert time.monotonic() < deadline, "no worker was ever missing"
    return body


def read_to_end(stream: Iterator[tuple[str, dict[str, Any]]], ends: list[str]) -> dict[str, Any]:
    *_, (name, data) = stream
    ends.append(name)
    return data


def test_the_only_worker_killed(table_server: Server, clips: dict[str, Path]) -> None:
    """Ours: health is 503 meanwhile, and what is asked meanwhile is answered by the new worker."""
    pid = health(table_server)["workers"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: health(table_server)["status"] == "unavailable")
    statuses = [
        requests.get(table_server.base + path, timeout=TIMEOUT).status_code
        for path in ("/v1/health/live", "/v1/health", "/v1/health/ready")
    ]
    assert statuses == [200, 503, 503]
    assert upload(table_server.base, clips["one"]).status_code == 200
    assert requests.get(table_server.base + "/v1/health", timeout=TIMEOUT).json() == {"status": "ok"}
    assert health(table_server)["workers"][0]["pid"] != pid
