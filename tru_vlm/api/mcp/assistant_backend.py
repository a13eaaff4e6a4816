"""What assistants ask over HTTP, answered by the service itself: the same checks, limits and tenant as on every route.

Nothing of the machine's files can be named: a video is a URL or a kept one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

from tru_vlm.api.event_stream import answer_body
from tru_vlm.api.inference_request import InferenceRequest
from tru_vlm.api.security.identity import principal_of
from tru_vlm.api.service import InferenceService
from tru_vlm.client import AskOptions
from tru_vlm.errors import TruError
from tru_vlm.principal import Principal
from tru_vlm.types import DeltaEvent, DoneEvent, ErrorEvent, StatusEvent

_IS_ID = re.compile(r"[0-9a-f]{64}").fullmatch
_GENERATION = frozenset({"max_tokens"})


class ServiceBackend:
    """The tools' work over ``service``."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def ask(
        self, context: Context, video: str, question: str, options: AskOptions
    ) -> AsyncGenerator[str | dict[str, Any], None]:
        """Ask: stages and pieces of the text, and last the answer.

        Raises:
            ToolError: what is wrong, in a sentence.
        """
        with _told():
            stream = await self._service.open(self._request(video, question, options), _principal(context))
            try:
                async for event in stream:
                    match event:
                        case StatusEvent(_, stage):
                            yield stage
                        case DeltaEvent():
                            yield event.text
                        case DoneEvent(answer):
                            yield answer_body(answer)
                        case ErrorEvent(_, info):
                            raise ToolError(info.message)
                        case _:
                            pass
            finally:
                await stream.aclose()  # an assistant that has cancelled, or left, is not worked for

    async def plan(self, context: Context, video: str, question: str, options: AskOptions) -> dict[str, Any]:
        """What a question would take.  Raises as :meth:`ask`."""
        with _told():
            request = self._request(video, question, options, is_plan=True)
            return dataclasses.asdict(await self._service.plan(request, _principal(context)))

    async def models(self) -> list[dict[str, Any]]:
        """The models and aliases, with their context in tokens."""
        models = self._service.models
        return [
            {"id": name, "max_model_len": min(model.profile.context_tokens for model in models.variants_of(name))}
            for name in models.names
        ]

    def _request(self, video: str, question: str, options: AskOptions, *, is_plan: bool = False) -> InferenceRequest:
        given: dict[str, Any] = dict(options)
        body = {
            "video_id" if _IS_ID(video) else "video_url": video,
            "prompt": question,
            "video_params": {name: value for name, value in given.items() if name not in _GENERATION},
            "generation_params": {name: value for name, value in given.items() if name in _GENERATION},
        }
        if is_plan and not question:
            del body["prompt"]
        return self._service.parse_json(json.dumps(body).encode(), is_plan=is_plan)


def _principal(context: Context) -> Principal:
    request: Any = context.request_context.request
    return principal_of(request)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except TruError as error:
        raise ToolError(error.message) from error
