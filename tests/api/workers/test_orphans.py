"""A worker that loads ends with its server; one that has loaded is its loop's business."""

from __future__ import annotations

import subprocess
import sys

import psutil
from support import ROOT

GONE_SECONDS = 60

LOADING = """
import os, sys, time
from tru_vlm.api.workers.orphans import ends_with_parent
with ends_with_parent(os.getppid()):
    if "loaded" not in sys.argv:
        print(os.getpid(), flush=True)
        time.sleep(600)
print(os.getpid(), flush=True)
time.sleep(600)
"""
SERVER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def orphan(*arguments: str) -> psutil.Process:
    """A worker whose server has been killed."""
    server = subprocess.Popen([sys.executable, "-c", SERVER, LOADING, *arguments], stdout=subprocess.PIPE, cwd=ROOT)
    assert server.stdout is not None
    with server.stdout as told:
        worker = psutil.Process(int(told.readline()))
    server.kill()
    server.wait()
    return worker


def test_a_worker_that_loads_ends_with_its_server() -> None:
    _, alive = psutil.wait_procs([orphan()], timeout=GONE_SECONDS)
    assert not alive


def test_nothing_is_watched_afterwards() -> None:
    loaded, loading = orphan("loaded"), orphan()
    _, alive = psutil.wait_procs([loading], timeout=GONE_SECONDS)
    assert not alive
    assert loaded.is_running()
    loaded.kill()
