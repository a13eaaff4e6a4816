"""One client's visit to the server, and how it ended.  Knows no other client, and no faults.

Whatever happens to the server meanwhile, a visit that was accepted has exactly one terminal event; a visit that does
not get it is a :class:`BrokenPromiseError`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import connect

PROMPT = "What happens?"
ANSWER_TOKENS = 32
PATIENCE_SECONDS = 120.0
"""Longer than the server may take for a request; what lasts longer hangs."""


class End(Enum):
    """How a visit ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # the client's fault, and it was told so
    BUSY = "busy"  # 429
    FAILED = "failed"  # the server could not, and said so: a fault was on, or it is starting again
    LEFT = "left"


@dataclass(frozen=True)
class Visit:
    """What a visit came to.  Times are ``time.monotonic()``."""

    kind: str
    end: End
    detail: str
    began: float
    ended: float


class BrokenPromiseError(AssertionError):
    """Something that must not happen whatever the faults."""


@dataclass(frozen=True)
class Files:
    """What visitors bring: clips that are answered, files that are refused, and the id of a clip that is kept."""

    good: list[Path]
    broken: list[Path]
    kept_id: str


Outcome = tuple[End, str]
Behaviour = Callable[[httpx.AsyncClient, Files, random.Random], Awaitable[Outcome]]


async def pays_a_visit(kind: str, client: httpx.AsyncClient, files: Files, rng: random.Random) -> Visit:
    """Visit once.

    Raises:
        BrokenPromiseError: the server broke its word.
    """
    began = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            end, detail = await BEHAVIOURS[kind][1](client, files, rng)
    except TimeoutError:
        raise BrokenPromiseError(f"{kind}: no end within {PATIENCE_SECONDS:g} s") from None
    except httpx.TransportError as error:
        raise BrokenPromiseError(f"{kind}: the connection broke without an answer ({error!r})") from error
    return Visit(kind, end, detail, began, time.monotonic())


async def asks(client: httpx.AsyncClient, files: Files, rng: random.Random) -> Outcome:
    """Uploads a clip and reads the stream to its end."""
    path = rng.choice(files.good)
    return await _stream(client, _form(prompt=f"{PROMPT} {rng.random()}"), await _content(path))


async def asks_about_a_kept_video(client: httpx.AsyncClient, files: Files, rng: random.Random) -> Outcome:
    """By id, for one JSON answer."""
    body = {
        "video_id": files.kept_id,
        "prompt": f"{PROMPT} {rng.random()}",
        "generation_params": {"max_tokens": ANSWER_TOKENS},
    }
    response = await client.post("/v1/inference/url", json=body)
    return _judge(response.status_code, response.json())


async def asks_over_a_socket(client: httpx.AsyncClient, files: Files, rng: random.Random) -> Outcome:
    """Two questions on one WebSocket, the second cancelled."""
    url = str(client.base_url).replace("http", "ws", 1).rstrip("/") + "/v1/inference/ws"
    question = {"type": "request", "video_id": files.kept_id, "generation_params": {"max_tokens": ANSWER_TOKENS}}
    ends: dict[str, dict[str, Any]] = {}
    async with connect(url, open_timeout=PATIENCE_SECONDS, ping_interval=None) as socket:
        for name in "ab":
            await socket.send(json.dumps({**question, "id": name, "prompt": f"{PROMPT} {rng.random()}"}))
        await socket.send(json.dumps({"type": "cancel", "id": "b"}))
        async for message in socket:
            event = json.loads(message)
            if event["type"] not in ("done", "error"):
                continue
            if event["id"] in ends:
                raise BrokenPromiseError(f"socket: a second end of {event['id']}: {event}")
            ends[event["id"]] = event
            if len(ends) == 2:
                break
    if set(ends) != {"a", "b"}:
        raise BrokenPromiseError(f"socket: closed with {2 - len(ends)} questions unanswered")
    return _judge_event(ends["a"]["type"], ends["a"])


async def brings_a_broken_file(client: httpx.AsyncClient, files: Files, rng: random.Random) -> Outcome:
    """Is refused, and told what is wrong."""
    path = rng.choice(files.broken)
    end, detail = await _stream(client, _form(prompt=PROMPT), await _content(path))
    if end is End.ANSWERED:
        raise BrokenPromiseError(f"the broken file {path.name} was answered")
    return end, detail


async def asks_for_too_much(client: httpx.AsyncClient, files: Files, rng: random.Random) -> Outcome:
    """More tokens than the KV cache has, ever."""
    path = rng.choice(files.good)
    end, detail = await _stream(client, _form(prompt="long " * 3000), await _content(path))
    if end is End.ANSWERED:
        raise BrokenPromiseError("a prompt was answered that cannot fit")
    return end, detail


async def uploads_slowly(client: httpx.AsyncClient, files: Files, rng: random.Random) -> Outcome:
    """A little at a time, as a phone on a train does."""
    content = await _content(rng.choice(files.good))
    return await _stream(client, _form(prompt=PROMPT), content, pause_seconds=rng.uniform(0.05, 0.3))


async def leaves(client: httpx.AsyncClient, files: Files, rng: random.Random) -> Outcome:
    """At any moment: in the upload, the queue, the video decode, the prefill or the answer."""
    content = await _content(rng.choice(files.good))
    pause = rng.choice([0.0, 0.0, 0.1])
    try:
        async with asyncio.timeout(rng.uniform(0.02, 2.0)):
            await _stream(client, _form(prompt=f"{PROMPT} {rng.random()}"), content, pause_seconds=pause)
    except (TimeoutError, httpx.TransportError):
        return End.LEFT, ""
    return End.LEFT, "had been answered"


BEHAVIOURS: dict[str, tuple[float, Behaviour]] = {
    "ask": (0.40, asks),
    "kept": (0.10, asks_about_a_kept_video),
    "socket": (0.05, asks_over_a_socket),
    "broken": (0.10, brings_a_broken_file),
    "too much": (0.05, asks_for_too_much),
    "slow": (0.10, uploads_slowly),
    "leave": (0.20, leaves),
}
"""Every kind of visit with its share."""


def _form(**fields: str) -> dict[str, str]:
    return {"stream": "true", "max_tokens": str(ANSWER_TOKENS), **fields}


async def _content(path: Path) -> bytes:
    return await asyncio.to_thread(path.read_bytes)


async def _stream(
    client: httpx.AsyncClient, fields: dict[str, str], content: bytes, *, pause_seconds: float = 0.0
) -> Outcome:
    boundary = "soak-boundary"
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    body = _multipart(boundary, fields, content, pause_seconds)
    async with client.stream("POST", "/v1/inference/upload", content=body, headers=headers) as response:
        if response.status_code != 200:
            return _judge(response.status_code, json.loads(await response.aread()))
        ends: list[tuple[str, dict[str, Any]]] = []
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and ends:
                raise BrokenPromiseError(f"{name} after the end {ends}")
            elif line.startswith("data: ") and name in ("done", "error"):
                ends.append((name, json.loads(line.removeprefix("data: "))))
    if not ends:
        raise BrokenPromiseError("the stream ended without a terminal event")
    return _judge_event(*ends[0])


async def _multipart(boundary: str, fields: dict[str, str], content: bytes, pause: float) -> AsyncIterator[bytes]:
    for name, value in fields.items():
        yield f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    yield (
        f'--{boundary}\r\nContent-Disposition: form-data; name="video"; filename="clip.mp4"\r\n'
        "Content-Type: video/mp4\r\n\r\n"
    ).encode()
    step = max(1, len(content) // 8) if pause else len(content) or 1
    for start in range(0, len(content), step):
        await asyncio.sleep(pause)
        yield content[start : start + step]
    yield f"\r\n--{boundary}--\r\n".encode()


def _judge_event(name: str, data: dict[str, Any]) -> Outcome:
    if name == "done":
        return End.ANSWERED, str(data["finish_reason"])
    return _of_error(data["error"])


def _judge(status: int, body: dict[str, Any]) -> Outcome:
    if status == 200:
        return End.ANSWERED, str(body["finish_reason"])
    return _of_error(body["error"])


def _of_error(error: dict[str, Any]) -> Outcome:
    code = str(error["code"])
    match error["type"]:
        case "invalid_request_error" | "not_found_error":
            return End.REFUSED, code
        case "rate_limit_error":
            return End.BUSY, code
        case _ if code != "internal_error":
            return End.FAILED, code
    raise BrokenPromiseError(f"an error that nobody foresaw: {error}")
