"""The examples run as printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, Server

TIMEOUT = 120


def run(*command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # this tree's package, whatever is installed
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_curl(server: Server, clips: dict[str, Path]) -> None:
    output = run("bash", "examples/ask.sh", str(clips["two"]), server.base)
    assert output.count("A red circle moves left.") >= 2
    assert "event: done" in output
    assert '"status":"ok"' in output.replace(" ", "")


@pytest.mark.parametrize(
    "name",
    [
        "ask_requests.py",
        "ask_openai.py",
        "ask_socket.py",
        "litserve_client.py",
        "ask_client.py",
        "ask_client_async.py",
    ],
)
def test_python(server: Server, clips: dict[str, Path], name: str) -> None:
    output = run(sys.executable, f"examples/{name}", str(clips["one"]), "What happens in this video?", server.base)
    assert "A red circle moves left." in output


def test_python_tells_an_error(server: Server, clips: dict[str, Path]) -> None:
    result = subprocess.run(
        [sys.executable, "examples/ask_requests.py", str(clips["text"]), "What?", server.base],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode != 0
    assert "41" in result.stderr
