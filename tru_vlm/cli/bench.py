"""``tru-vlm bench``: many questions at once, and how fast the answers come."""

from __future__ import annotations

import asyncio
import functools
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.table import Table

from tru_vlm.cli import arguments as a
from tru_vlm.cli.concurrently import run_bounded
from tru_vlm.cli.output import FAILED, stderr, stdout, tells_errors, write_json
from tru_vlm.client import ApiError, AskOptions, AsyncClient, ClientError, DeltaEvent, DoneEvent, Retries

_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question. Times in seconds from when it was sent; ``error`` is set when it failed."""

    first_token_seconds: float | None = None
    total_seconds: float | None = None
    completion_tokens: int = 0
    error: str | None = None


@tells_errors
def bench(
    video: a.Video,
    question: a.Question = a.DEFAULT_QUESTION,
    *,
    requests: Annotated[int, typer.Option("-n", "--requests", min=1, help="How many questions in all.")] = 32,
    at_once: Annotated[int, typer.Option("-c", "--at-once", min=1, help="How many of them at once.")] = 4,
    fps: a.Fps = None,
    nframes: a.Nframes = None,
    max_tokens: a.MaxTokens = None,
    settings: a.Settings = None,
    as_json: a.AsJson = False,
    base_url: a.BaseUrl = a.DEFAULT_BASE_URL,
    api_key: a.ApiKey = None,
) -> None:
    """Ask the same question many times, and print rates and percentiles; exit status 1 if one failed.

    The server keeps frames, features and prefixes of a video that it has seen: after the first question this measures
    those caches too.
    """
    options = a.options(settings, fps=fps, nframes=nframes, max_tokens=max_tokens)
    with stderr.status(f"{requests} questions, {at_once} at once", spinner="line"):
        # A refusal is a result here: nothing is sent again.
        client = AsyncClient(base_url, api_key=api_key, retries=Retries(max_retries=0))
        ask = functools.partial(_ask, client, video, question, options)
        wall_seconds, outcomes = asyncio.run(_load(client, ask, requests, at_once))
    report = summarise(wall_seconds, outcomes, at_once)
    if as_json:
        write_json(report)
    else:
        _show(report)
    if report["failed"]:
        raise typer.Exit(FAILED)


async def _load(
    client: AsyncClient, ask: Callable[[], Awaitable[Outcome]], num: int, num_at_once: int
) -> tuple[float, list[Outcome]]:
    outcomes: list[Outcome] = []
    async with client:

        async def one(_number: int) -> None:
            outcomes.append(await ask())

        begin = time.perf_counter()
        await run_bounded(range(num), one, num_at_once)
        return time.perf_counter() - begin, outcomes


async def _ask(client: AsyncClient, video: str, question: str, options: AskOptions) -> Outcome:
    begin = time.perf_counter()
    first: float | None = None
    try:
        async with client.stream(video, question, **options) as events:
            async for event in events:
                if isinstance(event, DeltaEvent) and first is None:
                    first = time.perf_counter() - begin
                elif isinstance(event, DoneEvent):
                    return Outcome(first, time.perf_counter() - begin, event.answer.usage.completion_tokens)
    except ClientError as error:
        return Outcome(error=error.code if isinstance(error, ApiError) else type(error).__name__)
    raise AssertionError("a stream ends with its answer or raises")


def summarise(wall_seconds: float, outcomes: list[Outcome], num_at_once: int) -> dict[str, Any]:
    """Rates and percentiles of the questions that were answered; what the others ended with."""
    answered = [outcome for outcome in outcomes if outcome.error is None]
    return {
        "requests": len(outcomes),
        "at_once": num_at_once,
        "failed": len(outcomes) - len(answered),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        "wall_seconds": wall_seconds,
        "requests_per_second": len(answered) / wall_seconds,
        "tokens_per_second": sum(outcome.completion_tokens for outcome in answered) / wall_seconds,
        "time_to_first_token_seconds": _spread([o.first_token_seconds for o in answered]),
        "total_seconds": _spread([o.total_seconds for o in answered]),
    }


def _spread(values: list[float | None]) -> dict[str, float] | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    # quantiles() wants two: one value is each of its own percentiles.
    cuts = statistics.quantiles(known * 2 if len(known) == 1 else known, n=100, method="inclusive")
    return {"mean": statistics.fmean(known), **{f"p{p}": cuts[p - 1] for p in _PERCENTILES}, "max": known[-1]}


def _show(report: dict[str, Any]) -> None:
    stdout.print(
        f"{report['requests']} questions, {report['at_once']} at once, {report['wall_seconds']:.2f} s: "
        f"{report['requests_per_second']:.2f} requests/s, {report['tokens_per_second']:.1f} tokens/s"
    )
    names = ("mean", *(f"p{p}" for p in _PERCENTILES), "max")
    table = Table("seconds", *names)
    for label, key in (("to the first token", "time_to_first_token_seconds"), ("in all", "total_seconds")):
        if spread := report[key]:
            table.add_row(label, *(f"{spread[name]:.3f}" for name in names))
    stdout.print(table)
    for code, count in report["errors"].items():
        stdout.print(f"{count} failed: {code}", style="red", markup=False)
