"""A chat on a small server: a full queue, clients that leave in every stage, errors in mid-stream, what is fitted."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from client import QUESTION, TIMEOUT, upload, upload_stream
from support import Server, start_server
from test_litserve_table import Question, Running
from watching import Brake, TricklingHost, decode_child, health, held, num_generated, wait_until

ROUTE = "/v1/chat/completions"
KV_TOKENS = 8000


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One row, one place in the queue, one decode process, and a KV cache smaller than the context."""
    running = start_server(
        tmp_path_factory.mktemp("small"),
        MAX_BATCH_SIZE="1",
        MAX_QUEUED_REQUESTS="1",
        MAX_NEW_TOKENS="30000",
        KV_CACHE_TOKENS=str(KV_TOKENS),
        DECODE_PROCESSES="1",
        PREFILL_CHUNK_TOKENS="16",
    )
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def small(small_server: Server) -> Iterator[Server]:
    """The server; after the test, everything that its requests held must be given back."""
    yield small_server
    wait_until(lambda: not any(held(small_server).values()))


def video(path: Path, **options: Any) -> dict[str, Any]:
    uri = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    return {"type": "video_url", "video_url": {"url": uri, **options}}


def body_of(*parts: Any, **fields: Any) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 60, "temperature": 0, **fields}


LONG = {"max_tokens": 7000, "ignore_eos": True}
"""Goes on until it is stopped."""


def test_a_full_server_is_openais_rate_limit_error(small: Server, clips: dict[str, Path]) -> None:
    with Brake(small), openai.OpenAI(base_url=f"{small.base}/v1", api_key="none", max_retries=0) as connection:
        filling = [upload_stream(small.base, clips["one"], max_tokens=4) for _ in range(2)]
        wait_until(lambda: health(small)["queue"]["num_open"] == 2)
        with pytest.raises(openai.RateLimitError) as caught:
            connection.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello"}])
    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["Retry-After"]) >= 1
    for response in filling:
        response.close()


@pytest.mark.parametrize("stream", [True, False])
def test_client_leaves_during_the_fetch_of_several(small: Server, clips: dict[str, Path], stream: bool) -> None:
    with TricklingHost() as one, TricklingHost() as other:
        urls = [{"type": "video_url", "video_url": {"url": host.url}} for host in (one, other)]
        leaving = Question(small, ROUTE, json=body_of(video(clips["one"]), *urls, stream=stream))
        assert one.was_asked.wait(TIMEOUT), "the first is fetched"
        assert other.was_asked.wait(TIMEOUT), "the second is fetched beside it"
        leaving.leave()
        assert one.was_left.wait(TIMEOUT)
        assert other.was_left.wait(TIMEOUT)


def test_one_that_cannot_be_had_ends_the_fetch_of_the_others(small: Server) -> None:
    with TricklingHost() as host:
        parts = [{"type": "video_url", "video_url": {"url": url}} for url in (host.url, "http://127.0.0.1:9/none.mp4")]
        response = requests.post(small.base + ROUTE, json=body_of(*parts), timeout=TIMEOUT)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "messages.0.content.1.video_url.url"
        assert not host.was_asked.is_set() or host.was_left.wait(TIMEOUT)


@pytest.mark.parametrize("stream", [True, False])
def test_client_leaves_during_the_decode_of_several(small: Server, clips: dict[str, Path], stream: bool) -> None:
    child = decode_child(small)
    child.suspend()
    body = body_of(video(clips["one"], nframes=14), video(clips["two"], nframes=14), stream=stream)
    leaving = Question(small, ROUTE, json=body)
    wait_until(lambda: health(small)["video"]["pool"]["num_busy"] == 1)
    leaving.leave()
    wait_until(lambda: not child.is_running())
    assert upload(small.base, clips["one"], max_tokens=4).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_client_leaves_during_the_answer(small: Server, clips: dict[str, Path], stream: bool) -> None:
    before = num_generated(small)
    leaving = Question(small, ROUTE, json=body_of(video(clips["one"]), stream=stream, **LONG))
    wait_until(lambda: num_generated(small) > before)
    leaving.leave()
    wait_until(lambda: not any(held(small).values()))
    assert num_generated(small) - before < LONG["max_tokens"]


def test_client_leaves_the_queue(small: Server, clips: dict[str, Path]) -> None:
    brake = Brake(small)
    filling = Running(small, clips["one"], **LONG)
    with brake:
        leaving = Question(small, ROUTE, json=body_of(video(clips["one"])))
        wait_until(lambda: health(small)["queue"]["num_waiting"] == 1)
        leaving.leave()
        wait_until(lambda: health(small)["queue"]["num_open"] == 1)
    filling.close()


def test_several_videos_share_what_the_context_has_left(small: Server, clips: dict[str, Path]) -> None:
    answer_tokens = KV_TOKENS - 940
    parts = [video(clips["two"], fps=12), video(clips["one"])]
    refused = requests.post(small.base + ROUTE, json=body_of(*parts, max_tokens=answer_tokens), timeout=TIMEOUT)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    fitted = [video(clips["two"], fps=12, fit=True), video(clips["one"], fit=True)]
    response = requests.post(small.base + ROUTE, json=body_of(*fitted, max_tokens=answer_tokens), timeout=TIMEOUT)
    assert response.status_code == 200, response.text
    answer = response.json()
    long, short = answer["tru"]["video"]
    assert any("lowered" in note for note in long["notes"])
    assert (short["notes"], short["num_frames"], short["video_tokens"]) == ([], 8, 48)
    assert answer["usage"]["prompt_tokens"] + answer_tokens <= KV_TOKENS
    assert "red circle moves left" in answer["choices"][0]["message"]["content"]


def test_a_worker_that_dies_ends_a_stream_with_an_error_that_the_client_raises(
    small: Server, clips: dict[str, Path]
) -> None:
    (worker,) = health(small)["workers"]
    body = body_of(video(clips["one"]), stream=True, max_tokens=LONG["max_tokens"])
    with openai.OpenAI(base_url=f"{small.base}/v1", api_key="none", max_retries=0) as connection:
        stream = connection.chat.completions.create(model="demo", extra_body={"ignore_eos": True}, **body)
        assert next(stream).choices[0].delta.role == "assistant"
        os.kill(worker["pid"], signal.SIGKILL)
        with pytest.raises(openai.APIError) as caught:
            for _ in stream:
                pass
    assert caught.value.code == "worker_died"
    wait_until(lambda: health(small)["status"] == "ok")
