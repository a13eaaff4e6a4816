"""Answers and events of the server as the package's own frozen types.  Knows no HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tru_vlm.client.errors import ProtocolError, api_error
from tru_vlm.client.video import KeptVideo
from tru_vlm.plans import PlanAnswer
from tru_vlm.types import Answer, DeltaEvent, DoneEvent, StatusEvent, VideoEvent

T = TypeVar("T")

Event = StatusEvent | VideoEvent | DeltaEvent | DoneEvent
"""What a stream yields; an error is raised instead."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the server offers.

    Attributes:
        id: its name.
        max_model_len: most tokens of prompt, frames and answer together, as far as the server tells.
    """

    id: str
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """How the server is.

    Attributes:
        status: "ok"; "degraded" while some workers cannot answer; "unavailable" while none can;
            "draining" when it has been told to stop.
        version: of the server.
        details: all that ``/v1/health/detailed`` tells.
    """

    status: str
    version: str
    details: Mapping[str, Any]


_ANSWER, _PLAN, _HEALTH = TypeAdapter(Answer), TypeAdapter(PlanAnswer), TypeAdapter(Health)
_KEPT = TypeAdapter(KeptVideo)
_MODELS = TypeAdapter(list[Model])
_STATUS, _VIDEO, _DELTA = TypeAdapter(StatusEvent), TypeAdapter(VideoEvent), TypeAdapter(DeltaEvent)


def read_answer(body: Any) -> Answer:
    """A whole answer.

    These readers leave out fields that only a newer server knows, and raise ``ProtocolError`` for anything else.
    """
    return _read(_ANSWER, body, "answer")


def read_plan(body: Any) -> PlanAnswer:
    """The object of ``/v1/plan``."""
    return _read(_PLAN, body, "plan")


def read_kept_video(body: Any) -> KeptVideo:
    """The object of ``/v1/videos/{video_id}``."""
    return _read(_KEPT, body, "video")


def read_models(body: Any) -> list[Model]:
    """The list of ``/v1/models``."""
    return _read(_MODELS, body.get("data") if isinstance(body, dict) else None, "list of models")


def read_health(body: Any) -> Health:
    """The object of ``/v1/health/detailed``."""
    return _read(_HEALTH, {**body, "details": body} if isinstance(body, dict) else body, "health")


def read_event(name: str, data: str) -> Event | None:
    """One server-sent event; None for one that this client does not know.

    Raises:
        ApiError: for the event ``error``.
        ProtocolError: if it cannot be read.
    """
    try:
        body = json.loads(data)
    except ValueError as error:
        raise ProtocolError(f"The server's event {name!r} is not JSON.") from error
    match name:
        case "status":
            return _read(_STATUS, body, name)
        case "video":
            return _read(_VIDEO, body, name)
        case "delta":
            return _read(_DELTA, body, name)
        case "done":
            return DoneEvent(read_answer(body))
        case "error":
            raise api_error(body)
        case _:
            return None


def _read(kind: TypeAdapter[T], value: Any, name: str) -> T:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ProtocolError(f"The server's {name} is not as this client reads it: {where}: {first['msg']}.") from error
