"""What these tests share: both clients, on a real server, and its clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from clients import KINDS
from support import ROOT, Server

SAMPLES = ROOT / "static" / "samples"
Connect = Callable[..., Any]


@pytest.fixture(scope="session")
def clip() -> Path:
    """A red circle that moves left."""
    return SAMPLES / "red-circle.mp4"


@pytest.fixture(params=sorted(KINDS))
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a client of either kind, and closes it."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(KINDS[request.param](*args, **kwargs))


@pytest.fixture
def client(connect: Connect, server: Server) -> Any:
    """A client of the real server."""
    return connect(server.base)
