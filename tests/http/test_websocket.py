"""`/v1/inference/ws` with a real client: the events, cancelling, what is refused, who is dropped, and the drain."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events
from socket_client import EVENT, LAST, Socket, data_uri, open_socket
from support import Server, start_server
from watching import HoldingHost, TricklingHost, decode_child, health, held, num_generated, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus

ROWS = 2
LONG = {"max_tokens": 8000, "ignore_eos": True}
"""Goes on until it is stopped."""
MAX_MESSAGE_BYTES = 1 << 20
ONE = "A red circle moves left."
FRIEND = "https://friend.example:8443"


@pytest.fixture(scope="module")
def socket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker with few rows; prompts are prefilled in so small pieces that a long one takes hundreds of steps."""
    running = start_server(
        tmp_path_factory.mktemp("socket"),
        MAX_BATCH_SIZE=str(ROWS),
        MAX_NEW_TOKENS="30000",
        KV_CACHE_TOKENS="26000",
        PREFILL_CHUNK_TOKENS="16",
        DECODE_PROCESSES="1",
        MAX_JSON_BYTES=str(MAX_MESSAGE_BYTES),
        ALLOWED_ORIGINS=f"https://other.example, {FRIEND}",
        DRAIN_SECONDS="50",
    )
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


@pytest.fixture
def quiet(socket_server: Server) -> Iterator[Server]:
    """The server; after the test, everything that its requests held must be given back."""
    yield socket_server
    wait_until(lambda: not any(held(socket_server).values()))
    assert health(socket_server)["status"] == "ok"


@pytest.fixture
def socket(quiet: Server) -> Iterator[Socket]:
    """An open socket."""
    with open_socket(quiet) as opened:
        yield opened


# Questions and events


def test_the_events_are_those_of_a_stream(quiet: Server, socket: Socket, clips: dict[str, Path]) -> None:
    body = {
        "video_url": data_uri(clips["two"]),
        "prompt": QUESTION,
        "generation_params": {"temperature": 0, "max_tokens": 64},
        "stream": True,
    }
    streamed = list(events(requests.post(quiet.base + "/v1/inference/url", json=body, timeout=TIMEOUT, stream=True)))
    socket.say({"type": "request", "id": "mine", **body})
    received = []
    while not received or received[-1]["type"] not in LAST:
        received.append(socket.next())
    assert [bare(event) for event in received] == [bare({"type": name, **data}) for name, data in streamed]
    assert {event["id"] for event in received} == {"mine"}
    (request_id,) = {event["request_id"] for event in received}
    assert request_id.startswith("req-")
    assert "".join(event["text"] for event in received if event["type"] == "delta") == received[-1]["text"]


def bare(event: dict[str, Any]) -> dict[str, Any]:
    """An event without what differs from request to request."""
    usage = {name: count for name, count in event.get("usage", {}).items() if name != "cached_tokens"}
    return {name: value for name, value in event.items() if name not in {"id", "request_id", "timings"}} | usage_of(
        usage
    )


def usage_of(usage: dict[str, int]) -> dict[str, Any]:
    return {"usage": usage} if usage else {}


def test_several_requests_share_a_socket(socket: Socket, clips: dict[str, Path]) -> None:
    asked = {"a": "one", "b": "two", "c": "one"}
    for name, clip in asked.items():
        socket.ask(name, clips[clip])
    ends: dict[str, dict[str, Any]] = {}
    while len(ends) < len(asked):
        event = socket.next()
        assert event["id"] not in ends, "nothing comes after a request's last event"
        if event["type"] in LAST:
            ends[event["id"]] = event
    assert len({end["request_id"] for end in ends.values()}) == len(asked)
    assert ends["a"]["text"] == ends["c"]["text"] == ONE
    assert ends["b"]["text"].startswith(ONE)
    assert ends["b"]["text"] != ONE


def test_without_an_id_the_server_s_own_is_taken(socket: Socket, clips: dict[str, Path]) -> None:
    socket.ask(None, clips["one"], **LONG)
    event = socket.until("delta")
    assert event["id"] == event["request_id"]
    socket.say({"type": "cancel", "id": event["id"]})
    assert socket.answer()["finish_reason"] == "abort"


def test_an_id_can_be_used_again(socket: Socket, clips: dict[str, Path]) -> None:
    for _ in range(3):
        socket.ask("again", clips["one"])
        assert socket.answer()["text"] == ONE


def test_an_id_that_is_in_use_is_refused_and_its_request_goes_on(socket: Socket, clips: dict[str, Path]) -> None:
    socket.ask("a", clips["two"], **LONG)
    first = socket.until("delta")
    socket.ask("a", clips["one"])
    error = socket.until("error")
    assert (error["id"], error["error"]["code"], error["error"]["param"]) == (None, "duplicate_id", "id")
    assert error["request_id"] != first["request_id"]
    assert socket.until("delta")["request_id"] == first["request_id"]
    socket.say({"type": "cancel", "id": "a"})
    end = socket.answer()
    assert (end["type"], end["request_id"]) == ("done", first["request_id"])


# Cancelling, in every stage


def cancelled(socket: Socket, name: str = "a") -> dict[str, Any]:
    """Cancel a request and read its last event."""
    socket.say({"type": "cancel", "id": name})
    end = socket.answer()
    assert (end["type"], end["id"], end["finish_reason"]) == ("done", name, "abort"), end
    return end


def test_cancel_during_the_fetch(socket: Socket) -> None:
    with TricklingHost() as host:
        socket.ask("a", host.url)
        assert host.was_asked.wait(TIMEOUT)
        assert cancelled(socket)["text"] == ""
        assert host.was_left.wait(TIMEOUT)


def test_cancel_during_the_video_decode(quiet: Server, socket: Socket, clips: dict[str, Path]) -> None:
    child = decode_child(quiet)
    child.suspend()
    socket.ask("a", clips["one"], nframes=6)  # as no other test, so that they are not in the frame cache
    wait_until(lambda: health(quiet)["video"]["pool"]["num_busy"] == 1)
    cancelled(socket)
    wait_until(lambda: not child.is_running())


def test_cancel_in_the_queue(quiet: Server, clips: dict[str, Path]) -> None:
    with open_socket(quiet) as filling, open_socket(quiet) as waiting:
        for row in range(ROWS):
            filling.ask(str(row), clips["one"], **LONG)
        wait_until(lambda: health(quiet)["queue"]["num_running"] == ROWS)
        waiting.ask("a", clips["one"])
        waiting.until_stage("waiting")
        cancelled(waiting)
        assert health(quiet)["queue"]["num_running"] == ROWS


def test_cancel_during_prefill(quiet: Server, socket: Socket, clips: dict[str, Path]) -> None:
    before = num_generated(quiet)
    socket.ask("a", clips["one"], "why 1234567890 " * 1000)
    socket.until_stage("prefilling")
    cancelled(socket)
    wait_until(lambda: not any(held(quiet).values()))
    assert num_generated(quiet) == before


def test_cancel_while_it_answers(quiet: Server, socket: Socket, clips: dict[str, Path]) -> None:
    before = num_generated(quiet)
    socket.ask("a", clips["one"], **LONG)
    socket.ask("b", clips["one"], **LONG)
    texts = {"a": "", "b": ""}
    while not all(texts.values()):
        event = socket.until("delta")
        texts[event["id"]] += event["text"]
    socket.say({"type": "cancel", "id": "a"})
    end = socket.answer()
    assert (end["id"], end["finish_reason"]) == ("a", "abort")
    assert end["text"].startswith(texts["a"])
    assert socket.until("delta")["id"] == "b", "the other goes on"
    cancelled(socket, "b")
    wait_until(lambda: not any(held(quiet).values()))
    assert num_generated(quiet) - before < LONG["max_tokens"]


def test_cancel_without_an_id_stops_all(socket: Socket, clips: dict[str, Path]) -> None:
    names = {"a", "b", "c"}
    for name in names:
        socket.ask(name, clips["one"], **LONG)
    socket.until("delta")
    socket.say({"type": "cancel"})
    ends = []
    while len(ends) < len(names):
        event = socket.next()
        ends += [event] if event["type"] in LAST else []
    assert {end["id"] for end in ends} == names
    assert {end["finish_reason"] for end in ends} == {"abort"}


def test_cancel_of_what_does_not_run_says_nothing(socket: Socket, clips: dict[str, Path]) -> None:
    socket.say({"type": "cancel", "id": "nobody"})
    socket.say({"type": "cancel"})
    socket.ask("a", clips["one"])
    assert socket.next()["type"] == "status"
    assert socket.answer()["text"] == ONE
    socket.say({"type": "cancel", "id": "a"})
    socket.say("no message")
    assert socket.next()["error"]["code"] == "invalid_json"


# What is refused


@pytest.mark.parametrize(
    ("message", "name", "code", "param"),
    [
        ("{", None, "invalid_json", None),
        ("[]", None, "invalid_json", None),
        ("[" * 100_000, None, "invalid_json", None),
        (b"\0\1", None, "binary_message", None),
        ('{"type": "subscribe", "id": "a"}', None, "unknown_type", "type"),
        ('{"type": ["cancel"]}', None, "unknown_type", "type"),
        ('{"type": "cancel", "id": 3}', None, "invalid_value", "id"),
        ('{"type": "cancel", "all": true}', None, "unknown_field", "all"),
        ('{"id": "", "video_url": "u", "prompt": "p"}', None, "invalid_value", "id"),
        ('{"id": "\\ud800", "video_url": "u", "prompt": "p"}', None, "invalid_value", "id"),
        ('{"id": "a", "prompt": "p"}', "a", "missing_field", "video_url"),
        ('{"prompt": "p"}', None, "missing_field", "video_url"),
        ('{"id": "a", "video_url": "u", "prompt": "p", "speed": 1}', "a", "unknown_field", "speed"),
        ('{"id": "a", "video_url": "u", "prompt": "p", "\\ud800": 1}', "a", "invalid_value", None),
        (
            '{"id": "a", "video_url": "u", "prompt": "p", "video_params": {"fps": -1}}',
            "a",
            "invalid_value",
            "video_params.fps",
        ),
        (
            '{"id": "a", "video_url": "u", "prompt": "p", "generation_params": {"max_tokens": 1000000}}',
            "a",
            "invalid_value",
            "generation_params.max_tokens",
        ),
        ('{"id": "a", "video_url": "ftp://host/clip", "prompt": "p"}', "a", "url_not_allowed", "video_url"),
    ],
)
def test_a_bad_message_gets_one_error_and_the_socket_stays(
    socket: Socket, message: str | bytes, name: str | None, code: str, param: str | None
) -> None:
    socket.connection.send(message)
    event = socket.until("error")
    assert (event["id"], event["error"]["code"], event["error"]["param"]) == (name, code, param)
    assert event["error"]["request_id"] == event["request_id"]
    socket.say({"type": "?"})
    assert socket.next()["error"]["code"] == "unknown_type", "there was one error"


def test_a_message_that_is_too_large_closes_the_socket(quiet: Server, socket: Socket, clips: dict[str, Path]) -> None:
    socket.ask("a", clips["one"], **LONG)
    socket.until("delta")
    socket.connection.send("x" * (MAX_MESSAGE_BYTES + 1))
    code, _ = socket.closed()
    assert code == 1009
    wait_until(lambda: not any(held(quiet).values()))
    assert "Traceback" not in quiet.log.read_text()


@pytest.mark.parametrize("origin", [None, "own", FRIEND])
def test_own_pages_and_friends_may(quiet: Server, clips: dict[str, Path], origin: str | None) -> None:
    with open_socket(quiet, origin=quiet.base if origin == "own" else origin) as socket:
        socket.ask("a", clips["one"])
        assert socket.answer()["text"] == ONE


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "https://friend.example"])
def test_other_pages_may_not(quiet: Server, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused, open_socket(quiet, origin=origin):
        pass
    response = refused.value.response
    assert response.status_code == 403
    error = json.loads(response.body)["error"]
    assert (error["type"], error["code"]) == ("permission_error", "origin_not_allowed")
    assert set(error) == {"type", "code", "message", "param", "request_id"}
    assert response.headers["X-Request-Id"] == error["request_id"]
    assert "handshake" not in quiet.log.read_text(), "a refusal is nothing to complain about"


def test_a_plain_request_is_told_that_this_is_a_websocket(quiet: Server) -> None:
    response = requests.get(quiet.base + "/v1/inference/ws", timeout=TIMEOUT)
    assert response.status_code == 426
    assert response.headers["Upgrade"] == "websocket"
    assert error_of(response)["code"] == "upgrade_required"


def test_the_schema_describes_both_sides_with_examples_that_are_right(quiet: Server) -> None:
    schema = requests.get(quiet.base + "/openapi.json", timeout=TIMEOUT).json()
    operation = schema["paths"]["/v1/inference/ws"]["get"]
    opened = operation["responses"]["101"]["content"]["application/json"]
    said = operation["x-client-messages"]
    names = [link["$ref"].rpartition("/")[2] for link in opened["schema"]["oneOf"] + said["schema"]["oneOf"]]
    assert len(names) == len(set(names)) == 7
    assert set(names) <= set(schema["components"]["schemas"])
    for example in opened["examples"].values():
        EVENT.validate_python(example["value"], extra="forbid")
    with open_socket(quiet) as socket:
        for example in said["examples"].values():
            socket.say(example["value"])
        event = socket.next()
        assert event.get("error", {}).get("code") in {None, "url_not_fetched"}, "it was taken as a question"


# Who leaves, and who is dropped


@pytest.mark.parametrize("how", ["closes", "vanishes"])
def test_who_leaves_stops_all_requests(quiet: Server, clips: dict[str, Path], how: str) -> None:
    before = num_generated(quiet)
    with open_socket(quiet) as socket, TricklingHost() as host:
        for name in ("a", "b", "c"):
            socket.ask(name, clips["one"], **LONG)
        socket.ask("d", host.url)
        assert host.was_asked.wait(TIMEOUT)
        socket.until("delta")
        if how == "closes":
            socket.connection.close()
        else:
            socket.connection.socket.shutdown(2)
        assert host.was_left.wait(TIMEOUT)
    wait_until(lambda: not any(held(quiet).values()))
    assert num_generated(quiet) - before < LONG["max_tokens"]


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Waits for nobody for long."""
    running = start_server(
        tmp_path_factory.mktemp("hasty"),
        MAX_NEW_TOKENS="30000",
        MAX_BATCH_SIZE="1",
        MAX_QUEUED_REQUESTS="2",
        MAX_SOCKET_REQUESTS="2",
        SOCKET_IDLE_SECONDS="1",
        SOCKET_PING_SECONDS="1.5",
        DRAIN_SECONDS="1",
    )
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def test_an_idle_socket_is_closed_and_one_that_waits_for_an_answer_is_not(hasty: Server) -> None:
    with TricklingHost() as host, open_socket(hasty) as waiting:
        waiting.ask("a", host.url)
        assert host.was_asked.wait(TIMEOUT)
        with open_socket(hasty) as idle:  # younger than the other's last word
            assert idle.closed() == (1000, [])
        cancelled(waiting)
        assert waiting.closed() == (1000, [])


def test_a_socket_takes_so_many_requests_and_the_server_too(hasty: Server, clips: dict[str, Path]) -> None:
    with TricklingHost() as host, open_socket(hasty) as first:
        for name in ("a", "b", "c"):
            first.ask(name, host.url)
        error = first.until("error")
        assert (error["id"], error["error"]["code"], error["error"]["type"]) == ("c", "socket_full", "rate_limit_error")
        with open_socket(hasty) as second:
            for name in ("a", "b"):
                second.ask(name, host.url)
            error = second.until("error")
            assert (error["id"], error["error"]["code"]) == ("b", "queue_full")
            cancelled(first, "a")
            second.ask("b", clips["one"])
            assert second.answer()["text"] == ONE, "there is room again, once its last event is out"


def test_who_does_not_read_is_dropped_and_its_requests_are_stopped(hasty: Server, clips: dict[str, Path]) -> None:
    before = num_generated(hasty)
    with open_socket(hasty, max_queue=1) as socket:
        socket.ask("a", clips["one"], max_tokens=20_000, ignore_eos=True)
        wait_until(lambda: num_generated(hasty) > before)
        wait_until(lambda: not any(held(hasty).values()))
        assert num_generated(hasty) - before < 20_000
        code, _ = socket.closed()
        assert code != 1000


def test_who_does_not_read_is_not_read_from_either(hasty: Server) -> None:
    """What it would be told does not pile up: the server takes no more words from it."""
    processes = psutil.Process(hasty.process.pid).children(recursive=True)
    before = sum(process.memory_info().rss for process in processes)
    with open_socket(hasty, max_queue=1) as socket, pytest.raises(ConnectionClosed):
        send_for_ever(socket)
    after = sum(process.memory_info().rss for process in processes)
    assert after - before < 60_000_000


def send_for_ever(socket: Socket) -> None:
    """More than all buffers on the way hold."""
    for _ in range(1_000_000):
        socket.connection.send("?" * 100)


# The drain.  What stands below ends the servers of this file.


def test_a_stopping_server_ends_what_it_has_begun_and_takes_no_more(
    socket_server: Server, clips: dict[str, Path]
) -> None:
    server = socket_server
    family = psutil.Process(server.process.pid).children(recursive=True)
    with HoldingHost(clips["one"]) as host, open_socket(server) as idle, open_socket(server) as busy:
        busy.ask("a", host.url)
        assert host.was_asked.wait(TIMEOUT)
        server.process.send_signal(signal.SIGTERM)
        assert idle.closed() == (1012, []), "an idle socket is closed at once"
        busy.ask("b", clips["one"])
        error = busy.until("error")
        assert (error["id"], error["error"]["code"], error["error"]["type"]) == ("b", "draining", "server_error")
        host.may_send.set()
        code, received = busy.closed()
        assert code == 1012
        assert (received[-1]["type"], received[-1]["id"], received[-1]["text"]) == ("done", "a", ONE)
    is_gone(server, family)


def is_gone(server: Server, family: list[psutil.Process]) -> None:
    assert server.process.wait(TIMEOUT) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, alive
    assert "Traceback" not in server.log.read_text()


def test_an_answer_that_outlasts_the_drain_ends_with_what_there_is(hasty: Server, clips: dict[str, Path]) -> None:
    server = hasty
    family = psutil.Process(server.process.pid).children(recursive=True)
    with TricklingHost() as host, open_socket(server) as socket:
        socket.ask("a", clips["two"], max_tokens=20_000, ignore_eos=True)
        socket.ask("b", host.url)
        assert host.was_asked.wait(TIMEOUT)
        socket.until("delta")
        server.process.send_signal(signal.SIGTERM)
        code, received = socket.closed()
        assert code == 1012
        ends = {event["id"]: event for event in received if event["type"] in LAST}
        assert {name: end["finish_reason"] for name, end in ends.items()} == {"a": "abort", "b": "abort"}
        assert ends["a"]["text"].startswith("A red circle")
    is_gone(server, family)
