"""What all commands do alike with a terminal: answers on stdout, all about them on stderr, errors as statuses."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tru_vlm.client import ClientError, TransportError

P = ParamSpec("P")
T = TypeVar("T")

FAILED, USAGE, NOT_REACHED, INTERRUPTED = 1, 2, 3, 130
"""Exit statuses: the server refused or failed, the command was wrong, nobody answers, Ctrl-C."""

_KILOBYTE = 1000

stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def tells_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Ends a command with a sentence and a status instead of a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except ClientError as error:
            raise _end(str(error), NOT_REACHED if isinstance(error, TransportError) else FAILED) from error
        except OSError as error:
            raise _end(f"{error.filename or 'error'}: {error.strerror or error}", USAGE) from error
        except KeyboardInterrupt:
            raise _end("Stopped.", INTERRUPTED) from None

    return run


def _end(text: str, status: int) -> typer.Exit:
    stderr.print(printable(text), style="red", markup=False)
    return typer.Exit(status)


def printable(text: str) -> str:
    """Text of a model or a server without what could steer the terminal."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def write(text: str) -> None:
    """Put text on stdout as it is, now."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """Put a dataclass, or plain data, on stdout as one line of JSON."""
    write(json.dumps(plain(value), ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """A dataclass, or a list of them, as plain data."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def seconds(value: float) -> str:
    """A time in a video, as people read it: ``1:02.5``."""
    minutes, rest = divmod(round(value, 1), 60)
    return f"{int(minutes)}:{rest:04.1f}"


def size(num_bytes: int) -> str:
    """A number of bytes, as people read it."""
    value, units = float(num_bytes), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= _KILOBYTE and unit != "TB":
        value, unit = value / _KILOBYTE, next(units)
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def upload_progress() -> Progress:
    """A bar with speed and time left; nothing where stderr is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
