"""A server on vLLM, end to end: it answers, stops, drains, and leaves no process behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events, upload, upload_stream
from scraping import check_names, grown, scrape, scrape_until
from socket_client import open_socket
from support import START_SECONDS, STOP_SECONDS, Server, require_vllm, start_server
from watching import Brake, health, num_generated, settle, wait_until

GONE_SECONDS = 40
ENDLESS = {"max_tokens": 12_000, "ignore_eos": "true"}
"""Of an answer that runs for as long as a test looks at it, and fits the KV cache."""

VLLM = {
    "MODEL_BACKEND": "vllm",
    "KV_CACHE_TOKENS": "16384",
    "MAX_BATCH_SIZE": "4",
    "MAX_NEW_TOKENS": "12000",
    "DRAIN_SECONDS": "600",
    "HF_HUB_OFFLINE": "1",
}
ONE = "A red circle moves left."


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    require_vllm()
    running = start_server(tmp_path_factory.mktemp("vllm"), **VLLM)
    yield running
    if running.process.poll() is None:
        running.stop()


def family_of(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def workers_of(server: Server) -> list[psutil.Process]:
    return [psutil.Process(worker["pid"]) for worker in health(server)["workers"]]


def is_vllms(process: psutil.Process) -> bool:
    try:
        return "VLLM" in process.name()
    except psutil.NoSuchProcess:
        return False


def test_health_says_what_runs(vllm_server: Server) -> None:
    (worker,) = health(vllm_server)["workers"]
    engine = worker["engine"]
    assert worker["state"] == "ready"
    assert (engine["backend"], engine["device"], engine["dtype"]) == ("vllm", "cpu", "float32")
    assert engine["attention"] == "CPU_ATTN"
    assert engine["versions"]["vllm"].startswith("0.")
    assert worker["stats"]["kv_cache_tokens"] == 16384


def test_it_answers_correctly_and_a_second_question_finds_what_the_first_computed(
    vllm_server: Server, clips: dict[str, Path]
) -> None:
    first = upload(vllm_server.base, clips["one"]).json()
    assert first["text"] == ONE
    assert first["finish_reason"] == "stop"
    assert first["usage"]["video_tokens"] > 0
    assert upload(vllm_server.base, clips["two"]).json()["text"].startswith("A red circle moves left. Then, at <")
    second = upload(vllm_server.base, clips["one"]).json()
    assert second["text"] == first["text"]
    assert second["usage"]["cached_tokens"] > 0
    (worker,) = health(vllm_server)["workers"]
    assert worker["stats"]["mm_cache_hits"] > 0


def test_a_kept_video_is_answered_by_socket_and_responses(vllm_server: Server, clips: dict[str, Path]) -> None:
    with clips["one"].open("rb") as file:
        kept = requests.post(vllm_server.base + "/v1/videos", files={"video": file}, timeout=TIMEOUT).json()["id"]
    with open_socket(vllm_server) as socket:
        socket.say({"video_id": kept, "prompt": QUESTION, "generation_params": {"temperature": 0.0}})
        assert socket.answer()["text"] == ONE
    content = [{"type": "input_video", "video_id": kept}, {"type": "input_text", "text": QUESTION}]
    body = {"input": [{"role": "user", "content": content}], "temperature": 0.0}
    response = requests.post(vllm_server.base + "/v1/responses", json=body, timeout=TIMEOUT)
    assert response.json()["output"][0]["content"][0]["text"] == ONE


def test_metrics_have_the_catalogues_names_and_count_what_was_answered(
    vllm_server: Server, clips: dict[str, Path]
) -> None:
    """As the other engine's server: the same names (tests/http/test_metrics.py), and values that mean the same."""
    settle(vllm_server)
    before, brake = scrape(vllm_server.base), Brake(vllm_server)
    # Ten frames, as in no other test: the first question must find nothing.
    long = {"nframes": 10, "max_tokens": 200, "ignore_eos": "true"}
    answers = [upload(vllm_server.base, clips["two"], prompt=f"Well, {n}?", **long).json() for n in (1, 2)]
    usages = [answer["usage"] for answer in answers]
    after = scrape(vllm_server.base)
    check_names(after)
    told = {
        "requests_total": 2,
        "generation_tokens_total": sum(usage["completion_tokens"] for usage in usages),
        "prompt_tokens_total": sum(usage["prompt_tokens"] for usage in usages),
        "prefix_cache_queries_total": sum(usage["prompt_tokens"] for usage in usages),
        "prefix_cache_hits_total": sum(usage["cached_tokens"] for usage in usages),
        "mm_cache_queries_total": 10,  # five temporal patches, twice
        "mm_cache_hits_total": 5,
        "request_visual_tokens_sum": sum(usage["video_tokens"] for usage in usages),
    }
    told |= {
        f"{name}_count": 2
        for name in (
            "time_to_first_token_seconds",
            "e2e_request_latency_seconds",
            "request_queue_time_seconds",
            "request_preprocess_time_seconds",
            "request_prefill_time_seconds",
            "request_decode_time_seconds",
        )
    }
    assert {name: grown(before, after, name) for name in told} == told
    # vLLM tells of two steps at once where its front is busy: then there are fewer moments than tokens.
    assert 2 < grown(before, after, "batch_size_sum") <= told["generation_tokens_total"]
    assert 0 < grown(before, after, "inter_token_latency_seconds_count") <= told["generation_tokens_total"] - 2
    assert usages[1]["cached_tokens"] > 0
    computed = sum(usage["prompt_tokens"] - usage["cached_tokens"] for usage in usages)
    assert grown(before, after, "prompt_tokens_computed_total") == computed
    assert grown(before, after, "engine_steps_total") >= max(usage["completion_tokens"] for usage in usages)
    assert after.value("model_info", backend="vllm") == 1
    assert after.value("kv_cache_tokens") == 16384
    assert after.value("device_memory_bytes") > 100 << 20

    response = upload_stream(vllm_server.base, clips["one"], **ENDLESS)
    stream = events(response)
    assert any(name == "delta" for name, _ in stream)
    with brake:
        during = scrape(vllm_server.base)
        assert during.value("num_requests_running", worker="0") == 1
        assert 0 < during.value("kv_cache_usage_perc") < 0.5
        response.close()
    # The server counts the abort when it has tidied up, and the worker tells of its cache when it has stopped.
    idle = scrape_until(
        vllm_server.base,
        lambda now: (
            grown(after, now, "request_aborts_total", stage="generating") == 1 and now.value("kv_cache_usage_perc") == 0
        ),
    )
    assert idle.value("num_requests_running") == 0


def test_what_cannot_fit_is_refused_with_the_numbers(vllm_server: Server, clips: dict[str, Path]) -> None:
    refused = upload(vllm_server.base, clips["one"], prompt="word " * 19_000, max_tokens=8)
    assert refused.status_code == 400
    error = error_of(refused)
    assert error["code"] == "context_length_exceeded"
    assert "the KV cache holds 16384" in error["message"]


def test_a_client_that_leaves_stops_the_answer(vllm_server: Server, clips: dict[str, Path]) -> None:
    before = num_generated(vllm_server)
    response = upload_stream(vllm_server.base, clips["two"], **ENDLESS)
    arriving = events(response)  # held: requests closes the connection of an iterator that nobody has any more
    assert any(name == "delta" for name, _ in arriving)
    response.close()
    wait_until(lambda: health(vllm_server)["workers"][0]["stats"]["num_running"] == 0)
    assert num_generated(vllm_server) - before < ENDLESS["max_tokens"]


def test_sigterm_drains_and_leaves_no_process(vllm_server: Server, clips: dict[str, Path]) -> None:
    family, brake = family_of(vllm_server), Brake(vllm_server)
    assert any(map(is_vllms, family)), family
    stream = events(upload_stream(vllm_server.base, clips["one"], max_tokens=400, ignore_eos="true"))
    assert any(name == "delta" for name, _ in stream)
    with brake:  # the answer has not ended before the server knows that it must stop
        vllm_server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: health(vllm_server)["status"] == "draining")
    *_, (name, data) = stream
    assert (name, data["finish_reason"]) == ("done", "length")
    assert vllm_server.process.wait(STOP_SECONDS) == 0
    _, alive = psutil.wait_procs(family, timeout=GONE_SECONDS)
    assert not alive, alive
    # Nobody had to be killed: neither the worker by the server, nor vLLM's processes by their guardian.
    log = vllm_server.log.read_text()
    assert "did not end within" not in log
    assert "has left processes behind" not in log


def test_killed_processes_leave_nobody(tmp_path: Path) -> None:
    """First the worker, which takes its vLLM along; then the server, while the next worker starts another."""
    require_vllm()
    with TemporaryDirectory() as folder:  # a short name: Unix sockets
        server = start_server(tmp_path, **VLLM, VLLM_RPC_BASE_PATH=folder)
        everybody = {psutil.Process(server.process.pid), *family_of(server)}
        try:
            kill_one_after_the_other(server, everybody, Path(folder))
        finally:
            with suppress(psutil.NoSuchProcess):
                everybody.update(family_of(server))
            for process in everybody:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def kill_one_after_the_other(server: Server, everybody: set[psutil.Process], sockets: Path) -> None:
    (first,) = sockets.iterdir()
    assert any(path.is_socket() for path in first.iterdir())
    (worker,) = workers_of(server)
    its_own = worker.children(recursive=True)
    assert any(map(is_vllms, its_own)), its_own
    assert any("guardian.py" in part for process in its_own for part in process.cmdline()), its_own
    worker.kill()
    _, alive = psutil.wait_procs(its_own, timeout=GONE_SECONDS)
    assert not alive, alive
    wait_until(lambda: not first.exists())

    def next_one_starts() -> bool:
        everybody.update(family_of(server))
        return any(is_vllms(process) for process in everybody if process.is_running())

    wait_until(next_one_starts, START_SECONDS)
    server.process.kill()
    server.process.wait(TIMEOUT)
    _, alive = psutil.wait_procs(list(everybody), timeout=GONE_SECONDS)
    assert not alive, alive
    wait_until(lambda: not list(sockets.iterdir()))
