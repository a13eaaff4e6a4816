"""An engine's events on their way to one HTTP process: a message carries those of a few steps.  It sends nothing.

A message wakes the HTTP process, each answer's task in it and each client, whether it carries one token or ten; beside
a small model that costs more than the tokens do (docs/adr/0033).  So what only continues answers waits for the next
steps: the more answers there are, the longer, and never longer than an eye sees.  First tokens, ends and errors do not
wait, and take along what does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tru_vlm.engine.base import EngineEvent, TokenEvent

HOLD_SECONDS = 0.007
"""How much longer a token may wait for each answer that runs beside its own; alone, it does not wait."""

MAX_HOLD_SECONDS = 0.05
"""The longest that it may."""

StepTime = tuple[float, tuple[str, ...]]
"""When a step ended (``time.monotonic()``, the same for all processes), and the requests that it gave tokens."""


@dataclass(slots=True)
class Outbox:
    """What has happened and was not told yet."""

    _ended: list[EngineEvent] = field(default_factory=list)
    _tokens: dict[str, TokenEvent] = field(default_factory=dict)
    _steps: list[StepTime] = field(default_factory=list)
    _begun: set[str] = field(default_factory=set)
    _is_urgent: bool = False
    _emptied_at: float = 0.0

    def add(self, events: Iterable[EngineEvent], now: float) -> None:
        """A step has ended at ``now``."""
        rows = []
        for event in events:
            name = event.request_id
            held = self._tokens.get(name)
            if isinstance(event, TokenEvent):
                rows.append(name)
                if held is None:
                    self._tokens[name] = event
                else:
                    text, num_tokens = held.text + event.text, held.num_tokens + event.num_tokens
                    self._tokens[name] = TokenEvent(name, text, num_tokens)
                if name not in self._begun:
                    self._begun.add(name)
                    self._is_urgent = True
                continue
            if held is not None:
                self._ended.append(self._tokens.pop(name))
            self._ended.append(event)
            self._begun.discard(name)
            self._is_urgent = True
        if rows:
            self._steps.append((now, tuple(rows)))

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return bool(self._ended or self._tokens)

    def is_due(self, now: float) -> bool:
        """Whether what is held should go now."""
        hold_seconds = min(MAX_HOLD_SECONDS, (len(self._begun) - 1) * HOLD_SECONDS)
        return self._is_urgent or now - self._emptied_at >= hold_seconds

    def empty(self, now: float) -> tuple[tuple[EngineEvent, ...], tuple[StepTime, ...]]:
        """Everything that is held, each request's events in their order and its tokens as one, and its steps' times."""
        events, steps = (*self._ended, *self._tokens.values()), tuple(self._steps)
        self._ended.clear()
        self._tokens.clear()
        self._steps.clear()
        self._is_urgent, self._emptied_at = False, now
        return events, steps
