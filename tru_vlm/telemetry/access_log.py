"""One line for each exchange with a client, and what became of its question.  Never what was asked or answered.

No path, query or header of a client's is in it either: the route is its template, the principal the name of a key.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from tru_vlm.telemetry.exchange import Exchange
from tru_vlm.telemetry.logs import with_fields

logger = logging.getLogger(__name__)

_PROBED = frozenset({"/v1/health", "/v1/health/live", "/v1/health/ready", "/metrics", "/static"})
"""Asked for so often, and by machines, that a success is worth a line only for debugging."""


def log_exchange(exchange: Exchange, *, status: int) -> None:
    """The line of an exchange that has ended.

    Args:
        exchange: with the facts of its question, where it opened one that has ended.
        status: of the answer.
    """
    outcome = exchange.outcome_now()
    level = logging.DEBUG if outcome == "success" and exchange.route in _PROBED else logging.INFO
    if not logger.isEnabledFor(level):
        return
    logger.log(
        level,
        "%s %s %d %s",
        exchange.method,
        exchange.route,
        status,
        outcome,
        extra=with_fields(
            method=exchange.method,
            route=exchange.route,
            status=status,
            outcome=outcome,
            principal=exchange.principal,
            duration_seconds=_rounded(time.monotonic() - exchange.received),
            received_bytes=exchange.received_bytes,
            sent_bytes=exchange.sent_bytes,
            **{"error": exchange.error.code if exchange.error else None, **(exchange.question or {})},
        ),
    )


def log_question(exchange: Exchange, outcome: str, facts: dict[str, Any]) -> None:
    """What became of a question: a part of its exchange's line, or one of its own where that has been or will not do.

    Args:
        exchange: that opened it.
        outcome: how it ended.
        facts: what is worth telling, by name.
    """
    rounded = {name: _rounded(fact) if isinstance(fact, float) else fact for name, fact in facts.items()}
    if exchange.is_connection or exchange.is_over or exchange.question is not None:
        told = with_fields(route=exchange.route, outcome=outcome, principal=exchange.principal, **rounded)
        logger.info("question %s", outcome, extra=told)
    else:
        exchange.question = rounded


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
