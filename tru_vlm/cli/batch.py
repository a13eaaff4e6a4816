"""``tru-vlm batch``: many questions from a file, results into a file; a second run goes on where the first ended."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tru_vlm.cli import arguments as a
from tru_vlm.cli.batch_file import BatchFileError, Item, Results, read_items
from tru_vlm.cli.concurrently import run_bounded
from tru_vlm.cli.output import FAILED, plain, stderr, tells_errors, write_json
from tru_vlm.client import ApiError, AsyncClient, ClientError, Retries, TransportError

_MAX_WAIT_SECONDS = 600.0  # a batch has time


@tells_errors
def batch(
    items: Annotated[Path, typer.Argument(metavar="JSONL", help="Lines of {video, prompt, id?, any option}.")],
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where results go; by default ITEMS.results.jsonl.")
    ] = None,
    at_once: Annotated[int, typer.Option("-c", "--at-once", min=1, help="How many questions at once.")] = 4,
    retries: Annotated[int, typer.Option(min=0, help="How often a question that was refused is sent again.")] = 20,
    as_json: a.AsJson = False,
    base_url: a.BaseUrl = a.DEFAULT_BASE_URL,
    api_key: a.ApiKey = None,
) -> None:
    """Ask many questions; what was answered before is not asked again. Exit status 1 if one failed.

    A result has the item's id and either `answer` or `error`. Interrupt it, or let it fail, and run it again: only
    items without an answer, or whose line has changed, are asked.
    """
    try:
        questions = read_items(items)
    except BatchFileError as error:
        raise typer.BadParameter(str(error), param_hint="JSONL") from error
    client = AsyncClient(base_url, api_key=api_key, retries=Retries(retries, _MAX_WAIT_SECONDS))
    results = Results(output or items.with_suffix(".results.jsonl"), questions)
    try:
        open_items = [item for item in questions if not results.has(item)]
        failed = asyncio.run(_ask_all(client, open_items, results, at_once))
    finally:
        results.close()
    counts = {"items": len(questions), "asked": len(open_items), "failed": failed}
    if as_json:
        write_json(counts)
    else:
        stderr.print(f"{len(questions)} items; {len(open_items)} asked now, {failed} of them failed")
    if failed:
        raise typer.Exit(FAILED)


async def _ask_all(client: AsyncClient, items: list[Item], results: Results, num_at_once: int) -> int:
    """Ask all; how many failed."""
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=stderr, disable=not stderr.is_terminal)
    async with client:
        with bar:
            task = bar.add_task("asking", total=len(items))

            async def one(item: Item) -> None:
                nonlocal failed
                outcome = await _ask(client, item)
                failed += "error" in outcome
                results.add(item, outcome)
                bar.advance(task)

            await run_bounded(items, one, num_at_once)
    return failed


async def _ask(client: AsyncClient, item: Item) -> dict[str, Any]:
    """The outcome of one item.

    Raises:
        TransportError: nobody answers: the batch ends, and goes on with the next run.
    """
    try:
        answer = await client.ask(item.video, item.prompt, **item.options)
    except TransportError:
        raise
    except ApiError as error:
        detail = {"type": error.type, "code": error.code, "message": error.message, "param": error.param}
        return {"error": {**detail, "request_id": error.request_id}}
    except (ClientError, OSError, TypeError, ValueError) as error:
        return {"error": {"type": "client_error", "code": type(error).__name__, "message": str(error)}}
    return {"answer": plain(answer)}
