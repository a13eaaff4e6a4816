"""An installed wheel is whole: page, static files and demo model come with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from support import ROOT, start_server

TIMEOUT = 300


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of this tree, unpacked as pip does it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True, timeout=TIMEOUT)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, timeout=TIMEOUT)
    return site


def test_training_code_stays_out(site: Path) -> None:
    assert (site / "demo_model" / "weights" / "model.safetensors").is_file()
    assert not (site / "demo_model" / "training").exists()


def test_the_wheel_serves_the_page_and_loads_the_demo_model(site: Path, tmp_path: Path) -> None:
    server = start_server(tmp_path, command=(sys.executable, "-m", "tru_vlm"), PYTHONPATH=str(site))
    try:
        page = requests.get(server.base + "/", timeout=TIMEOUT)
        assert page.status_code == 200
        assert "demo" in page.text
        assert requests.get(server.base + "/static/docs.js", timeout=TIMEOUT).status_code == 200
        environment = Path(f"/proc/{server.process.pid}/environ").read_bytes() if os.name == "posix" else b""
        assert str(site).encode() in environment
    finally:
        assert server.stop() == 0
