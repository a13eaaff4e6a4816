"""On a real server: the paths that probes ask for answer, and the image's health check tells up from down."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import requests
from manifests import OVERLAYS, container
from support import ROOT, Server, free_port


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
    assert health_check(server.base.rsplit(":", 1)[1]) == 0
    assert health_check(str(free_port())) == 1, "nobody listens there"
