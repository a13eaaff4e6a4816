"""On a real server: the paths that probes ask for answer, and the image's health check tells up from down."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests
from manifests import OVERLAYS, container
from support import ROOT, Server, start_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(tmp_path_factory.mktemp("server"))
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def health_check(port: str) -> int:
    script = [sys.executable, ROOT / "deploy/image/health_check.py"]
    environment = {**os.environ, "HOST": "0.0.0.0", "PORT": port}
    return subprocess.run(script, env=environment, timeout=60, check=False, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_probes_paths_answer(overlay: str, server: Server) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = container(overlay)[probe]["httpGet"]["path"]
        assert requests.get(server.base + path, timeout=60).status_code == 200, (probe, path)


def test_the_health_check_tells_up_from_down(server: Server) -> None:
    port = server.base.rsplit(":", 1)[1]
    assert health_check(port) == 0
    assert server.stop() == 0
    assert health_check(port) == 1
