"""A line to the server that stalls after a number of bytes, and breaks where a test says."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import Any

_PIECE_BYTES = 1 << 14


class CutLine(socketserver.ThreadingTCPServer):
    """Passes bytes on between its own port and a server's."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, server_base: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        host, port = server_base.removeprefix("http://").split(":")
        self.target = (host, int(port))
        self.base = f"http://127.0.0.1:{self.server_address[1]}"
        self._left: int | None = None
        self._sockets: set[socket.socket] = set()
        self._is_open = threading.Event()
        self._is_open.set()

    def stall_after(self, num_bytes: int) -> None:
        """Let that many bytes go up, and then no more."""
        self._left = num_bytes

    def cut(self) -> None:
        """Close every connection; those that come after get through."""
        self._left = None
        sockets, self._sockets = self._sockets, set()
        for end in sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._is_open.set()

    def hold(self, end: socket.socket) -> None:
        """Count a socket among those that are closed."""
        self._sockets.add(end)

    def spend(self, num_bytes: int) -> None:
        """Note that bytes have gone up; waits where they were the last that may."""
        if self._left is not None:
            self._left -= num_bytes
            if self._left <= 0:
                self._is_open.clear()
        self._is_open.wait()


class _Connection(socketserver.BaseRequestHandler):
    server: CutLine

    def handle(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self.server.target) as upstream:
            for end in (self.request, upstream):
                self.server.hold(end)
            down = threading.Thread(target=_pump, args=(upstream, self.request, None), daemon=True)
            down.start()
            _pump(self.request, upstream, self.server)
            down.join()


def _pump(source: Any, target: Any, line: CutLine | None) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece)
            if line is not None:
                line.spend(len(piece))
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
