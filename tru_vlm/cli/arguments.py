"""Arguments that several commands share, and how they become the client's options.  Asks nobody anything."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tru_vlm.client import AskOptions

_FRAMES, _ANSWER, _SERVER = "Which frames", "The answer", "The server"

BaseUrl = Annotated[str, typer.Option(envvar="TRU_BASE_URL", help="Where the server is.", rich_help_panel=_SERVER)]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="TRU_API_KEY", show_envvar=True, help="Sent as `Authorization: Bearer`.", rich_help_panel=_SERVER
    ),
]
Video = Annotated[
    str, typer.Argument(help="A file, an http(s) URL that the server fetches, or a `video_id`.", show_default=False)
]
File = Annotated[str, typer.Argument(help="A file, or an http(s) URL that the server fetches.", show_default=False)]
Question = Annotated[str, typer.Argument(help="What to ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Fps = Annotated[float | None, typer.Option(help="Frames to sample per second.", rich_help_panel=_FRAMES)]
Nframes = Annotated[int | None, typer.Option(help="Frames to sample in all.", rich_help_panel=_FRAMES)]
MaxFrames = Annotated[int | None, typer.Option(help="Most frames.", rich_help_panel=_FRAMES)]
MaxPixels = Annotated[int | None, typer.Option(help="Largest height x width of a frame.", rich_help_panel=_FRAMES)]
Start = Annotated[float | None, typer.Option(help="Where to begin, in seconds.", rich_help_panel=_FRAMES)]
End = Annotated[float | None, typer.Option(help="Where to end, in seconds.", rich_help_panel=_FRAMES)]
Fit = Annotated[
    bool, typer.Option("--fit", help="Make what is too long fit, by smaller and fewer frames.", rich_help_panel=_FRAMES)
]
Model = Annotated[str | None, typer.Option(help="Which of the server's models answers.", rich_help_panel=_SERVER)]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of the answer.", rich_help_panel=_ANSWER)]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.", rich_help_panel=_ANSWER)]
Seed = Annotated[int | None, typer.Option(help="Makes sampling reproducible.", rich_help_panel=_ANSWER)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other option of the API, several times.", show_default=False),
]

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_QUESTION = "What happens in this video?"


def options(settings: list[str] | None, **named: Any) -> AskOptions:
    """The client's options.

    Args:
        settings: ``NAME=VALUE`` of any other option; the value as JSON, else as text.
        named: the options that have a flag; None leaves one out.

    Raises:
        typer.BadParameter: for a setting that is none.
    """
    chosen = dict(named)
    for setting in settings or ():
        name, is_there, value = setting.partition("=")
        if not is_there or name not in AskOptions.__annotations__:
            accepted = ", ".join(AskOptions.__annotations__)
            raise typer.BadParameter(f"{setting!r} is not NAME=VALUE with NAME one of {accepted}.", param_hint="--set")
        try:
            chosen[name] = json.loads(value)
        except ValueError:
            chosen[name] = value
    return {name: value for name, value in chosen.items() if value is not None}  # type: ignore[return-value]
