"""The examples run as printed."""

from __future__ import annotations

import base64
import os
import re
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


def test_the_readme_s_openai_client(server: Server, clips: dict[str, Path], tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(from openai.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    clip = "data:video/mp4;base64," + base64.b64encode(clips["one"].read_bytes()).decode()
    script = tmp_path / "readme.py"
    script.write_text(code.replace("http://127.0.0.1:8000", server.base).replace("https://example.com/clip.mp4", clip))
    answer, cached, _ = run(sys.executable, str(script)).split(" ", 2)
    assert answer == "Red."
    assert int(cached) > 0


def test_the_readme_s_own_client(server: Server, clips: dict[str, Path], tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(from tru_vlm.client.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text(code.replace("http://127.0.0.1:8000", server.base).replace("clip.mp4", str(clips["one"])))
    output = run(sys.executable, str(script))
    assert output.count("A red circle moves left.") == 2
    assert "TokenCounts(" in output
