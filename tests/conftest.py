"""One real server for the tests that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import Server, start_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the bundled demo model for the whole session."""
    running = start_server(tmp_path_factory.mktemp("server"))
    try:
        yield running
    finally:
        running.stop()
