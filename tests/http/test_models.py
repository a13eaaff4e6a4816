"""Two real models in one server, one of them in four bits: by name, by alias, apart from each other."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import openai
import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events, upload, upload_stream
from socket_client import open_socket
from support import Server, start_server
from watching import Brake, files_below, health, wait_until

from tru_vlm.api.workers.rendezvous import weighted_choice

MODELS = {"full": {}, "small": {"quantization": "int4"}}
ALIASES = {"chat": {"full": 1, "small": 1}, "gpt-4o": {"small": 1}}
SMALL_CACHE = {"KV_CACHE_TOKENS": "8192", "DECODE_PROCESSES": "1", "MAX_BATCH_SIZE": "4"}
LONG = {"max_tokens": 120, "ignore_eos": "true"}
"""Long enough for the two models to say different things."""


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(
        tmp_path_factory.mktemp("models"),
        MODELS=json.dumps(MODELS),
        MODEL_ALIASES=json.dumps(ALIASES),
        DEFAULT_MODEL="chat",
        **SMALL_CACHE,
    )
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture(scope="module")
def alone(server: Server, tmp_path_factory: pytest.TempPathFactory, clips: dict[str, Path]) -> dict[str, str]:
    """What each model answers in a server that has no other."""
    small = start_server(tmp_path_factory.mktemp("small"), QUANTIZATION="int4", **SMALL_CACHE)
    try:
        bases = {"full": server.base, "small": small.base}
        return {name: upload(base, clips["two"], **LONG).json()["text"] for name, base in bases.items()}
    finally:
        small.stop()


def part(server: Server, name: str) -> dict[str, Any]:
    return next(model for model in health(server)["models"] if model["name"] == name)


def worker(server: Server, name: str) -> dict[str, Any]:
    (only,) = [worker for worker in health(server)["workers"] if worker["model"] == name]
    return only


def plan(server: Server, path: Path, headers: dict[str, str] | None = None, **fields: str) -> dict[str, Any]:
    """No model runs, and it tells who would answer."""
    with path.open("rb") as file:
        response = requests.post(
            server.base + "/v1/plan", files={"video": file}, data=fields, headers=headers, timeout=TIMEOUT
        )
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0, timeout=TIMEOUT)


def chat(server: Server, *content: Any, **options: Any) -> Any:
    """The completion, or a stream's chunks."""
    given = {"messages": [{"role": "user", "content": list(content)}], "temperature": 0, "max_tokens": 8}
    with client(server) as connection:
        answer = connection.chat.completions.create(**given | options)
        return list(answer) if isinstance(answer, openai.Stream) else answer


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def variants(path: Path, *numbers: int) -> list[Path]:
    """The same clip in files of different content, which no other number has: MP4 skips a box named ``free``."""
    copies = []
    for index in numbers:
        copy = path.with_name(f"copy-{index}.mp4")
        copy.write_bytes(path.read_bytes() + (8 + index).to_bytes(4, "big") + b"free" + bytes(index))
        copies.append(copy)
    return copies


# ---- by name ---------------------------------------------------------------------------------------------------------


def test_each_model_answers_as_it_does_alone(two_models: Server, alone: dict[str, str], clips: dict[str, Path]) -> None:
    assert alone["full"] != alone["small"], "or this shows nothing"
    for name in MODELS:
        body = upload(two_models.base, clips["two"], model=name, **LONG).json()
        assert (body["model"], body["variant"], body["text"]) == (name, name, alone[name])


def test_models_share_frames_and_nothing_else(two_models: Server, clips: dict[str, Path]) -> None:
    (clip,) = variants(clips["one"], 99)
    before = health(two_models)["video"]["cache"]
    answers = [upload(two_models.base, clip, model=name).json() for name in ("full", "small", "full", "small")]
    after = health(two_models)["video"]["cache"]
    assert after["num_misses"] - before["num_misses"] == 1
    assert sum(after[name] - before[name] for name in ("num_memory_hits", "num_disk_hits")) == 3
    assert len({answer["video"]["frames_url"] for answer in answers}) == 1
    # Each computes the video itself once, and finds it the second time.
    assert [answer["usage"]["cached_tokens"] > 0 for answer in answers] == [False, False, True, True]


def test_health_has_a_part_for_each(two_models: Server) -> None:
    body = health(two_models)
    assert (body["status"], body["default_model"], body["aliases"]) == ("ok", "chat", ALIASES)
    full, small = body["models"]
    assert [model["name"] for model in (full, small)] == ["full", "small"]
    assert [model["quantization"] for model in (full, small)] == ["none", "int4"]
    for model in (full, small):
        assert (model["status"], model["backend"], model["devices"]) == ("ok", "hf", ["cpu"])
        assert (model["num_workers"], model["num_workers_ready"]) == (1, 1)
        assert model["stats"]["kv_cache_tokens"] == 8192
        assert model["stats"]["device_memory_bytes"] > model["weight_bytes"] > 0
    assert small["weight_bytes"] < full["weight_bytes"]
    assert [worker["model"] for worker in body["workers"]] == ["full", "small"]


def test_models_and_aliases_are_listed(two_models: Server) -> None:
    with client(two_models) as connection:
        listed = {model.id: model for model in connection.models.list().data}
        retrieved = connection.models.retrieve("gpt-4o")
    assert list(listed) == ["full", "small", "chat", "gpt-4o"]
    assert listed["chat"].model_extra["variants"] == {"full": 1, "small": 1}
    assert "variants" not in listed["full"].model_extra
    assert retrieved == listed["gpt-4o"]


def test_a_model_that_is_not_there_is_named_with_those_that_are(two_models: Server, clips: dict[str, Path]) -> None:
    uri = "data:video/mp4;base64," + base64.b64encode(clips["one"].read_bytes()).decode()
    question = {"video_url": uri, "prompt": QUESTION, "model": "fool"}
    responses = [
        requests.post(two_models.base + route, json=body, timeout=TIMEOUT)
        for route, body in [
            ("/predict", question),
            ("/v1/inference/url", question | {"stream": True}),
            ("/v1/plan", question),
            ("/v1/chat/completions", {"model": "fool", "messages": [{"role": "user", "content": "Hello"}]}),
        ]
    ]
    responses += [
        upload(two_models.base, clips["one"], route=route, model="fool") for route in ("/predict", "/v1/plan")
    ]
    responses.append(requests.get(two_models.base + "/v1/models/fool", timeout=TIMEOUT))
    for response in responses:
        error = error_of(response)
        assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "'fool' does not exist; this server has 'full', 'small', 'chat' and 'gpt-4o'" in error["message"]
    assert not files_below(two_models.storage / "spool")


# ---- by alias --------------------------------------------------------------------------------------------------------


def test_questions_about_a_video_stay_with_its_model(two_models: Server, clips: dict[str, Path]) -> None:
    copies = variants(clips["one"], *range(10))
    planned = [plan(two_models, copy, model="chat") for copy in copies]
    digests = [hashlib.sha256(copy.read_bytes()).hexdigest() for copy in copies]
    expected = [weighted_choice(digest, ALIASES["chat"], salt="chat") for digest in digests]
    assert [body["variant"] for body in planned] == expected
    assert set(expected) == {"full", "small"}
    for copy, variant in zip(copies[:2], expected, strict=False):
        first = upload(two_models.base, copy, model="chat").json()
        second = upload(two_models.base, copy, model="chat", prompt="What colour is it?", nframes=4).json()
        assert {(body["model"], body["variant"]) for body in (first, second)} == {("chat", variant)}


def test_a_key_goes_before_the_content(two_models: Server, clips: dict[str, Path]) -> None:
    clip, other = clips["one"], clips["two"]
    keys = {weighted_choice(str(key), ALIASES["chat"], salt="chat"): str(key) for key in range(20)}
    for variant, key in keys.items():
        headers = {"X-Routing-Key": key}
        assert plan(two_models, clip, headers)["variant"] == plan(two_models, other, headers)["variant"] == variant
        # OpenAI's fields, the header before them, and nothing at all: how the conversation begins.
        opposite = keys["full" if variant == "small" else "small"]
        for options in (
            {"user": key},
            {"prompt_cache_key": key, "user": opposite},
            {"prompt_cache_key": opposite, "extra_headers": headers},
        ):
            completion = chat(two_models, text("Hello"), model="chat", max_tokens=1, **options)
            assert (completion.model, completion.model_extra["tru"]["variant"]) == ("chat", variant)
    by_words = {chat(two_models, text("Hello"), model="chat", max_tokens=1).model_extra["tru"]["variant"] for _ in "12"}
    assert by_words == {weighted_choice("Hello", ALIASES["chat"], salt="chat")}


def test_a_socket_has_the_key_of_its_handshake(two_models: Server, clips: dict[str, Path]) -> None:
    keys = {weighted_choice(str(key), ALIASES["chat"], salt="chat"): str(key) for key in range(20)}
    assert keys.keys() == MODELS.keys()
    for variant, key in keys.items():
        with open_socket(two_models, additional_headers={"X-Routing-Key": key}) as socket:
            for clip in ("one", "two"):
                socket.ask(None, clips[clip], max_tokens=1)
                assert socket.answer()["variant"] == variant


@pytest.mark.parametrize("key", ["", "x" * 513])
def test_a_key_has_bounds(two_models: Server, clips: dict[str, Path], key: str) -> None:
    with clips["one"].open("rb") as file:
        response = requests.post(
            two_models.base + "/v1/plan", files={"video": file}, headers={"X-Routing-Key": key}, timeout=TIMEOUT
        )
    assert response.status_code == 400
    assert error_of(response)["param"] == "X-Routing-Key"


def test_a_stream_tells_who_answers_and_says_what_the_model_says(
    two_models: Server, alone: dict[str, str], clips: dict[str, Path]
) -> None:
    *_, (name, done) = events(upload_stream(two_models.base, clips["two"], **LONG))  # no model: the default, an alias
    assert (name, done["model"]) == ("done", "chat")
    assert done["text"] == alone[done["variant"]]
    chunks = chat(two_models, text("Hello"), model="gpt-4o", stream=True)
    assert {chunk.model for chunk in chunks} == {"gpt-4o"}
    assert chunks[-1].model_extra["tru"]["variant"] == "small"


# ---- failures --------------------------------------------------------------------------------------------------------


def test_a_dead_worker_of_one_model_touches_only_its_requests(two_models: Server, clips: dict[str, Path]) -> None:
    before, brake = worker(two_models, "small"), Brake(two_models)
    endless = {"max_tokens": 2000, "ignore_eos": "true"}
    streams = {name: events(upload_stream(two_models.base, clips["two"], model=name, **endless)) for name in MODELS}
    for stream in streams.values():
        assert next(name for name, _ in stream if name in {"delta", "done", "error"}) == "delta"
    ends: dict[str, tuple[str, dict[str, Any]]] = {}
    readers = [
        Thread(target=lambda name=name, stream=stream: ends.update({name: list(stream)[-1]}))
        for name, stream in streams.items()
    ]
    for reader in readers:
        reader.start()
    with brake:  # a process that is stopped can be killed; neither ends by itself before
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda: part(two_models, "small")["status"] == "unavailable")
        body = health(two_models)
        assert (body["status"], part(two_models, "full")["status"]) == ("degraded", "ok")
        assert requests.get(two_models.base + "/v1/health", timeout=TIMEOUT).json() == {"status": "degraded"}
    assert upload(two_models.base, clips["one"], model="full").json()["variant"] == "full", "the other one answers"
    assert upload(two_models.base, clips["one"], model="small").json()["variant"] == "small", "and this one, later"
    for reader in readers:
        reader.join(TIMEOUT)
    assert (ends["small"][0], ends["small"][1]["error"]["code"]) == ("error", "worker_died")
    assert (ends["full"][0], ends["full"][1]["finish_reason"]) == ("done", "length")
    assert [worker(two_models, name)["restarts"] for name in MODELS] == [0, 1]
    assert health(two_models)["status"] == "ok"
