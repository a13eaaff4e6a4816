"""A chat and its turns, as they are stored.  They know no SQL and no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

TurnStatus = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, and what became of it.

    Attributes:
        index: its place in the chat, from 0.
        request: the question and its parameters, as JSON.
        status: running; done; stopped, by whoever asked or because they left; failed.
        answer: the whole answer as JSON; of a stopped turn what there was of it; else None.
        error: of a failed turn, what went wrong, as JSON; else None.
        created_at: seconds since 1970.
    """

    index: int
    request: dict[str, Any]
    status: TurnStatus
    answer: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: float

    @property
    def prompt(self) -> str:
        """The question."""
        return str(self.request["prompt"])

    @property
    def text(self) -> str:
        """The answer's words; empty where there are none."""
        return str(self.answer["text"]) if self.answer else ""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation about kept videos.

    Attributes:
        id: unique, and not to be guessed.
        owner: whose it is.
        place: grows with every turn of any chat; the place in the list.
        title: for people; None until the first turn, if none was given.
        video_ids: what it is about; the videos may have gone.
        num_turns: how many turns it has.
        created_at, updated_at: seconds since 1970.
    """

    id: str
    owner: str
    place: int
    title: str | None
    video_ids: tuple[str, ...]
    num_turns: int
    created_at: float
    updated_at: float
