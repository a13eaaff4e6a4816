"""A real HTTP server that receives webhooks: it records what came, and answers as it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - the scheme's published example
WAIT_SECONDS = 60.0


@dataclass
class Received:
    """One message as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """What came so far, and what is answered next: statuses in order, the last one for ever."""

    port: int
    statuses: list[int]
    go_up: Callable[[], None]
    headers: dict[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def wait_for(self, number: int) -> list[Received]:
        """Until as many have come."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.received) >= number, WAIT_SECONDS), self.received
            return list(self.received)

    def take(self, received: Received) -> int:
        with self.arrived:
            self.received.append(received)
            self.arrived.notify_all()
            return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


@contextmanager
def receiver(
    *statuses: int, host: str = "127.0.0.1", is_slow: bool = False, is_down: bool = False, **headers: str
) -> Iterator[Receiver]:
    """A receiver on a free port.

    Args:
        statuses: what it answers; 204 by default.
        host: of which address.
        is_slow: answers only when it may.
        is_down: has its port, but refuses connections until it goes up.
        headers: of its answers, with underscores.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            given = {name.lower(): value for name, value in self.headers.items()}
            status = one.take(Received(self.path, given, body))
            if not one.may_answer.wait(WAIT_SECONDS):
                return
            self.send_response(status)
            for name, value in one.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = False  # nobody else shall have the port while it is down

        def handle_error(self, *_: Any) -> None:
            """The sender has gone, as some tests want."""

    with Server((host, 0), Handler, bind_and_activate=False) as server:
        server.server_bind()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})

        def go_up() -> None:
            server.server_activate()
            thread.start()

        one = Receiver(server.server_port, list(statuses) or [204], go_up, headers)
        if not is_slow:
            one.may_answer.set()
        if not is_down:
            go_up()
        try:
            yield one
        finally:
            one.may_answer.set()
            if thread.is_alive():
                server.shutdown()
                thread.join()
