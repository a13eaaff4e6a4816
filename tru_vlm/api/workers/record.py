"""What a worker's log and traces tell of its requests.  It runs nothing; a token costs a comparison or two."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tru_vlm.engine.base import EngineEvent, FailEvent, FinishEvent, TokenEvent
from tru_vlm.telemetry.exchange import on_behalf_of
from tru_vlm.telemetry.logs import with_fields
from tru_vlm.telemetry.spans import Span, Tracing
from tru_vlm.types import Origin, WorkerRequest

logger = logging.getLogger(__name__)

_NANOSECONDS = 1_000_000_000


@dataclass(slots=True)
class _Visit:
    """A request's time in the worker, in nanoseconds of the clock."""

    origin: Origin | None
    span: Span
    start_ns: int
    first_token_ns: int | None = None


class WorkerRecord:
    """The requests that a worker has, by their ids.

    Args:
        tracing: of this process.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._visits: dict[str, _Visit] = {}

    def taken(self, request: WorkerRequest) -> None:
        """A request has come."""
        origin, now = request.origin, time.time_ns()
        span = self._tracing.begin("worker", origin.trace if origin else {}, start_ns=now)
        self._visits[request.id] = _Visit(origin, span, now)

    def dropped(self, request_id: str) -> None:
        """It was aborted before the engine had it, and has no last event."""
        if (visit := self._visits.pop(request_id, None)) is not None:
            visit.span.end(attributes={"tru_vlm.finish_reason": "abort"})

    def happened(self, events: Sequence[EngineEvent]) -> None:
        """A step has ended."""
        for event in events:
            if isinstance(event, TokenEvent):
                if self._tracing.is_on and (visit := self._visits.get(event.request_id)):
                    visit.first_token_ns = visit.first_token_ns or time.time_ns()
            elif (visit := self._visits.pop(event.request_id, None)) is not None:
                with on_behalf_of(visit.origin):
                    _log_end(event)
                _trace_end(visit, event)


def _log_end(event: FinishEvent | FailEvent) -> None:
    if isinstance(event, FailEvent):
        logger.debug("request %s ends: error", event.request_id, extra=with_fields(error=event.error.code))
        return
    fields = with_fields(
        finish_reason=event.finish_reason,
        prompt_tokens=event.usage.prompt_tokens,
        completion_tokens=event.usage.completion_tokens,
        queue_seconds=event.timings.queue,
        preprocess_seconds=event.timings.preprocess,
        prefill_seconds=event.timings.prefill,
    )
    logger.debug("request %s ends: %s", event.request_id, event.finish_reason, extra=fields)


def _trace_end(visit: _Visit, event: FinishEvent | FailEvent) -> None:
    """The engine tells how long its stages took, not when: their spans follow one another."""
    now = time.time_ns()
    if isinstance(event, FailEvent):
        visit.span.end(error=event.error.code, end_ns=now)
        return
    at, timings = visit.start_ns, event.timings
    stages = {"preprocess": timings.preprocess, "batch_queue": timings.queue, "prefill": timings.prefill}
    for name, seconds in stages.items():
        if seconds > 0:
            begin, at = at, min(now, at + int(seconds * _NANOSECONDS))
            visit.span.child(name, start_ns=begin).end(end_ns=at)
    if visit.first_token_ns is not None:
        tokens = {"gen_ai.usage.output_tokens": event.usage.completion_tokens}
        visit.span.child("decode", start_ns=visit.first_token_ns).end(end_ns=now, attributes=tokens)
    visit.span.end(end_ns=now, attributes={"tru_vlm.finish_reason": event.finish_reason})
