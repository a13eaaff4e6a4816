"""What an assistant does with every tool, however it speaks to the server."""

from __future__ import annotations

import json

from client import QUESTION
from mcp import Client


async def use_every_tool(client: Client, video: str) -> list[str]:
    """Ask about a clip with a red circle, plan it, list the models; returns the messages of the question's progress."""
    progress: list[tuple[float, str | None]] = []

    async def on_progress(value: float, _total: float | None, message: str | None) -> None:
        progress.append((value, message))

    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert tools.keys() == {"ask_video", "plan_video", "list_models"}
    assert tools["ask_video"].input_schema["required"] == ["video", "question"]
    assert tools["plan_video"].input_schema["required"] == ["video"]
    asked = {"video": video, "question": QUESTION, "max_tokens": 12}
    answer = await client.call_tool("ask_video", asked, progress_callback=on_progress)
    assert not answer.is_error, answer
    assert json.loads(answer.content[0].text)["text"].startswith("A red circle")
    plan = await client.call_tool("plan_video", {"video": video, "max_frames": 4})
    assert json.loads(plan.content[0].text)["sampling"]["num_frames"] == 4
    models = await client.call_tool("list_models", {})
    assert "demo" in models.content[0].text
    values = [value for value, _ in progress]
    assert values == sorted(set(values))
    messages = [message or "" for _, message in progress]
    assert "circle" in "".join(messages)
    return messages
