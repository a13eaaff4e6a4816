"""The link between the HTTP process and a worker: messages over a Unix socket.  It knows no HTTP and no model.

LitServe's own queues stay unused, because they can neither cancel a request, nor prefer a worker, nor tell that the
other side died (docs/adr/0001).  Here each worker listens on a socket in a private folder and the HTTP process
connects to it, so that

* the death of either side is an end-of-file on the other, at once;
* one message carries what whole steps produced, for all rows;
* an idle worker sleeps in ``select``.

Messages are pickled: both ends are this program, in a folder that only its user can enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tru_vlm.api.workers.outbox import Outbox, StepTime
from tru_vlm.engine.base import EngineDescription, EngineEvent, EngineStats
from tru_vlm.types import WorkerRequest

_HEADER = struct.Struct("!I")
_READ_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Submit:
    """To the worker: take this request in."""

    request: WorkerRequest


@dataclass(frozen=True, slots=True)
class Abort:
    """To the worker: stop this request, wherever it is."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Hello:
    """From the worker, once per connection: who it is and what it loaded."""

    worker_id: int
    pid: int
    description: EngineDescription
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Events:
    """From the worker: what its last steps produced; without any, a look at the engine.

    Attributes:
        events: for all rows, each request's in their order and its tokens as one.
        steps: when each of these steps ended, and the requests that it gave tokens.
        stats: how the engine is.
    """

    events: tuple[EngineEvent, ...]
    steps: tuple[StepTime, ...]
    stats: EngineStats


ToWorker = Submit | Abort
FromWorker = Hello | Events


def socket_path(directory: Path | str, worker_id: int) -> Path:
    """Where worker ``worker_id`` listens."""
    return Path(directory) / f"worker-{worker_id}.sock"


def _pack(message: object) -> bytes:
    body = pickle.dumps(message, protocol=5)
    return _HEADER.pack(len(body)) + body


class _Inbox:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """All messages that ``data`` completes."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(pickle.loads(self._buffer[_HEADER.size : end]))  # noqa: S301 - own process, private folder
            del self._buffer[:end]
        return messages


class _Peer:
    """One connection as the worker sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.inbox = _Inbox()
        self.outbox = Outbox()
        self.outgoing = bytearray()

    def read(self) -> list[ToWorker] | None:
        """Messages that have arrived, or None when the other side is gone."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return self.inbox.feed(data) if data else None

    def flush(self) -> None:
        """Write as much as the socket takes; what remains goes out when it is writable again."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.outgoing:
                del self.outgoing[: self.socket.send(self.outgoing)]


class WorkerLink:
    """The worker's end.  Used from one thread only; never blocks except in :meth:`receive`.

    Args:
        path: where to listen.
        hello: tells what a new connection is greeted with; its look at the engine goes with events too.
    """

    def __init__(self, path: Path, hello: Callable[[], Hello]) -> None:
        self._path = path
        self._hello = hello
        self._told: EngineStats | None = None
        self._told_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, _Peer] = {}
        self._owner: dict[str, _Peer] = {}
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    @property
    def is_connected(self) -> bool:
        """Whether an HTTP process is there."""
        return bool(self._peers)

    def wake(self) -> None:
        """End a :meth:`receive` that sleeps; may be called from a signal handler."""
        self._waker.send(b"w")

    @property
    def seconds_since_told(self) -> float:
        """How long no connection was told how the engine is."""
        return time.monotonic() - self._told_at

    def receive(self, timeout_seconds: float | None) -> list[ToWorker]:
        """Messages that have arrived, waiting up to ``timeout_seconds`` for one (None: for ever, 0: not at all).

        When the HTTP process is gone its requests come back as :class:`Abort`, so that nothing runs for nobody.
        """
        messages: list[ToWorker] = []
        for key, mask in self._selector.select(timeout_seconds):
            if key.fileobj is self._listener:
                self._accept()
                continue
            if key.fileobj is self._woken:
                self._woken.recv(_READ_BYTES)
                continue
            peer = self._peers[key.fileobj]  # type: ignore[index]
            if mask & selectors.EVENT_WRITE:
                self._send(peer)
            if mask & selectors.EVENT_READ:
                messages += self._read(peer)
        return messages

    def send(self, events: Sequence[EngineEvent]) -> None:
        """A step has ended: each event goes to the connection its request came from, at once or with the next steps'.

        Events without a connection are dropped.
        """
        now = time.monotonic()
        by_peer: dict[_Peer, list[EngineEvent]] = {}
        for event in events:
            if peer := self._owner.get(event.request_id):
                by_peer.setdefault(peer, []).append(event)
        for peer, batch in by_peer.items():
            peer.outbox.add(batch, now)
            if peer.outbox.is_due(now):
                self._tell(peer)

    def flush(self) -> None:
        """Nothing waits for the next steps any more."""
        for peer in self._peers.values():
            if peer.outbox:
                self._tell(peer)

    def report(self) -> None:
        """Tell every connection how the engine is, if it is not as it was told last."""
        if self._hello().stats != self._told:
            for peer in self._peers.values():
                self._tell(peer)

    def forget(self, request_id: str) -> None:
        """The request has had its last event."""
        self._owner.pop(request_id, None)

    def close(self) -> None:
        """Close every connection and remove the socket."""
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._selector.close()
        for own in (self._listener, self._woken, self._waker):
            own.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        peer = self._peers[connection] = _Peer(connection)
        self._selector.register(connection, selectors.EVENT_READ)
        peer.outgoing += _pack(self._hello())
        self._send(peer)

    def _read(self, peer: _Peer) -> list[ToWorker]:
        messages = peer.read()
        if messages is None:
            return self._drop(peer)
        for message in messages:
            if isinstance(message, Submit):
                self._owner[message.request.id] = peer
        return messages

    def _tell(self, peer: _Peer) -> None:
        self._told, self._told_at = self._hello().stats, time.monotonic()
        peer.outgoing += _pack(Events(*peer.outbox.empty(self._told_at), self._told))
        self._send(peer)

    def _send(self, peer: _Peer) -> None:
        peer.flush()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.outgoing else 0)
        if self._selector.get_key(peer.socket).events != wanted:
            self._selector.modify(peer.socket, wanted)

    def _drop(self, peer: _Peer) -> list[ToWorker]:
        self._selector.unregister(peer.socket)
        self._peers.pop(peer.socket)
        peer.socket.close()
        orphans = [request_id for request_id, owner in self._owner.items() if owner is peer]
        for request_id in orphans:
            del self._owner[request_id]
        return [Abort(request_id) for request_id in orphans]


class WorkerConnection:
    """The HTTP process's end of one link, in asyncio."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, path: Path) -> WorkerConnection:
        """Connect.

        Raises:
            OSError: if no worker listens at ``path`` (yet).
        """
        return cls(*await asyncio.open_unix_connection(str(path)))

    def send(self, message: ToWorker) -> None:
        """Queue a message for sending."""
        self._writer.write(_pack(message))

    async def receive(self) -> FromWorker | None:
        """The next message, or None when the worker is gone."""
        try:
            (length,) = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        message: FromWorker = pickle.loads(body)  # noqa: S301 - own process, private folder
        return message

    def close(self) -> None:
        """Close the connection; the worker aborts what it still holds of ours."""
        self._writer.close()
