"""OpenAI's ``POST /v1/responses``: chat completions by other names.  Nothing is stored, so there is nothing to get."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tru_vlm.api.answering import respond
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST
from tru_vlm.api.openai_compatible.responses_answer import ResponsesAnswer
from tru_vlm.api.openai_compatible.responses_openapi import RESPONSES_BODY, RESPONSES_RESPONSES
from tru_vlm.api.request_body import receive_json
from tru_vlm.api.routing_key import RoutingKey, with_routing_key
from tru_vlm.api.service import InferenceService


def build_router(service: InferenceService) -> APIRouter:
    """The route over ``service``."""
    router = APIRouter(tags=["openai"])

    @router.post("/v1/responses", openapi_extra=RESPONSES_BODY, responses=RESPONSES_RESPONSES)
    async def responses(request: Request, routing_key: RoutingKey = None) -> Response:
        """Answer a question or a conversation, as OpenAI's clients send it to their newer API."""
        try:
            body = await receive_json(service, request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        asked = service.parse_responses(body)
        name = service.models.name_of(asked.inference.model)
        shape = partial(ResponsesAnswer, model=name, repeated=asked.repeated)
        return await respond(service, with_routing_key(asked.inference, routing_key), request, shape)

    return router
