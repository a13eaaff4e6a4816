"""Answers in OpenAI's shapes: a chat completion, and the chunks of a streamed one.  It knows no HTTP.

https://platform.openai.com/docs/api-reference/chat; what OpenAI has no field for stands under the one key ``tru``.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

from tru_vlm.api.error_response import error_body
from tru_vlm.errors import UnavailableError
from tru_vlm.types import Answer, DeltaEvent, DoneEvent, ErrorEvent, RequestEvent, Usage, VideoEvent, VideoInfo

_END = b"data: [DONE]\n\n"


class ChatAnswer:
    """The shape of one answer.

    Args:
        request_id: of the request; the completion's id is made of it.
        model: the model or alias that was asked for.
        include_usage: whether a stream ends with the token counts.
    """

    def __init__(self, request_id: str, *, model: str, include_usage: bool) -> None:
        self._id = "chatcmpl-" + request_id.removeprefix("req-")
        self._request_id = request_id
        self._model = model
        self._include_usage = include_usage
        self._created = int(time.time())
        self._videos: list[VideoInfo] = []
        self._has_role = False

    def body(self, answer: Answer, videos: Sequence[VideoInfo]) -> dict[str, Any]:
        """A whole chat completion."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage_body(answer.usage),
            "tru": extension(answer, videos),
        }

    def encode(self, event: RequestEvent) -> bytes:
        """An event as chunks; many events have none."""
        match event:
            case VideoEvent(_, video):
                self._videos.append(video)
                return b""
            case DeltaEvent(_, text):
                return self._role() + self._chunk({"content": text})
            case DoneEvent(answer) if answer.finish_reason == "abort":
                error = UnavailableError("The server stopped before the answer was complete.", code="aborted").info()
                return _data(error_body(error, self._request_id))
            case DoneEvent(answer):
                last = self._chunk({}, answer.finish_reason, tru=extension(answer, self._videos))
                return self._role() + last + self._usage(answer.usage) + _END
            case ErrorEvent(request_id, info):
                return _data(error_body(info, request_id))
            case _:
                return b""

    def _role(self) -> bytes:
        if self._has_role:
            return b""
        self._has_role = True
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def _usage(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return b""
        return _data({**self._head("chat.completion.chunk"), "choices": [], "usage": usage_body(usage)})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice], **more}
        if self._include_usage:
            chunk["usage"] = None
        return _data(chunk)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def usage_body(usage: Usage) -> dict[str, Any]:
    """Token counts in OpenAI's shape; ``video_tokens`` is ours."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "video_tokens": usage.video_tokens},
    }


def extension(answer: Answer, videos: Sequence[VideoInfo]) -> dict[str, Any]:
    """What OpenAI's shapes have no field for: who answered, what was sampled, and where the time went."""
    return {
        "variant": answer.variant,
        "video": [dataclasses.asdict(video) for video in videos],
        "timings": dataclasses.asdict(answer.timings),
        "moments": [dataclasses.asdict(moment) for moment in answer.moments],
    }


def _data(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()
