"""``tru-vlm serve``: the server; its settings come from the environment and ``.env``, these options win."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    *,
    model: Annotated[str | None, typer.Option(help="MODEL_PATH: demo, a folder or a hub id.")] = None,
    host: Annotated[str | None, typer.Option(help="HOST: the address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="PORT: the port to listen on.")] = None,
) -> None:
    """Start the server. All its settings: env.template; they come from the environment and .env."""
    from tru_vlm import launch  # the other commands start without the server's packages

    given = {"model_path": model, "host": host, "port": port}
    raise typer.Exit(launch.main(**{name: value for name, value in given.items() if value is not None}))
