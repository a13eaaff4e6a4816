"""An assistant's side: `tru-vlm mcp` as a process, spoken to with the official SDK."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from leaving import Leaving
from mcp import Client, StdioServerParameters
from mcp_talk import use_every_tool
from support import ROOT, Server

QUESTION = "What happens in this video?"
ANSWER = "A red circle moves left."


@asynccontextmanager
async def assistant(base: str) -> AsyncIterator[Client]:
    """As examples/mcp.json configures it, but for the interpreter and the address."""
    (config,) = json.loads((ROOT / "examples" / "mcp.json").read_text())["mcpServers"].values()
    assert config["command"] == "tru-vlm"
    assert config["env"].keys() == {"TRU_BASE_URL"}
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "tru_vlm", *config["args"]],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRU_BASE_URL": base},
    )
    async with Client(parameters) as client:
        yield client


def test_tools_answer_with_progress(server: Server, clip: Path) -> None:
    async def talk() -> list[str]:
        async with assistant(server.base) as client:
            return await use_every_tool(client, str(clip))

    assert "decoding" in asyncio.run(talk())


def test_what_goes_wrong_is_told_in_a_sentence(server: Server, clip: Path, tmp_path: Path) -> None:
    async def talk() -> None:
        async with assistant(server.base) as client:
            for arguments, words in (
                ({"video": str(tmp_path / "none.mp4"), "question": "?"}, "none.mp4"),
                ({"video": str(clip), "question": "?", "video_start": 100}, "video_start"),
                ({"video": str(clip), "question": "?", "fps": -1}, "fps"),
            ):
                result = await client.call_tool("ask_video", arguments)
                assert result.is_error
                assert words in result.content[0].text
        async with assistant("http://127.0.0.1:9") as client:
            result = await client.call_tool("list_models", {})
            assert result.is_error
            assert "Cannot reach" in result.content[0].text

    asyncio.run(talk())


def test_cancelling_a_call_stops_the_server_s_work(server: Server, clip: Path) -> None:
    async def talk() -> None:
        has_begun = asyncio.Event()

        async def on_progress(_value: float, _total: float | None, message: str | None) -> None:
            if message == "prefilling":
                has_begun.set()

        leaving = Leaving(server)
        async with assistant(server.base) as client:
            with ExitStack() as stack:
                stack.enter_context(leaving.during("prefilling"))
                asked = {"video": str(clip), "question": QUESTION}
                call = asyncio.create_task(client.call_tool("ask_video", asked, progress_callback=on_progress))
                await asyncio.wait_for(has_begun.wait(), 60)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                assert call.cancelled()
                await asyncio.to_thread(stack.close)  # this loop has to tell the assistant's process meanwhile
            assert not (await client.call_tool("list_models", {})).is_error

    asyncio.run(talk())
