"""Answers in the shapes of OpenAI's Responses API: a response, and the events of a streamed one.  It knows no HTTP.

https://platform.openai.com/docs/api-reference/responses-streaming; what OpenAI has no field for stands under ``tru``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tru_vlm.api.error_response import error_body
from tru_vlm.api.event_stream import sse
from tru_vlm.api.openai_compatible.chat_answer import extension
from tru_vlm.errors import ErrorInfo, UnavailableError
from tru_vlm.types import (
    Answer,
    DeltaEvent,
    DoneEvent,
    ErrorEvent,
    FinishReason,
    RequestEvent,
    Usage,
    VideoEvent,
    VideoInfo,
)

Status = Literal["in_progress", "completed", "incomplete", "cancelled", "failed"]
_STATUS: dict[FinishReason, Status] = {
    "stop": "completed",
    "length": "incomplete",
    "abort": "cancelled",
    "error": "failed",
}
_ERROR_CODES = {"invalid_request_error": "invalid_prompt", "rate_limit_error": "rate_limit_exceeded"}
_PLACE = {"output_index": 0, "content_index": 0}


class ResponsesAnswer:
    """The shape of one answer: one message with one part of text.

    Args:
        request_id: of the request; the response's id is made of it.
        model: the model's name.
        repeated: fields of the request that the response has too.
    """

    def __init__(self, request_id: str, *, model: str, repeated: Mapping[str, Any]) -> None:
        number = request_id.removeprefix("req-")
        self._id, self._item_id = f"resp_{number}", f"msg_{number}"
        self._model = model
        self._repeated = repeated
        self._created = int(time.time())
        self._videos: list[VideoInfo] = []
        self._number = 0
        self._text: list[str] = []
        self._has_item = False

    def body(self, answer: Answer, videos: Sequence[VideoInfo]) -> dict[str, Any]:
        """A whole response."""
        status = _STATUS[answer.finish_reason]
        return self._response(
            status,
            output=[self._message(status, answer.text)],
            usage=usage_body(answer.usage),
            incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
            completed_at=int(time.time()) if status == "completed" else None,
            tru=extension(answer, videos),
        )

    def encode(self, event: RequestEvent) -> bytes:
        """An event as theirs; the first one opens the response."""
        opening = self._open() if self._number == 0 else b""
        match event:
            case VideoEvent(_, video):
                self._videos.append(video)
                return opening
            case DeltaEvent(_, text):
                self._text.append(text)
                begin = self._begin_item()
                return (
                    opening
                    + begin
                    + self._event("response.output_text.delta", **self._where(), delta=text, logprobs=[])
                )
            case DoneEvent(answer) if answer.finish_reason == "abort":
                error = UnavailableError("The server stopped before the answer was complete.", code="aborted").info()
                return opening + self._failed(error, answer.id)
            case DoneEvent(answer):
                return opening + self._begin_item() + self._end(answer)
            case ErrorEvent(request_id, info):
                return opening + self._failed(info, request_id)
            case _:
                return opening

    def _open(self) -> bytes:
        begun = self._response("in_progress")
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def _begin_item(self) -> bytes:
        if self._has_item:
            return b""
        self._has_item = True
        item = {**self._message("in_progress", ""), "content": []}
        added = self._event("response.output_item.added", output_index=0, item=item)
        return added + self._event("response.content_part.added", **self._where(), part=_part(""))

    def _end(self, answer: Answer) -> bytes:
        response = self.body(answer, self._videos)
        (item,) = response["output"]
        return b"".join(
            (
                self._event("response.output_text.done", **self._where(), text=answer.text, logprobs=[]),
                self._event("response.content_part.done", **self._where(), part=_part(answer.text)),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event(f"response.{response['status']}", response=response),
            )
        )

    def _failed(self, info: ErrorInfo, request_id: str) -> bytes:
        error = {
            "code": _ERROR_CODES.get(info.type, "server_error"),
            "message": info.message,
            "param": info.param,
            "type": info.type,
        }
        output = [self._message("incomplete", "".join(self._text))] if self._has_item else []
        response = self._response("failed", output=output, error=error, tru=error_body(info, request_id))
        return self._event("response.failed", response=response)

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._item_id, **_PLACE}

    def _message(self, status: Status, text: str) -> dict[str, Any]:
        status = status if status in {"in_progress", "completed"} else "incomplete"
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [_part(text)],
        }

    def _response(self, status: Status, **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "tool_choice": "none",
            "tools": [],
            "truncation": "disabled",
            "usage": None,
            **self._repeated,
            **more,
        }

    def _event(self, name: str, **fields: Any) -> bytes:
        data = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return sse(name, json.dumps(data, ensure_ascii=False))


def usage_body(usage: Usage) -> dict[str, Any]:
    """Token counts in OpenAI's shape; ``video_tokens`` is ours."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,  # what OpenAI charges for; there is no such thing here
            "video_tokens": usage.video_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
