"""Both clients against a real server: answers, streams, uploads, errors, cancelling."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import Transport
from leaving import Leaving
from support import ROOT, Server, free_port
from watching import health

import tru_vlm.client
from tru_vlm.api.schemas import UPLOAD_FIELDS
from tru_vlm.client import (
    ApiError,
    AskOptions,
    AuthenticationError,
    ClientError,
    DeltaEvent,
    DoneEvent,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RequestTimeoutError,
    Retries,
    ServerError,
    StatusEvent,
    TransportError,
    VideoEvent,
)
from tru_vlm.client.errors import api_error

QUESTION = "What happens in this video?"
ANSWER = "A red circle moves left."
LONG = {"max_tokens": 2000, "ignore_eos": True}
HEAVY = "torch", "transformers", "litserve", "fastapi", "starlette", "typer", "mcp", "numpy", "av"


def test_importing_it_is_light() -> None:
    code = f"import sys, tru_vlm.client; sys.exit(' '.join(set({HEAVY}) & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_its_names_are_there_and_it_is_typed() -> None:
    assert all(hasattr(tru_vlm.client, name) for name in tru_vlm.client.__all__)
    assert sorted(tru_vlm.client.__all__) == tru_vlm.client.__all__
    assert (Path(tru_vlm.__file__).parent / "py.typed").is_file()


def test_its_options_are_the_server_s() -> None:
    assert AskOptions.__annotations__.keys() == UPLOAD_FIELDS - {"prompt", "video_url", "video_id", "stream"}


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "url", "data"])
def test_a_video_is_a_path_bytes_or_an_address(client: Any, server: Server, clip: Path, kind: str) -> None:
    data = clip.read_bytes()
    video = {
        "path": clip,
        "text": str(clip),
        "bytes": data,
        "url": f"{server.base}/static/samples/{clip.name}",
        "data": "data:video/mp4;base64," + base64.b64encode(data).decode(),
    }[kind]
    options: dict[str, Any] = {"model": "demo", "fps": 1, "temperature": 0, "stop": ["left"], "fit": True, "seed": None}
    answer = client.ask(video, QUESTION, **options)
    assert answer.text == "A red circle moves "
    assert answer.finish_reason == "stop"
    assert answer.video.sample_fps == pytest.approx(1, abs=0.1)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_json_answers_by_a_form_and_by_json(client: Any, server: Server, clip: Path) -> None:
    for video in (clip, f"{server.base}/static/samples/{clip.name}"):
        answer = client.ask(video, QUESTION, response_format={"type": "json_object"}, max_tokens=60)
        assert isinstance(json.loads(answer.text) if answer.finish_reason == "stop" else {}, dict)
        assert answer.text.startswith("{")


def test_a_stream_is_typed_and_ends_with_the_answer(client: Any, clip: Path) -> None:
    with client.stream(clip, QUESTION, temperature=0) as stream:
        events = list(stream)
    assert isinstance(events[0], StatusEvent)
    assert [type(event) for event in events if not isinstance(event, StatusEvent | DeltaEvent)] == [
        VideoEvent,
        DoneEvent,
    ]
    last = events[-1]
    assert isinstance(last, DoneEvent)
    assert "".join(event.text for event in events if isinstance(event, DeltaEvent)) == last.answer.text == ANSWER
    assert last.answer.timings.total > 0


def test_upload_once_ask_many(client: Any, server: Server, clip: Path) -> None:
    kept = client.upload(clip)
    assert kept.id == hashlib.sha256(clip.read_bytes()).hexdigest()
    assert kept.kind == "video"
    assert client.upload(f"{server.base}/static/samples/{clip.name}").id == kept.id
    for video in (kept, kept.id, f"video_id:{kept.id}"):
        assert client.ask(video, QUESTION, temperature=0).text == ANSWER
    assert client.plan(kept).fits
    with pytest.raises(ValueError, match="already"):
        client.upload(kept)
    client.delete(kept)
    with pytest.raises(NotFoundError):
        client.delete(kept.id)
    with pytest.raises(NotFoundError):
        client.ask(kept, QUESTION)


def test_plan_models_and_health(client: Any, clip: Path) -> None:
    plan = client.plan(clip, QUESTION, nframes=6)
    assert plan.fits
    assert plan.sampling.num_frames == len(plan.sampling.frame_timestamps) == 6
    assert plan.media.kind == "video"
    assert client.plan(clip).tokens.text < client.plan(clip, QUESTION).tokens.text
    assert [model.id for model in client.models()] == ["demo"]
    health = client.health()
    assert health.status == "ok"
    assert health.version == tru_vlm.__version__
    assert "workers" in health.details


# ---- uploads ---------------------------------------------------------------------------------------------------------


def test_an_upload_is_not_read_into_memory(client: Any, tmp_path: Path) -> None:
    big = tmp_path / "big.mp4"
    with big.open("wb") as file:
        file.truncate(100 * 2**20)
    seen: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError) as caught:
            client.ask(big, QUESTION, on_upload=lambda sent, size: seen.append((sent, size)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.status == 415
    assert peak < 10 * 2**20
    assert [sent for sent, _ in seen] == sorted({sent for sent, _ in seen})
    assert seen[0] == (0, 100 * 2**20)
    assert seen[-1] == (100 * 2**20, 100 * 2**20)
    assert len(seen) > 100


def test_a_file_that_is_not_there(client: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.ask(tmp_path / "none.mp4", QUESTION)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_errors_name_the_field(client: Any, clip: Path, server: Server) -> None:
    for call in (client.ask, lambda *args, **kwargs: list(client.stream(*args, **kwargs))):
        with pytest.raises(InvalidRequestError) as caught:
            call(clip, QUESTION, fps=-1)
        assert (caught.value.status, caught.value.param) == (400, "fps")
        assert caught.value.request_id
        with pytest.raises(InvalidRequestError) as caught:
            call(f"{server.base}/static/samples/{clip.name}", QUESTION, fps=-1)
        assert caught.value.param == "video_params.fps"
    with pytest.raises(TypeError, match="fsp"):
        client.ask(clip, QUESTION, fsp=1)
    with pytest.raises(ValueError, match="stop"):
        client.ask(clip, QUESTION, stop=["a", "b"])


def test_nobody_there(connect: Any, clip: Path) -> None:
    port = free_port()
    client = connect(f"http://127.0.0.1:{port}", retries=Retries(max_retries=1, backoff_seconds=0.01))
    for call in (client.models, lambda: client.ask(clip, QUESTION), lambda: list(client.stream(clip, QUESTION))):
        with pytest.raises(TransportError, match=str(port)):
            call()


def test_somebody_else_there(connect: Any, server: Server, clip: Path) -> None:
    client = connect(server.base + "/static")
    with pytest.raises(NotFoundError):
        client.models()
    for answer in (httpx.Response(200, text="<p>Hello"), httpx.Response(500, text="<p>Oh"), httpx.Response(302)):
        client = connect(server.base, transport=Transport(*[answer] * 3))
        with pytest.raises(ProtocolError):
            client.models()
    client = connect(server.base, transport=Transport(httpx.Response(200, text="<p>Hello")))
    with pytest.raises(ProtocolError):
        list(client.stream(clip, QUESTION))


@pytest.mark.parametrize(
    ("status", "type_", "kind"),
    [
        (400, "invalid_request_error", InvalidRequestError),
        (None, "invalid_request_error", InvalidRequestError),
        (401, "invalid_request_error", AuthenticationError),
        (403, "permission_error", AuthenticationError),
        (404, "not_found_error", NotFoundError),
        (429, "rate_limit_error", RateLimitError),
        (504, "timeout_error", RequestTimeoutError),
        (503, "server_error", ServerError),
        (None, "a_new_one", ServerError),
    ],
)
def test_the_tree(status: int | None, type_: str, kind: type[ApiError]) -> None:
    body = {"error": {"type": type_, "code": "c", "message": "m", "param": None, "request_id": "r"}}
    error = api_error(body, status=status, headers={"Retry-After": "7"})
    assert type(error) is kind
    assert isinstance(error, ClientError)
    assert (str(error), error.status, error.retry_after_seconds) == ("m", status, 7)


def test_the_key_is_sent_as_bearer(connect: Any, server: Server) -> None:
    transport = Transport()
    connect(server.base, api_key="secret", transport=transport).models()
    assert transport.requests[0].headers["Authorization"] == "Bearer secret"
    assert re.fullmatch(r"tru-vlm-client/[\d.]+", transport.requests[0].headers["User-Agent"])


# ---- repeating and stopping ------------------------------------------------------------------------------------------


def refusal(status: int, retry_after: str | None) -> httpx.Response:
    error = {"type": "rate_limit_error", "code": "queue_full", "message": "m", "param": None, "request_id": "r"}
    return httpx.Response(status, json={"error": error}, headers={"Retry-After": retry_after} if retry_after else {})


def test_what_was_refused_is_sent_again_whole(connect: Any, server: Server, clip: Path) -> None:
    transport = Transport(refusal(429, "0"), refusal(503, None))
    client = connect(server.base, transport=transport, retries=Retries(backoff_seconds=0.01))
    with client.stream(clip, QUESTION, temperature=0) as stream:
        assert list(stream)[-1].answer.text == ANSWER
    assert len(transport.requests) == 3
    assert min(transport.body_bytes) > clip.stat().st_size


def test_it_gives_up(connect: Any, server: Server) -> None:
    transport = Transport(*[refusal(429, "0") for _ in range(3)])
    with pytest.raises(RateLimitError):
        connect(server.base, transport=transport, retries=Retries(max_retries=2)).models()
    assert len(transport.requests) == 3
    transport = Transport(refusal(429, "3600"))
    with pytest.raises(RateLimitError) as caught:
        connect(server.base, transport=transport).models()
    assert caught.value.retry_after_seconds == 3600
    assert len(transport.requests) == 1


def test_how_long_it_waits() -> None:
    retries = Retries(max_retries=3, backoff_seconds=2, max_wait_seconds=60)
    assert retries.wait_seconds(0, refusal(429, "41")) == 41
    soon = retries.wait_seconds(0, refusal(503, "Wed, 21 Oct 2015 07:28:00 GMT"))
    assert soon == 0
    assert 1 <= (retries.wait_seconds(0, refusal(503, None)) or 0) <= 2
    assert 4 <= (retries.wait_seconds(2, refusal(503, "soon")) or 0) <= 8
    assert retries.wait_seconds(3, refusal(503, "1")) is None
    assert retries.wait_seconds(0, refusal(500, "1")) is None
    assert retries.wait_seconds(0, httpx.ConnectError("refused")) is not None
    assert retries.wait_seconds(0, httpx.ReadError("broken")) is None
    assert retries.wait_seconds(0, httpx.ReadTimeout("silent")) is None


class BreaksAfterTheFirstEvent(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The server is killed: what LitServe's parent does to a connection, without the seconds it takes to start one."""

    FIRST = b'event: delta\ndata: {"id": "r", "text": "A"}\n\n'

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def __iter__(self) -> Any:
        yield self.FIRST
        if self._error:
            raise self._error

    async def __aiter__(self) -> Any:
        yield self.FIRST
        if self._error:
            raise self._error


@pytest.mark.parametrize("error", [httpx.ReadError("reset"), None], ids=["reset", "closed"])
def test_a_stream_that_breaks_is_an_error_and_not_repeated(
    connect: Any, server: Server, clip: Path, error: Exception | None
) -> None:
    headers = {"Content-Type": "text/event-stream"}
    transport = Transport(httpx.Response(200, headers=headers, stream=BreaksAfterTheFirstEvent(error)))
    stream = connect(server.base, transport=transport).stream(clip, QUESTION)
    assert next(stream) == DeltaEvent("r", "A")
    with pytest.raises(TransportError):
        next(stream)
    assert len(transport.requests) == 1


def test_closing_a_stream_stops_the_server_s_work(client: Any, server: Server, clip: Path) -> None:
    leaving = Leaving(server)
    stream = client.stream(clip, QUESTION, **LONG)
    while not isinstance(next(stream), DeltaEvent):
        pass
    with leaving.during("generating"):
        assert health(server)["queue"]["num_open"] == 1
        stream.close()
    assert list(stream) == []


def test_answers_are_the_package_s_own_types(client: Any, clip: Path) -> None:
    answer = client.ask(clip, QUESTION, temperature=0)
    assert dataclasses.replace(answer, text="x").text == "x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.text = "x"
