"""Passes server-sent events on as whole events, and ends a stream whose server was lost.  It knows no connection.

An event that came in part is dropped, so what is added stands for itself; nothing is added to a stream that has had
its last event.
"""

from __future__ import annotations

import json
from typing import Any

from tru_vlm.api.error_response import error_body
from tru_vlm.api.event_stream import sse
from tru_vlm.errors import ErrorInfo

_END = b"\n\n"
_LAST_NAMES = frozenset(
    {b"done", b"error", b"close", b"response.completed", b"response.incomplete", b"response.failed"}
)

_RESUMED = ("/v1/jobs/", "/ui/answers/")
"""Readers of these come back when the connection breaks, and are told then."""


class EventTail:
    """One stream.

    Args:
        path: the route; what its errors look like depends on it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._pending = b""
        self._has_ended = False

    def whole(self, chunk: bytes) -> bytes:
        """The events that ``chunk`` completes."""
        events, end, self._pending = (self._pending + chunk).rpartition(_END)
        if end and not self._has_ended:
            self._has_ended = any(_is_last(event) for event in events.split(_END))
        return events + end

    def rest(self) -> bytes:
        """What has come of an event when the stream ends by itself."""
        return self._pending

    def lost(self, info: ErrorInfo, request_id: str) -> bytes:
        """The last event that the client is owed; empty where it has had one, or comes back for more."""
        if self._has_ended or self._path.startswith(_RESUMED):
            return b""
        body = error_body(info, request_id)
        if self._path.startswith("/v1/chat/completions"):
            return f"data: {json.dumps(body)}\n\n".encode()
        if self._path.startswith("/v1/responses"):
            return _responses_error(body["error"])
        return sse("error", json.dumps(body))


def _responses_error(error: dict[str, Any]) -> bytes:
    shown = {name: error[name] for name in ("code", "message", "param")}
    return sse("error", json.dumps({"type": "error", **shown, "sequence_number": 0}))


def _is_last(event: bytes) -> bool:
    for line in event.split(b"\n"):
        if line.startswith(b"event: ") and line.removeprefix(b"event: ").strip() in _LAST_NAMES:
            return True
        if line.startswith((b"data: [DONE]", b'data: {"error":')):
            return True
    return False
