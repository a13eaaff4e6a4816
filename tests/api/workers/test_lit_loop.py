"""The worker's loop over an engine whose steps the test writes: what is held goes out before anything can take long."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tru_vlm.api.workers.link import Events, Submit, WorkerLink, _Inbox, _pack, socket_path
from tru_vlm.api.workers.lit_api import VideoLitAPI
from tru_vlm.api.workers.lit_loop import StepLoop, hello
from tru_vlm.api.workers.outbox import Outbox
from tru_vlm.api.workers.record import WorkerRecord
from tru_vlm.engine.base import EngineDescription, EngineEvent, EngineRequest, EngineStats, TokenEvent
from tru_vlm.settings import Settings
from tru_vlm.telemetry.spans import Tracing
from tru_vlm.types import GenerationParams, WorkerRequest

DESCRIPTION = EngineDescription("hf", "m", "qwen3_vl", "cpu", "float32", "sdpa", "", "", "none", 1, 4, 4, 1, {})
Step = list[EngineEvent] | Callable[[], list[EngineEvent]]


class _Engine:
    """Has work for ever; each step gives what comes next, which may be worked out in the step."""

    description = DESCRIPTION

    def __init__(self, steps: Iterator[Step]) -> None:
        self._steps = steps

    def submit(self, request: EngineRequest) -> None: ...

    def has_work(self) -> bool:
        return True

    def step(self) -> list[EngineEvent]:
        step = next(self._steps)
        return step() if callable(step) else step

    def stats(self) -> EngineStats:
        return EngineStats(1, 0, 1, 1, 0, 0, 0, 0)


class _Client:
    """The HTTP process's end, read without waiting for ever."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)
        self._socket.connect(str(path))
        self._inbox = _Inbox()
        self.text = ""

    def submit(self, name: str) -> None:
        self._socket.sendall(
            _pack(Submit(WorkerRequest(name, (), (), GenerationParams(max_tokens=9, temperature=0.0))))
        )

    def read_until(self, text: str) -> list[EngineEvent]:
        while not self.text.endswith(text):
            for message in self._inbox.feed(self._socket.recv(1 << 16)):
                if isinstance(message, Events):
                    self.text += "".join(event.text for event in message.events if isinstance(event, TokenEvent))
        return []

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(autouse=True)
def _holds_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outbox, "is_due", lambda self, _now: self._is_urgent)


def run(tmp_path: Path, script: Callable[[_Client], Iterator[Step]]) -> str:
    """Run a script's steps; what its client has read."""
    api = VideoLitAPI(Settings(_env_file=None), tmp_path)
    link = WorkerLink(socket_path(tmp_path, 0), lambda: hello(0, api.engine))
    client = _Client(socket_path(tmp_path, 0))
    steps = list(script(client))
    api.engine = _Engine(iter(steps))
    loop = StepLoop()
    loop._record = WorkerRecord(Tracing(None))
    client.submit("a")
    while not link._owner:
        link.receive(10)
    for _ in steps:
        loop._iterate(api, link)
    client.close()
    link.close()
    return client.text


def token(text: str) -> list[EngineEvent]:
    return [TokenEvent("a", text, 1)]


def test_a_step_in_which_somebody_joins_holds_back_nothing_of_the_others(tmp_path: Path) -> None:
    def script(client: _Client) -> Iterator[Step]:
        yield token("first")
        yield token(" held")
        yield lambda: client.submit("b") or token(" more")
        yield partial(client.read_until, " more")  # while b's prompt is computed

    assert run(tmp_path, script) == "first held more"


def test_a_step_that_yields_nothing_holds_back_nothing(tmp_path: Path) -> None:
    def script(client: _Client) -> Iterator[Step]:
        yield token("first")
        yield token(" held")
        yield []
        yield partial(client.read_until, "first held")

    assert run(tmp_path, script) == "first held"
