"""The link between processes, over real sockets."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tru_vlm.api.workers.link import Abort, Events, Hello, Submit, WorkerConnection, WorkerLink
from tru_vlm.api.workers.outbox import Outbox
from tru_vlm.engine.base import EngineDescription, EngineStats, TokenEvent
from tru_vlm.types import GenerationParams, WorkerRequest

STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0)
DESCRIPTION = EngineDescription("hf", "m", "qwen3_vl", "cpu", "float32", "sdpa", "", "", "none", 1, 4, 4, 1, {})
HELLO = Hello(0, 1, DESCRIPTION, STATS)


def request(name: str) -> WorkerRequest:
    return WorkerRequest(name, (), (), GenerationParams(max_tokens=1, temperature=0.0))


@pytest.fixture
def link(tmp_path: Path):
    made = WorkerLink(tmp_path / "w.sock", lambda: HELLO)
    yield made
    made.close()


def receive_until(link: WorkerLink, count: int) -> list:
    messages: list = []
    while len(messages) < count:
        messages += link.receive(5.0)
    return messages


def test_messages_go_both_ways(link: WorkerLink, tmp_path: Path) -> None:
    async def http_side():
        connection = await WorkerConnection.open(tmp_path / "w.sock")
        hello = await connection.receive()
        connection.send(Submit(request("a")))
        connection.send(Abort("a"))
        events = await connection.receive()
        connection.close()
        return hello, events

    result: list = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(http_side())))
    thread.start()
    received = receive_until(link, 2)
    link.send([TokenEvent("a", "hi", 1), TokenEvent("unknown", "x", 1)])
    thread.join(10)
    assert received == [Submit(request("a")), Abort("a")]
    ((hello, events),) = result
    assert hello == HELLO
    assert (events.events, events.stats) == ((TokenEvent("a", "hi", 1),), STATS)
    assert [rows for _, rows in events.steps] == [("a",)]


def test_a_lost_client_aborts_what_it_had(link: WorkerLink, tmp_path: Path) -> None:
    async def http_side() -> None:
        connection = await WorkerConnection.open(tmp_path / "w.sock")
        await connection.receive()
        for name in ("a", "b", "c"):
            connection.send(Submit(request(name)))
        await asyncio.sleep(0)
        connection.close()
        await connection._writer.wait_closed()

    thread = threading.Thread(target=lambda: asyncio.run(http_side()))
    thread.start()
    messages = receive_until(link, 3)
    link.forget("b")
    while not any(isinstance(message, Abort) for message in messages):
        messages += link.receive(5.0)
    thread.join(10)
    assert {message.request_id for message in messages if isinstance(message, Abort)} >= {"a", "c"}


def test_the_end_of_the_worker_is_the_end_of_the_stream(tmp_path: Path) -> None:
    link = WorkerLink(tmp_path / "w.sock", lambda: HELLO)

    async def http_side():
        connection = await WorkerConnection.open(tmp_path / "w.sock")
        await connection.receive()
        last = await connection.receive()
        connection.close()
        return last

    result: list = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(http_side())))
    thread.start()
    while not link._peers:
        link.receive(5.0)
    link.close()
    thread.join(10)
    assert result == [None]
    assert not (tmp_path / "w.sock").exists()


def test_more_than_the_socket_takes_is_sent_in_the_end(link: WorkerLink, tmp_path: Path) -> None:
    big = TokenEvent("a", "x" * 5_000_000, 1)

    async def http_side():
        connection = await WorkerConnection.open(tmp_path / "w.sock")
        await connection.receive()
        connection.send(Submit(request("a")))
        events = await connection.receive()
        connection.close()
        return events

    result: list = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(http_side())))
    thread.start()
    receive_until(link, 1)
    link.send([big])
    while thread.is_alive():
        link.receive(0.05)
    assert [events.events for events in result] == [(big,)]


def test_what_is_held_goes_with_the_next_look_at_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outbox, "is_due", lambda self, _now: self._is_urgent)
    looks = iter(range(100))
    link = WorkerLink(tmp_path / "w.sock", lambda: replace(HELLO, stats=replace(STATS, num_steps=next(looks))))

    async def http_side() -> list[Events]:
        connection = await WorkerConnection.open(tmp_path / "w.sock")
        await connection.receive()
        connection.send(Submit(request("a")))
        messages = []
        while message := await connection.receive():
            messages.append(message)
        connection.close()
        return messages

    result: list = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(http_side())))
    thread.start()
    receive_until(link, 1)
    for text in ("first", " held", " held too", " at last"):
        link.send([TokenEvent("a", text, 1)])
        if text == " held too":
            link.flush()
            link.flush()  # nothing is told twice
    link.report()
    link.close()
    thread.join(10)
    (messages,) = result
    assert "".join(event.text for message in messages for event in message.events) == "first held held too at last"
    assert sum(len(message.steps) for message in messages) == 4
    assert all(message.events for message in messages)
    assert messages[-1].events[-1].text.endswith(" at last")


def test_a_report_is_not_repeated(tmp_path: Path) -> None:
    link = WorkerLink(tmp_path / "w.sock", lambda: HELLO)

    async def http_side() -> int:
        connection = await WorkerConnection.open(tmp_path / "w.sock")
        messages = 0
        while await connection.receive():
            messages += 1
        connection.close()
        return messages

    result: list = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(http_side())))
    thread.start()
    while not link.is_connected:
        link.receive(5.0)
    link.report()
    link.report()
    link.close()
    thread.join(10)
    assert result == [2]  # the greeting and one report
