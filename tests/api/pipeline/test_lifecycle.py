"""Whatever becomes of a request, it ends in exactly one terminal event and gives back what it held.

A whole service with two workers in this process: real links, loops, engines, decode processes, spool and fetcher.
Only the processes are missing, so that a test can look into every part.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cancelling import until
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from demo_model.generator import ClipSpec, Event, encode
from tru_vlm.api.inference_request import InferenceRequest
from tru_vlm.api.service import HostedModel, InferenceService, ParsedForm, RequestStream
from tru_vlm.api.workers.link import WorkerLink, socket_path
from tru_vlm.api.workers.lit_api import VideoLitAPI
from tru_vlm.api.workers.lit_loop import StepLoop, hello
from tru_vlm.api.workers.record import WorkerRecord
from tru_vlm.engine.base import EngineEvent
from tru_vlm.engine.hf.config import EngineConfig
from tru_vlm.engine.hf.engine import HfEngine
from tru_vlm.engine.hf.loading import load_model
from tru_vlm.errors import OverloadedError
from tru_vlm.principal import ANONYMOUS
from tru_vlm.processor.profile import load_profile
from tru_vlm.settings import Settings, load_settings
from tru_vlm.telemetry.spans import Tracing
from tru_vlm.types import DeltaEvent, DoneEvent, ErrorEvent, RequestEvent, StatusEvent, VideoEvent

NUM_WORKERS = 2
ROWS = 2
QUEUE = 2
KV_TOKENS = 4096
LONG = 1500
"""Tokens of an answer that does not end by itself while a test looks at it; a worker's cache has room for two."""


class Worker:
    """A worker's loop in a thread."""

    def __init__(self, configuration: Settings, sockets: Path, worker_id: int, engine: HfEngine) -> None:
        self.engine = engine
        self._api = VideoLitAPI(configuration, sockets)
        self._api.engine = engine
        self._link = WorkerLink(socket_path(sockets, worker_id), partial(hello, worker_id, engine))
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        loop = StepLoop()
        loop._record = WorkerRecord(Tracing(None))
        while not self._is_stopping:
            loop._iterate(self._api, self._link)

    def stop(self) -> None:
        self._is_stopping = True
        self._link.wake()
        self._thread.join(60)
        self._link.close()


@dataclass
class Stand:
    """The service, what it stands on, and where its videos come from."""

    service: InferenceService
    workers: list[Worker]
    clip: Path
    stalling_url: str
    run: Callable[[Coroutine[Any, Any, Any]], Any]

    async def open(
        self, *, video: bytes | None = None, url: str | None = None, timeout_seconds: float = 600.0, **fields: object
    ) -> RequestStream:
        file = None
        if url is None:
            content = self.clip.read_bytes() if video is None else video
            file = await self.service.spool.write(_one(content), filename="clip.mp4", max_bytes=1 << 30)
        given = {"prompt": "What happens in this video?", "temperature": "0", "nframes": "4"}
        given |= {name: str(value) for name, value in fields.items()} | ({"video_url": url} if url else {})
        parsed = await self.service.parse_form(ParsedForm(given, file))
        return await self._start(parsed, timeout_seconds)

    async def open_chat(
        self, *sources: bytes | str, nframes: int = 4, timeout_seconds: float = 600.0, **fields: object
    ) -> RequestStream:
        """Ask about several videos, each in a turn of its own; sources are content or URLs."""
        urls = [
            source if isinstance(source, str) else f"data:video/mp4;base64,{base64.b64encode(source).decode()}"
            for source in sources
        ]
        turns = [
            {"role": "user", "content": [{"type": "video_url", "video_url": {"url": url, "nframes": nframes}}]}
            for url in urls
        ]
        turns[-1]["content"].append({"type": "text", "text": "What happens?"})
        body = {"messages": turns, "temperature": 0, **fields}
        return await self._start(self.service.parse_chat(json.dumps(body).encode()).inference, timeout_seconds)

    async def _start(self, parsed: InferenceRequest, timeout_seconds: float) -> RequestStream:
        changed = {"request_timeout_seconds": timeout_seconds}
        self.service.settings = self.service.settings.model_copy(update=changed)  # read before anything is awaited
        return await self.service.open(parsed, ANONYMOUS)

    async def all_given_back(self) -> None:
        await until(lambda: self.held() == dict.fromkeys(self.held(), 0), 60.0)

    def held(self) -> dict[str, int]:
        """Everything that a request can hold."""
        service, videos = self.service, self.service.videos.stats()
        (model,) = service.models
        engines = [worker.engine.stats() for worker in self.workers]
        return {
            "open requests": service.num_open,
            "places of the model": model.places.num_taken,
            "places in the queue": model.workers.num_waiting,
            "rows, as the server knows": model.workers.num_running,
            "rows": sum(engine.num_running + engine.num_waiting for engine in engines),
            "tokens of the KV cache": sum(engine.kv_cache_used_tokens for engine in engines),
            "spooled bytes": service.spool.used_bytes,
            "spooled files": len(_files(service.settings.storage_dir / "spool")),
            "unfinished frames": len(list((service.settings.storage_dir / "frames").glob("*.part"))),
            "leases on frames": videos.cache.num_leases,
            "decode processes": videos.pool.num_busy + videos.pool.num_waiting,
        }


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


async def _stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begin to send a video, and go on when the other side has left."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"\0" * 1000)
    with contextlib.suppress(ConnectionError):
        await reader.read(-1)
    writer.close()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("service")
    configuration = load_settings(
        None,
        storage_dir=folder / "storage",
        max_batch_size=ROWS,
        kv_cache_tokens=KV_TOKENS,
        max_new_tokens=KV_TOKENS,
        max_queued_requests=QUEUE,
        decode_processes=1,
        video_reader="pyav",
        allow_private_urls=True,
    )
    profile = load_profile("demo")
    config = EngineConfig("demo", max_batch_size=ROWS, kv_cache_tokens=KV_TOKENS)
    model = load_model(profile, config)
    clip = encode(ClipSpec(events=(Event("red", "circle", "moves left"),), duration_seconds=2.0), folder / "clip.mp4")
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory(prefix="tru-") as name:
        sockets = Path(name)
        engines = [HfEngine(model, profile, config) for _ in range(NUM_WORKERS)]
        workers = [Worker(configuration, sockets, number, engine) for number, engine in enumerate(engines)]
        service = InferenceService(configuration, [HostedModel("demo", configuration, profile, sockets, NUM_WORKERS)])
        server = runner.run(asyncio.start_server(_stall, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        try:
            runner.run(service.start())
            (model,) = service.models
            runner.run(until(lambda: all(state.is_ready for state in model.workers.states())))
            yield Stand(service, workers, clip, f"http://127.0.0.1:{port}/clip.mp4", runner.run)
        finally:
            runner.run(service.close())
            server.close()
            for worker in workers:
                worker.stop()


def terminal_of(events: list[RequestEvent]) -> DoneEvent | ErrorEvent:
    """The last event; fails unless it is the one terminal event."""
    terminals = [event for event in events if isinstance(event, DoneEvent | ErrorEvent)]
    assert len(terminals) == 1, events
    assert events[-1] is terminals[0], events
    return terminals[0]


async def read_until(stream: RequestStream, kind: type[RequestEvent], stage: str = "") -> list[RequestEvent]:
    """Events up to the first of a kind (and, of status events, of a stage)."""
    events: list[RequestEvent] = []
    async for event in stream:
        events.append(event)
        if isinstance(event, kind) and (not stage or getattr(event, "stage", "") == stage):
            return events
    raise AssertionError(f"it ended with {events[-1]}")


LONG_ANSWER = {"max_tokens": LONG, "ignore_eos": "true"}


@pytest.mark.parametrize("stage", ["begin", "fetching", "decoding", "waiting", "prefilling", "generating"])
def test_a_cancelled_request_ends_with_an_abort_in_every_stage(stand: Stand, stage: str) -> None:
    async def scenario() -> None:
        filling = []
        if stage == "waiting":
            filling = [await stand.open(**LONG_ANSWER) for _ in range(NUM_WORKERS * ROWS)]
            for other in filling:
                await read_until(other, StatusEvent, "prefilling")
        # The decoding one has frames of its own, or they would come from the cache.
        size = {"nframes": 12} if stage == "decoding" else {}
        stream = await stand.open(url=stand.stalling_url if stage == "fetching" else None, **size, **LONG_ANSWER)
        events = [] if stage == "begin" else await read_until(stream, StatusEvent, stage)
        stream.cancel()
        events += [event async for event in stream]
        answer = terminal_of(events).answer
        assert answer.finish_reason == "abort"
        assert answer.text == "".join(event.text for event in events if isinstance(event, DeltaEvent))
        assert answer.usage.completion_tokens < LONG
        assert (answer.video is None) == (stage in {"begin", "fetching", "decoding"})
        await stream.aclose()
        assert stand.service.num_open == len(filling)
        for other in filling:
            await other.aclose()
        await stand.all_given_back()

    stand.run(scenario())


@pytest.mark.parametrize("stage", ["begin", "fetching", "decoding", "prefilling", "generating"])
def test_a_cancelled_conversation_gives_back_all_its_videos_in_every_stage(stand: Stand, stage: str) -> None:
    async def scenario() -> None:
        clip = stand.clip.read_bytes()
        sources = [clip, stand.stalling_url, clip] if stage == "fetching" else [clip] * 6
        nframes = 14 if stage == "decoding" else 4
        fields = {"max_tokens": LONG, "ignore_eos": True}
        stream = await stand.open_chat(*sources, nframes=nframes, **fields)
        events = [] if stage == "begin" else await read_until(stream, StatusEvent, stage)
        stream.cancel()
        events += [event async for event in stream]
        assert terminal_of(events).answer.finish_reason == "abort"
        num_videos = sum(isinstance(event, VideoEvent) for event in events)
        assert num_videos == (6 if stage in {"prefilling", "generating"} else 0)
        await stream.aclose()
        await stand.all_given_back()

    stand.run(scenario())


def test_words_alone_pass_without_a_video(stand: Stand) -> None:
    async def scenario() -> None:
        body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}).encode()
        stream = await stand.service.open(stand.service.parse_chat(body).inference, ANONYMOUS)
        events = [event async for event in stream]
        assert isinstance(terminal_of(events), DoneEvent)
        assert not any(isinstance(event, VideoEvent) for event in events)
        assert not any(getattr(event, "stage", "") in {"fetching", "decoding"} for event in events)
        await stand.all_given_back()

    stand.run(scenario())


def test_a_cancelled_answer_costs_no_more_than_the_step_that_was_under_way(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_step, is_in_step = threading.Event(), threading.Event()
    may_step.set()

    def held(step: Callable[[], list[EngineEvent]]) -> Callable[[], list[EngineEvent]]:
        def held_step() -> list[EngineEvent]:
            if not may_step.is_set():
                is_in_step.set()
                may_step.wait(60)
            return step()

        return held_step

    def num_steps() -> int:
        return sum(worker.engine.stats().num_steps for worker in stand.workers)

    for worker in stand.workers:
        monkeypatch.setattr(worker.engine, "step", held(worker.engine.step))

    async def scenario() -> None:
        stream = await stand.open(**LONG_ANSWER)
        await read_until(stream, DeltaEvent)
        may_step.clear()
        await until(is_in_step.is_set)
        at_abort = num_steps()
        await stream.aclose()
        may_step.set()
        await stand.all_given_back()
        assert num_steps() - at_abort == 1

    try:
        stand.run(scenario())
    finally:
        may_step.set()


def test_an_abort_after_the_end_changes_nothing(stand: Stand) -> None:
    async def scenario() -> None:
        stream = await stand.open(max_tokens=2)
        events = [event async for event in stream]
        stream.cancel()
        await stream.aclose()
        assert terminal_of(events).answer.finish_reason == "length"
        await stand.all_given_back()

    stand.run(scenario())


@dataclass(frozen=True)
class Wish:
    """One request of a mix: what it is, its deadline, and when its client gives up."""

    kind: str
    num_frames: int
    timeout_seconds: float
    num_events: int
    ending: str


WISHES = st.builds(
    Wish,
    kind=st.sampled_from(
        ["good", "long", "text", "truncated", "too much", "stalling", "three", "one bad", "one stalls"]
    ),
    num_frames=st.sampled_from([2, 4, 6]),
    timeout_seconds=st.sampled_from([600.0, 600.0, 0.3, 0.05, 0.001]),
    num_events=st.integers(0, 8),
    ending=st.sampled_from(["read", "read", "cancel", "close"]),
)


def fields_of(wish: Wish, stand: Stand) -> dict[str, Any]:
    match wish.kind:
        case "good":
            return {"nframes": wish.num_frames, "max_tokens": 12}
        case "long":
            return {"nframes": wish.num_frames, **LONG_ANSWER, "max_tokens": 200}
        case "text":
            return {"video": b"This is not a video." * 100}
        case "truncated":
            return {"video": stand.clip.read_bytes()[:2000]}
        case "too much":  # fits into the context, not into the worker's cache: refused in the middle of the stream
            return {"nframes": wish.num_frames, "max_tokens": KV_TOKENS}
        case _:
            return {"url": stand.stalling_url}


async def start(stand: Stand, wish: Wish) -> RequestStream:
    clip = stand.clip.read_bytes()
    conversations: dict[str, list[bytes | str]] = {
        "three": [clip] * 3,
        "one bad": [clip, b"This is not a video." * 100, clip],
        "one stalls": [clip, stand.stalling_url, clip],
    }
    if wish.kind in conversations:
        sources = conversations[wish.kind]
        options: dict[str, Any] = {"nframes": wish.num_frames, "timeout_seconds": wish.timeout_seconds}
        return await stand.open_chat(*sources, max_tokens=12, **options)
    return await stand.open(timeout_seconds=wish.timeout_seconds, **fields_of(wish, stand))


async def carry_out(stand: Stand, wish: Wish) -> None:
    try:
        stream = await start(stand, wish)
    except OverloadedError:  # its file must be gone all the same
        return
    events: list[RequestEvent] = []
    is_endless = wish.kind in {"stalling", "one stalls"} and wish.timeout_seconds == 600.0
    limit = wish.num_events if wish.ending != "read" or is_endless else 1 << 30
    while len(events) < limit and not (is_endless and events):
        try:
            events.append(await anext(stream))
        except StopAsyncIteration:
            break
    if wish.ending == "close":
        await stream.aclose()
        while not stream._run.events.empty():
            events.append(stream._run.events.get_nowait())
    else:
        if limit < 1 << 30:
            stream.cancel()
        events += [event async for event in stream]
    assert stream._run.events.empty(), "something came after the terminal event"
    check_end(wish, terminal_of(events), was_cancelled=limit < 1 << 30)
    num_videos = {"good": 1, "three": 3}.get(wish.kind)
    if num_videos and wish.timeout_seconds == 600.0 and limit == 1 << 30:
        assert sum(isinstance(event, VideoEvent) for event in events) == num_videos


def check_end(wish: Wish, end: DoneEvent | ErrorEvent, *, was_cancelled: bool) -> None:
    """What may have become of it."""
    possible = {
        "good": {"stop", "length"},
        "long": {"length"},
        "text": {"unsupported_media"},
        "truncated": {"unsupported_media", "damaged_media", "no_video"},
        "too much": {"context_length_exceeded"},
        "stalling": set(),
        "three": {"stop", "length"},
        "one bad": {"unsupported_media"},
        "one stalls": set(),
    }[wish.kind]
    possible |= {"abort"} if was_cancelled else set()
    possible |= {"request_timeout"} if wish.timeout_seconds < 600.0 else set()
    got = end.answer.finish_reason if isinstance(end, DoneEvent) else end.error.code
    if wish.kind == "truncated" and isinstance(end, ErrorEvent) and end.error.type == "invalid_request_error":
        return
    assert got in possible, (wish, end)


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking takes long
@given(wishes=st.lists(WISHES, min_size=1, max_size=8))
def test_any_mix_of_requests_ends_once_each_and_gives_everything_back(stand: Stand, wishes: list[Wish]) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            for wish in wishes:
                group.create_task(carry_out(stand, wish))
        await stand.all_given_back()

    stand.run(scenario())
