"""The tools for assistants at /mcp, spoken to with the official SDK: behind the door, with each client's own key."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import requests
from client import QUESTION, TIMEOUT
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_talk import use_every_tool
from support import SERVER, START_SECONDS, Server, free_port, start_server
from watching import Brake, health, wait_until

from tru_vlm.api.keys import hash_key, new_key


@dataclass(frozen=True)
class Offered:
    """A server that offers the tools, and its keys by name."""

    server: Server
    keys: dict[str, str]

    def bearer(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[name]}"}


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offered]:
    folder = tmp_path_factory.mktemp("mcp")
    keys = {name: new_key() for name in ("alice", "bob")}
    entries = [{"name": name, "hash": hash_key(key)} for name, key in keys.items()]
    running = start_server(folder, MCP_ENDPOINT="true", API_KEYS=json.dumps(entries))
    yield Offered(running, keys)
    running.stop()


@pytest.fixture(scope="module")
def video_id(offered: Offered, clips: dict[str, Path]) -> str:
    """A video that alice keeps."""
    with clips["one"].open("rb") as file:
        response = requests.post(
            f"{offered.server.base}/v1/videos", files={"video": file}, headers=offered.bearer("alice"), timeout=TIMEOUT
        )
    return response.json()["id"]


@asynccontextmanager
async def assistant(offered: Offered, name: str, *, mode: str = "auto") -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(headers=offered.bearer(name), timeout=TIMEOUT) as http:
        transport = streamable_http_client(f"{offered.server.base}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_kept_video_is_asked_about_with_progress(offered: Offered, video_id: str, mode: str) -> None:
    async def talk() -> None:
        async with assistant(offered, "alice", mode=mode) as client:
            await use_every_tool(client, video_id)

    asyncio.run(talk())


def test_what_goes_wrong_is_told_and_no_file_of_the_server_is_read(
    offered: Offered, video_id: str, clips: dict[str, Path]
) -> None:
    async def talk() -> None:
        async with assistant(offered, "alice") as client:
            for arguments, words in (
                ({"video": str(clips["one"]), "question": "?"}, "http:// or https://"),
                ({"video": "file:///etc/passwd", "question": "?"}, "http:// or https://"),
                ({"video": "0" * 64, "question": "?"}, "0000"),
                ({"video": video_id, "question": "?", "video_start": 100}, "video_start"),
            ):
                result = await client.call_tool("ask_video", arguments)
                assert result.is_error
                assert words in result.content[0].text
        async with assistant(offered, "bob") as client:
            result = await client.call_tool("ask_video", {"video": video_id, "question": "?"})
            assert result.is_error, "another tenant's video"

    asyncio.run(talk())


@pytest.mark.parametrize("leave", ["cancels", "closes its stream"])
@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_who_leaves_a_call_is_not_worked_for(offered: Offered, video_id: str, mode: str, leave: str) -> None:
    key = offered.bearer("alice")

    def num_open() -> int:
        return int(health(offered.server, key)["queue"]["num_open"])

    async def talk() -> None:
        has_begun = asyncio.Event()

        async def on_progress(_value: float, _total: float | None, message: str | None) -> None:
            if message == "prefilling":
                has_begun.set()

        async with AsyncExitStack() as client_stack:
            client = await client_stack.enter_async_context(assistant(offered, "alice", mode=mode))
            call = asyncio.create_task(
                client.call_tool("ask_video", {"video": video_id, "question": QUESTION}, progress_callback=on_progress)
            )
            await asyncio.wait_for(has_begun.wait(), TIMEOUT)
            assert await asyncio.to_thread(num_open) == 1
            if leave == "cancels":
                call.cancel()
            else:
                await client_stack.aclose()
            await asyncio.gather(call, return_exceptions=True)
            await asyncio.to_thread(wait_until, lambda: num_open() == 0)
            if leave == "cancels":
                assert not (await client.call_tool("list_models", {})).is_error

    with Brake(offered.server, key):  # so that nothing ends by itself
        asyncio.run(talk())
    wait_until(lambda: not any(w["stats"]["kv_cache_used_tokens"] for w in health(offered.server, key)["workers"]))


def test_without_the_package_the_server_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.modules["mcp"] = None  # as if it was not installed\n')
    own = {"MCP_ENDPOINT": "true", "PYTHONPATH": str(tmp_path), "STORAGE_DIR": str(tmp_path), "PORT": str(free_port())}
    ended = subprocess.run(
        SERVER,
        cwd=tmp_path,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert ended.returncode != 0
    said = ended.stdout + ended.stderr
    assert "MCP_ENDPOINT=true: the package mcp is not installed. Install it: pip install 'tru-vlm[mcp]'." in said
    assert "Traceback" not in said


def test_the_door_is_before_it(offered: Offered, server: Server) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    accept = {"Accept": "application/json, text/event-stream"}
    address = f"{offered.server.base}/mcp"
    assert requests.post(address, json=call, headers=accept, timeout=TIMEOUT).status_code == 401
    wrong = {**accept, "Authorization": "Bearer tru-none"}
    assert requests.post(address, json=call, headers=wrong, timeout=TIMEOUT).status_code == 401
    foreign = {**accept, **offered.bearer("alice"), "Origin": "https://evil.example"}
    assert requests.post(address, json=call, headers=foreign, timeout=TIMEOUT).status_code == 403
    assert requests.post(f"{server.base}/mcp", json=call, headers=accept, timeout=TIMEOUT).status_code == 404, "off"
