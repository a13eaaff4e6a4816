"""OpenAI's routes: ``POST /v1/chat/completions`` and ``GET /v1/models``."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tru_vlm.api.answering import respond
from tru_vlm.api.chat_answer import ChatAnswer
from tru_vlm.api.chat_request import check_model
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST
from tru_vlm.api.openapi_chat import CHAT_BODY, CHAT_RESPONSES, MODEL_RESPONSES, MODELS_RESPONSES
from tru_vlm.api.request_body import receive_json
from tru_vlm.api.service import InferenceService


def build_router(service: InferenceService) -> APIRouter:
    """The routes over ``service``."""
    router = APIRouter(tags=["openai"])
    model = {
        "id": service.model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "tru-vlm",
        "max_model_len": service.profile.context_tokens,
    }

    @router.post("/v1/chat/completions", openapi_extra=CHAT_BODY, responses=CHAT_RESPONSES)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation of any number of turns, videos and images, as OpenAI's clients send it."""
        try:
            body = await receive_json(service, request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        chat = service.parse_chat(body)
        shape = partial(ChatAnswer, model=service.model_name, include_usage=chat.include_usage)
        return await respond(service, chat.inference, request, shape)

    @router.get("/v1/models", responses=MODELS_RESPONSES)
    async def models() -> dict[str, Any]:
        """The model that is served; `max_model_len` tells its context in tokens."""
        return {"object": "list", "data": [model]}

    @router.get("/v1/models/{model_id:path}", responses=MODEL_RESPONSES)
    async def one_model(model_id: Annotated[str, Path(description="The model's name.")]) -> dict[str, Any]:
        """The model of this name."""
        check_model(model_id, service.model_name)
        return model

    return router
