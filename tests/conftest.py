"""One real server for the tests that need it, and the options of the fuzz run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import requests
from hypothesis import HealthCheck, settings
from support import STOP_SECONDS, Server, start_server

# How fast an example is made or run says how busy the machine is.  What CI tries is the same each time: examples by
# chance are for who runs the tests while changing something.
settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("TRU_CI_STRICT") == "1",
)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzz", "damaged files (tests/video/test_fuzz.py)")
    group.addoption("--fuzz-files", type=int, default=250, help="how many to decode (default: 250)")
    group.addoption("--fuzz-seed", type=int, default=1, help="which ones (default: 1)")
    group.addoption("--fuzz-only", type=int, metavar="NUMBER", help="only this one")


def pytest_report_header(config: pytest.Config) -> str:
    return f"fuzz: {config.option.fuzz_files} files, seed {config.option.fuzz_seed}"


SHARED: pytest.StashKey[Server] = pytest.StashKey()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Server]:
    """One server with the bundled demo model for the whole session."""
    running = start_server(tmp_path_factory.mktemp("server"))
    pytestconfig.stash[SHARED] = running
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module", autouse=True)
def _leaves_nothing_kept(pytestconfig: pytest.Config) -> Iterator[None]:
    """What a file's tests kept on the shared server is gone for the next file, whichever that is."""
    yield
    if (shared := pytestconfig.stash.get(SHARED, None)) is None or shared.process.poll() is not None:
        return
    deadline = time.monotonic() + STOP_SECONDS
    for kind in ("chats", "jobs", "videos"):
        while found := requests.get(f"{shared.base}/v1/{kind}?limit=100", timeout=STOP_SECONDS).json()["data"]:
            for thing in found:  # of a job that has not ended, this is only the end
                requests.delete(f"{shared.base}/v1/{kind}/{thing['id']}", timeout=STOP_SECONDS)
            assert time.monotonic() < deadline, f"what {kind} there are does not go: {found}"
