"""What the HTTP tests see of a server from outside: its health, what requests hold, and hosts that it fetches from."""

from __future__ import annotations

import http.server
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import requests
from client import TIMEOUT
from support import Server


def health(server: Server, headers: dict[str, str] | None = None) -> dict[str, Any]:
    response = requests.get(server.base + "/v1/health/detailed", headers=headers, timeout=TIMEOUT)
    body: dict[str, Any] = response.json()
    return body


def held(server: Server) -> dict[str, int]:
    """Everything that a request can hold."""
    body = health(server)
    engines = [worker["stats"] for worker in body["workers"] if worker["stats"]]
    pool, cache = body["video"]["pool"], body["video"]["cache"]
    return {
        "places": body["queue"]["num_open"] + body["queue"]["num_waiting"] + body["queue"]["num_running"],
        "rows": sum(engine["num_running"] + engine["num_waiting"] for engine in engines),
        "tokens of the KV cache": sum(engine["kv_cache_used_tokens"] for engine in engines),
        "decode processes": pool["num_busy"] + pool["num_waiting"],
        "leases on frames": cache["num_leases"],
        "spooled files": sum(path.name != ".lock" for path in (server.storage / "spool").rglob("*") if path.is_file()),
    }


def num_generated(server: Server) -> int:
    return sum(worker["stats"]["num_generated_tokens"] for worker in health(server)["workers"])


def num_steps(server: Server) -> int:
    return sum(worker["stats"]["num_steps"] for worker in health(server)["workers"])


def wait_until(condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def settle(server: Server) -> None:
    """Wait until nothing is left of earlier tests' requests, whose clients may just have gone."""
    wait_until(lambda: not any(count for name, count in held(server).items() if name != "spooled files"))


class Brake:
    """Holds a server's workers still, so that what runs is running for as long as a test looks at it.

    Without it, an answer of many tokens would race with the test: it ends sooner on a fast machine, and the test comes
    later on a busy one.  Made before the answer begins, since it asks the server who its workers are.
    """

    def __init__(self, server: Server, headers: dict[str, str] | None = None) -> None:
        self._pids = [worker["pid"] for worker in health(server, headers)["workers"]]

    def __enter__(self) -> Self:
        self._send(signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):  # a test may kill it
                os.kill(pid, number)


def decode_child(server: Server) -> psutil.Process:
    """The one decode process: the youngest fork of the template, with its command line."""
    wait_until(lambda: health(server)["video"]["pool"]["num_processes"] == 1)
    templates: list[tuple[float, psutil.Process]] = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that a test had killed goes meanwhile
            if "tru_vlm.video.decode_template" in process.cmdline():
                templates.append((process.create_time(), process))
    assert len(templates) >= 2, templates
    return max(templates, key=lambda found: found[0])[1]


class _QuietHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class _Host:
    """A web server with one clip."""

    def __init__(self, handler: type[_QuietHandler]) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/clip.mp4"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class TricklingHost(_Host):
    """A web server that sends a video, a byte at a time, until the other side leaves; never idle for long."""

    def __init__(self) -> None:
        self.was_asked, self.was_left = threading.Event(), threading.Event()
        host = self

        class Handler(_QuietHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                host.was_asked.set()
                with suppress(ConnectionError):
                    while not select.select([self.connection], [], [], 0.05)[0]:
                        self.wfile.write(b"\0")
                host.was_left.set()
                self.close_connection = True

        super().__init__(Handler)


class HoldingHost(_Host):
    """A web server that sends a clip when it is told to."""

    def __init__(self, clip: Path) -> None:
        self.was_asked, self.may_send = threading.Event(), threading.Event()
        self.num_asked = 0
        host, content = self, clip.read_bytes()

        class Handler(_QuietHandler):
            def do_GET(self) -> None:
                host.num_asked += 1
                host.was_asked.set()
                host.may_send.wait(TIMEOUT)
                with suppress(ConnectionError):  # who asked may have been killed
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

        super().__init__(Handler)

    def __exit__(self, *_: object) -> None:
        self.may_send.set()
        super().__exit__()


def files_below(folder: Path) -> list[Path]:
    """What lies in a folder of the server's, locks aside."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
