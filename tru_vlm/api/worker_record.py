"""What a worker's log tells of its requests.  It runs nothing; what a token costs it is a comparison."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tru_vlm.engine.base import EngineEvent, FailEvent, FinishEvent
from tru_vlm.telemetry.exchange import on_behalf_of
from tru_vlm.telemetry.logs import with_fields
from tru_vlm.types import Origin, WorkerRequest

logger = logging.getLogger(__name__)


class WorkerRecord:
    """The requests that a worker has, by their ids."""

    def __init__(self) -> None:
        self._origins: dict[str, Origin | None] = {}

    def taken(self, request: WorkerRequest) -> None:
        """A request has come."""
        self._origins[request.id] = request.origin

    def dropped(self, request_id: str) -> None:
        """It was aborted before the engine had it, and has no last event."""
        self._origins.pop(request_id, None)

    def happened(self, events: Sequence[EngineEvent]) -> None:
        """A step has ended."""
        for event in events:
            if isinstance(event, FinishEvent | FailEvent):
                with on_behalf_of(self._origins.pop(event.request_id, None)):
                    _log_end(event)


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
