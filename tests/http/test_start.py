"""How a server starts: what it says of itself while a model loads, and that it looks unused once it is up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from client import TIMEOUT, upload
from scraping import scrape
from support import SERVER, Server, free_port
from watching import health, wait_until

HELD = """
import importlib, os, sys
with open(os.environ["TEST_GATE"]) as gate:  # waits until somebody opens it to write
    gate.read()
sys.path.remove(os.environ["PYTHONPATH"])
del sys.modules["bitsandbytes"]
importlib.import_module("bitsandbytes")
"""
"""In the place of bitsandbytes, which a worker imports when it has read the weights."""


@pytest.fixture
def loading(tmp_path: Path) -> Iterator[Server]:
    """A server whose worker has read its weights, and does not go on before the file ``gate`` is written to."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "bitsandbytes.py").write_text(HELD)
    os.mkfifo(tmp_path / "gate")
    port = free_port()
    own = {
        "PORT": str(port),
        "STORAGE_DIR": str(tmp_path / "storage"),
        "QUANTIZATION": "int4",
        "DEVICE": "cpu",
        "PYTHONPATH": str(tmp_path / "modules"),
        "TEST_GATE": str(tmp_path / "gate"),
    }
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            SERVER, cwd=tmp_path, env={**os.environ, **own}, stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(f"http://127.0.0.1:{port}", process, log, tmp_path / "storage")
    try:
        wait_until(lambda: ready(server) == (503, {"status": "loading", "weights_loaded": 1.0}))
        yield server
    finally:
        process.kill()
        process.wait(TIMEOUT)


def ready(server: Server) -> tuple[int, dict[str, object]]:
    assert server.process.poll() is None, server.log.read_text()
    with contextlib.suppress(requests.ConnectionError):
        answer = requests.get(server.base + "/v1/health/ready", timeout=TIMEOUT)
        return answer.status_code, answer.json()
    return 0, {}


def test_a_server_that_loads_says_so_and_then_looks_unused(
    loading: Server, tmp_path: Path, clips: dict[str, Path]
) -> None:
    assert requests.get(loading.base + "/v1/health/live", timeout=TIMEOUT).status_code == 200
    assert requests.get(loading.base + "/v1/health", timeout=TIMEOUT).status_code == 503
    assert requests.get(loading.base + "/health", timeout=TIMEOUT).status_code == 503
    assert requests.get(loading.base + "/", timeout=TIMEOUT).status_code == 200
    whole = health(loading)
    (worker,) = whole["workers"]
    assert (whole["status"], worker["state"], worker["weights_loaded"]) == ("unavailable", "loading", 1.0)
    assert scrape(loading.base).value("worker_state", state="ready") == 0
    (tmp_path / "gate").write_text("go on")
    wait_until(lambda: ready(loading) == (200, {"status": "ok"}))
    (worker,) = health(loading)["workers"]
    assert (worker["state"], worker["weights_loaded"]) == ("ready", 1.0)
    # It has answered a question of its own, and nothing tells of it.
    counters = ["num_steps", "num_prompt_tokens", "num_generated_tokens", "num_computed_prompt_tokens"]
    counters += [name for name in worker["stats"] if name.startswith(("prefix_cache_", "mm_cache_"))]
    assert len(counters) == 12
    assert [worker["stats"][name] for name in counters] == [0] * 12
    of_model = [sample for sample in scrape(loading.base).samples if "model_name" in sample.labels]
    counted = [sample for sample in of_model if sample.name.endswith(("_total", "_count"))]
    assert len(counted) > 10
    assert not [sample for sample in counted if sample.value]
    assert ", warmed up in " in loading.log.read_text()
    assert upload(loading.base, clips["one"], temperature=0).json()["text"].startswith("A red circle")
    assert loading.stop() == 0


def test_a_server_that_is_stopped_while_it_loads_leaves_nothing(loading: Server) -> None:
    family = psutil.Process(loading.process.pid).children(recursive=True)
    assert len(family) >= 4
    loading.process.send_signal(signal.SIGTERM)
    assert loading.process.wait(TIMEOUT) == 0
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, alive
    assert "Traceback" not in loading.log.read_text()
