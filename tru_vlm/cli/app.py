"""All words of the command in one list.  Knows none of them closer."""

from __future__ import annotations

from typing import Annotated

import typer

import tru_vlm
from tru_vlm.cli import ask, batch, bench, doctor, mcp, models, plan, serve, upload

app = typer.Typer(
    help="Ask a video a question. Without a command, the server is started, as with `serve`.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
_COMMANDS = (
    serve.serve,
    ask.ask,
    plan.plan,
    upload.upload,
    batch.batch,
    bench.bench,
    models.models,
    doctor.doctor,
    mcp.mcp,
)
for _command in _COMMANDS:
    app.command()(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(tru_vlm.__version__)
        raise typer.Exit


@app.callback()
def options(
    *, version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False
) -> None:
    """Ask a video a question. Without a command, the server is started, as with `serve`."""
    del version
