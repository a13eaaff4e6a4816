"""How far a worker's start is: told by the worker, read by the HTTP process, while no link is open yet.

A worker that loads a model hears nothing, so it leaves a note: a file beside its socket, gone once it is ready.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

Stage = Literal["starting", "loading", "warming_up"]
STAGES: tuple[Stage, ...] = ("starting", "loading", "warming_up")
"""In their order: a process begins and imports its libraries, reads the weights, answers a first question."""

_LOG_SECONDS = 5.0
_TELL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class StartProgress:
    """Where a worker is that takes no requests yet.

    Attributes:
        stage: what it does.
        weights_loaded: share of the model's tensors that has been read, 0 to 1; None where nobody counts.
    """

    stage: Stage
    weights_loaded: float | None = None

    @property
    def rank(self) -> tuple[int, float]:
        """Grows with the way that is behind it."""
        return STAGES.index(self.stage), self.weights_loaded or 0.0


def note_path(directory: Path | str, worker_id: int) -> Path:
    """Where worker ``worker_id`` leaves its note."""
    return Path(directory) / f"worker-{worker_id}.start"


def read_note(path: Path) -> StartProgress:
    """What the note says; without one the process has only begun."""
    try:
        return StartProgress(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return StartProgress("starting")


class StartNote:
    """The worker's end.

    Args:
        path: of the note.
        model: its name, for the log.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._path = path
        self._model = model
        self._told_at = self._logged_at = time.monotonic()

    def tell(self, progress: StartProgress) -> None:
        """Write it down."""
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(asdict(progress)))
        part.replace(self._path)

    def loaded(self, share: float) -> None:
        """So much of the weights has been read; called for every tensor."""
        now = time.monotonic()
        if share >= 1 or now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            self.tell(StartProgress("loading", round(share, 3)))
        if now - self._logged_at >= _LOG_SECONDS:
            self._logged_at = now
            logger.info("loading %s: %.0f %% of the weights", self._model, 100 * share)

    def remove(self) -> None:
        """The worker is ready, or has failed."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
