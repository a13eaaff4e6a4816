"""What tests share: strictness under CI, and a real server in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwen_vl_utils import BackendName, backend_status

ROOT = Path(__file__).parents[1]
# Bounds for what hangs; on a busy machine vLLM needs more than two minutes to start.
START_SECONDS = 400
STOP_SECONDS = 120


def real_clips() -> Path | None:
    """The folder of real clips, ``shared/videos`` in a folder around the project; None where there is none."""
    return next((folder for parent in ROOT.parents if (folder := parent / "shared" / "videos").is_dir()), None)


def require(condition: object, reason: str) -> None:
    """Skip with a reason, or fail with it where CI has promised that nothing is missing."""
    if condition:
        return
    if os.environ.get("TRU_CI_STRICT") == "1":
        pytest.fail(f"CI promises this: {reason}")
    pytest.skip(reason)


def require_vllm() -> None:
    """Skip where vLLM is not installed; `make test-vllm` promises it, and fails."""
    if importlib.util.find_spec("vllm") is not None:
        return
    if os.environ.get("TRU_TEST_VLLM") == "1":
        pytest.fail("`make test-vllm` promises vLLM, and it is not installed")
    pytest.skip("vLLM has an environment of its own: make test-vllm")


def require_reader(name: BackendName) -> None:
    """Skip, or fail under CI, where a video decoder does not load."""
    state = backend_status((name,))[name]
    require(state == "available", f"{state} (torchcodec needs FFmpeg's libraries)")


PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to whoever asks for any: it would give one away before its server has started."""
_given_ports: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and that no other test is given: each process of a run has a share of its own."""
    share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    num_shares = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = random.choice(PORTS[share::num_shares])
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given_ports:
                _given_ports.add(port)
                return port


@dataclass
class Server:
    """A running ``python server.py``."""

    base: str
    process: subprocess.Popen[bytes]
    log: Path
    storage: Path

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


SERVER = (sys.executable, str(ROOT / "server.py"))


def start_server(folder: Path, *, command: tuple[str, ...] = SERVER, **environment: str) -> Server:
    """Start the server on a free port, from a foreign working directory, and wait until it answers."""
    port = free_port()
    own = {"PORT": str(port), "STORAGE_DIR": str(folder / "storage"), "ALLOW_PRIVATE_URLS": "true"}
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **own, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log, folder / "storage")
    _wait_until_ready(server)
    return server


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.base}/v1/health", timeout=5):
            return
        time.sleep(0.1)
    server.process.kill()
    server.process.wait()
    raise RuntimeError(f"the server did not start:\n{server.log.read_text()}")
