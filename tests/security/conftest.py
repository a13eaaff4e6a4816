"""One server with keys, which the tests of this folder share."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forwarded import PROXY
from support import Server, start_server

from demo_model.generator import ClipSpec, Event, encode
from tru_vlm.api.keys import hash_key, new_key


@dataclass(frozen=True)
class KeyedServer:
    """A server, and keys that it knows by the names of their entries."""

    server: Server
    keys: dict[str, str]

    @property
    def base(self) -> str:
        return self.server.base

    def bearer(self, name: str) -> dict[str, str]:
        """The headers of a request with a key."""
        return {"Authorization": f"Bearer {self.keys[name]}"}


ENTRIES: dict[str, dict[str, Any]] = {
    "alice": {},
    "bob": {},
    "bobs-laptop": {"tenant": "bob"},
    "slow": {"requests_per_minute": 2},
    "short": {"video_seconds_per_minute": 5},
    "lonely": {"max_concurrent_requests": 1},
    "socket": {"requests_per_minute": 2},
    "field": {"requests_per_minute": 1},
}


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    """A server with keys from a file, which trusts a proxy and another site's page."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = {name: new_key() for name in ENTRIES}
    lines = [json.dumps({"name": name, "hash": hash_key(keys[name]), **more}) for name, more in ENTRIES.items()]
    (folder / "keys").write_text("# keys of the tests\n" + "\n".join(lines) + "\n")
    server = start_server(
        folder,
        API_KEYS_FILE=str(folder / "keys"),
        ALLOWED_ORIGINS="https://friend.example",
        CLIENT_TIMEOUT_SECONDS="2",
        LOG_LEVEL="debug",
    )
    try:
        yield KeyedServer(server, keys)
    finally:
        server.stop()


@pytest.fixture(scope="session")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without keys, open to the network, which counts addresses, trusts a proxy and has small bounds."""
    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8 on its loopback device")
    folder = tmp_path_factory.mktemp("bounded")
    server = start_server(
        folder,
        HOST="0.0.0.0",
        TRUSTED_PROXIES=PROXY,
        RATE_LIMIT_REQUESTS_PER_MINUTE="2",
        MAX_UPLOAD_BYTES="100000",
        MAX_SOURCE_PIXELS="100000",
        ALLOW_PRIVATE_URLS="false",
    )
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def one_minute() -> None:
    """Begins when the clock's minute has some seconds left.

    Rates are counted in these minutes, and what was counted in the last one fades from its end on: a test that went
    over it would find room for one more.
    """
    if (left := 60.0 - time.time() % 60.0) < 6.0:
        time.sleep(left)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of a red circle."""
    spec = ClipSpec(events=(Event("red", "circle", "moves left"),), duration_seconds=4.0)
    return encode(spec, tmp_path_factory.mktemp("clip") / "clip.mp4")
