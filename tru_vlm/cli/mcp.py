"""``tru-vlm mcp``: a running server's tools for an assistant, over stdin and stdout."""

from __future__ import annotations

import asyncio
import importlib.util

import typer

from tru_vlm.cli import arguments as a
from tru_vlm.cli.output import FAILED, stderr
from tru_vlm.client import AsyncClient


def mcp(*, base_url: a.BaseUrl = a.DEFAULT_BASE_URL, api_key: a.ApiKey = None) -> None:
    """Offer ask_video, plan_video and list_models to an assistant over MCP (stdio)."""
    if importlib.util.find_spec("mcp") is None:
        stderr.print("The package mcp is not installed. Install it: pip install 'tru-vlm[mcp]'.", markup=False)
        raise typer.Exit(FAILED)
    asyncio.run(_serve(base_url, api_key))


async def _serve(base_url: str, api_key: str | None) -> None:
    from tru_vlm.assistants import ClientBackend, build_mcp_server

    async with AsyncClient(base_url, api_key=api_key) as client:
        await build_mcp_server(ClientBackend(client)).run_stdio_async()
