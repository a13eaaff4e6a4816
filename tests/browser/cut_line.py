"""A line to the server on which a long request stalls after a number of bytes, and breaks when a test says."""

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
        self.has_stalled = threading.Event()
        self._most: int | None = None
        self._is_cut = threading.Event()

    def stall_after(self, num_bytes: int) -> None:
        """Let that many bytes go up by each connection, and then no more."""
        self.has_stalled.clear()
        self._is_cut.clear()
        self._most = num_bytes

    def cut(self) -> None:
        """Break the connections that stall; no other one does from now on."""
        self._most = None
        self._is_cut.set()

    def holds(self, num_bytes: int) -> bool:
        """Whether a connection stalls that so many bytes have gone up by; returns when it is to break."""
        if self._most is None or num_bytes < self._most:
            return False
        self.has_stalled.set()
        self._is_cut.wait()
        return True


class _Connection(socketserver.BaseRequestHandler):
    server: CutLine

    def handle(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self.server.target) as upstream:
            down = threading.Thread(target=_pump, args=(upstream, self.request), daemon=True)
            down.start()
            _pump(self.request, upstream, self.server)
            down.join()


def _pump(source: Any, target: Any, line: CutLine | None = None) -> None:
    num_bytes = 0
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece)
            num_bytes += len(piece)
            if line is not None and line.holds(num_bytes):
                for end in (source, target):
                    end.shutdown(socket.SHUT_RDWR)
                return
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
