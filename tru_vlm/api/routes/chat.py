"""OpenAI's routes: ``POST /v1/chat/completions`` and ``GET /v1/models``."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tru_vlm.api.answering import respond
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST
from tru_vlm.api.openai_compatible.chat_answer import ChatAnswer
from tru_vlm.api.openai_compatible.chat_openapi import CHAT_BODY, CHAT_RESPONSES, MODEL_RESPONSES, MODELS_RESPONSES
from tru_vlm.api.request_body import receive_json
from tru_vlm.api.routing_key import RoutingKey, with_routing_key
from tru_vlm.api.service import InferenceService


def build_router(service: InferenceService) -> APIRouter:
    """The routes over ``service``."""
    router = APIRouter(tags=["openai"])
    created = int(time.time())

    def entry(name: str) -> dict[str, Any]:
        context = min(variant.profile.context_tokens for variant in service.models.variants_of(name))
        model = {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "tru-vlm",
            "max_model_len": context,
        }
        weights = service.models.aliases.get(name)
        return model if weights is None else {**model, "variants": dict(weights)}

    @router.post("/v1/chat/completions", openapi_extra=CHAT_BODY, responses=CHAT_RESPONSES)
    async def chat_completions(request: Request, routing_key: RoutingKey = None) -> Response:
        """Answer a conversation of any number of turns, videos and images, as OpenAI's clients send it."""
        try:
            body = await receive_json(service, request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        chat = service.parse_chat(body)
        name = service.models.name_of(chat.inference.model)
        shape = partial(ChatAnswer, model=name, include_usage=chat.include_usage)
        return await respond(service, with_routing_key(chat.inference, routing_key), request, shape)

    @router.get("/v1/models", responses=MODELS_RESPONSES)
    async def models() -> dict[str, Any]:
        """The models and aliases that are served; `max_model_len` tells their context in tokens.

        An alias has `variants`: the models that may answer for it, and their weights.
        """
        return {"object": "list", "data": [entry(name) for name in service.models.names]}

    @router.get("/v1/models/{model_id:path}", responses=MODEL_RESPONSES)
    async def one_model(model_id: Annotated[str, Path(description="The model's name.")]) -> dict[str, Any]:
        """The model or alias of this name."""
        return entry(service.models.name_of(model_id))

    return router
