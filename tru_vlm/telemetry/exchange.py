"""One exchange with a client, as metrics and logs see it: its id, its route, how it ended.  It knows no HTTP framework.

The current one travels with the task (a context variable), so that nothing has to pass it along.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from tru_vlm.errors import ErrorInfo
from tru_vlm.telemetry.spans import NO_SPAN, Span
from tru_vlm.types import Origin

Outcome = Literal["success", "abort", "rejected", "error"]

UNMATCHED = "unmatched"
"""The route of a path that is none."""

_SERVER_ERROR = 500
_CLIENT_ERROR = 400
_CLIENT_CLOSED_REQUEST = 499
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(slots=True, eq=False)
class Exchange:
    """See the module's docstring.

    Attributes:
        request_id: the client's, where it sent a sane one; in every line of the log, and in the answer's header.
        is_id_taken: whether it must not be the id of a question: it has been of one, or the client chose it.
        is_connection: whether any number of questions come through it, each with an id of its own.
        method: HTTP's.
        principal: the name of who asks, once that is known.
        find_route: tells the template of the route, never the path, as soon as it is known.
        status: of the answer; None before it began.
        error: what the client was told was wrong.
        outcome: how the question that it opened ended; None without one, or while it runs.
        question: what is worth telling of the question that it opened, once that has ended.
        has_question: whether it opened a question, which is counted by itself.
        is_over: whether the exchange has ended; a question of the page outlives it.
        received: when it began (``monotonic``).
        span: of it, or of what it belongs to; its question's is below.
        received_bytes, sent_bytes: of the bodies, so far.
    """

    request_id: str
    is_id_taken: bool = False
    method: str = ""
    principal: str | None = None
    find_route: Callable[[], str] = lambda: UNMATCHED
    status: int | None = None
    error: ErrorInfo | None = None
    outcome: Outcome | None = None
    question: dict[str, Any] | None = None
    has_question: bool = False
    is_over: bool = False
    is_connection: bool = False
    received: float = field(default_factory=time.monotonic)
    span: Span = NO_SPAN
    received_bytes: int = 0
    sent_bytes: int = 0

    @property
    def route(self) -> str:
        """The template of the route."""
        return self.find_route()

    def outcome_now(self) -> Outcome:
        """How it ended: its question's outcome, or else what the status says."""
        if self.outcome is not None:
            return self.outcome
        return "abort" if self.status is None else outcome_of(self.status)


_current: ContextVar[Exchange | None] = ContextVar("tru_vlm_exchange", default=None)
_origin: ContextVar[Origin | None] = ContextVar("tru_vlm_origin", default=None)


def begin_exchange(request_id: str | None, method: str, find_route: Callable[[], str]) -> Exchange:
    """Make an exchange the current one of this task, and of those that it starts.

    Args:
        request_id: what the client calls it; replaced where it is no sane id.
        method: HTTP's.
        find_route: tells the template of its route.
    """
    is_sane = request_id is not None and _SANE_ID.fullmatch(request_id) is not None
    exchange = Exchange(
        request_id if request_id and is_sane else new_id(), is_sane, method=method, find_route=find_route
    )
    _current.set(exchange)
    return exchange


def current_exchange() -> Exchange | None:
    """The exchange that this task belongs to."""
    return _current.get()


@contextmanager
def on_behalf_of(origin: Origin | None) -> Iterator[None]:
    """Let lines of the log in the block carry the id of a request."""
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)


def current_origin() -> Origin | None:
    """The request that this task or thread works on."""
    if (origin := _origin.get()) is not None:
        return origin
    exchange = _current.get()
    return None if exchange is None else Origin(exchange.request_id, exchange.span.carrier)


def new_id() -> str:
    """An id of our own."""
    return f"req-{uuid.uuid4().hex}"


def outcome_of(status: int) -> Outcome:
    """What a status says."""
    if status == _CLIENT_CLOSED_REQUEST:
        return "abort"
    if status >= _SERVER_ERROR:
        return "error"
    return "rejected" if status >= _CLIENT_ERROR else "success"
