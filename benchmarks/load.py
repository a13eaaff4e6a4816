"""A load on one server: so many questions at once, and what came of each. Knows neither servers nor tables."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import httpx
from contenders import Ask, Piece, Question

TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Outcome:
    """One question's answer. Times in seconds from when it was sent; ``error`` is set when it failed."""

    first_token_seconds: float
    total_seconds: float
    prompt_tokens: int | None
    completion_tokens: int | None
    text: str
    error: str | None = None


async def ask_once(client: httpx.AsyncClient, ask: Ask, question: Question) -> Outcome:
    """One question to its end."""
    begin = time.perf_counter()
    first: float | None = None
    text, prompt_tokens, completion_tokens = "", None, None
    try:
        async for piece in ask(client, question):
            if piece.text and first is None:
                first = time.perf_counter() - begin
            text += piece.text
            prompt_tokens = piece.prompt_tokens or prompt_tokens
            completion_tokens = piece.completion_tokens or completion_tokens
    except (httpx.HTTPError, RuntimeError, OSError) as error:
        return Outcome(0.0, time.perf_counter() - begin, None, None, text, f"{type(error).__name__}: {error}")
    total = time.perf_counter() - begin
    return Outcome(first or total, total, prompt_tokens, completion_tokens, text)


async def run_load(base: str, ask: Ask, questions: Sequence[Question], num_at_once: int) -> tuple[float, list[Outcome]]:
    """All questions, ``num_at_once`` under way at any time. Returns wall seconds and the outcomes in order."""
    waiting = iter(enumerate(questions))
    outcomes: dict[int, Outcome] = {}
    limits = httpx.Limits(max_connections=num_at_once)
    async with httpx.AsyncClient(base_url=base, timeout=TIMEOUT_SECONDS, limits=limits) as client:

        async def worker() -> None:
            for number, question in waiting:
                outcomes[number] = await ask_once(client, ask, question)

        begin = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(num_at_once)))
        wall = time.perf_counter() - begin
    return wall, [outcomes[number] for number in range(len(questions))]


async def first_piece(pieces: AsyncIterator[Piece]) -> Piece | None:
    """The first text of an answer, after which the caller may leave."""
    async for piece in pieces:
        if piece.text:
            return piece
    return None


def spread(values: Sequence[float], show: Callable[[float], str] = "{:.2f}".format) -> str:
    """Median and range, as tables print them."""
    if not values:
        return "-"
    return f"{show(statistics.median(values))} ({show(min(values))} to {show(max(values))})"
