"""``POST /v1/plan``: what a question would take, without asking it."""

from __future__ import annotations

import dataclasses
from functools import partial

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST, unless_client_leaves
from tru_vlm.api.openapi.description import PLAN_JSON_BODY, PLAN_RESPONSES, PLAN_UPLOAD_BODY, merge_bodies
from tru_vlm.api.request_body import read_any
from tru_vlm.api.routing_key import RoutingKey, with_routing_key
from tru_vlm.api.security.identity import principal_of
from tru_vlm.api.service import InferenceService


def build_router(service: InferenceService) -> APIRouter:
    """The route over ``service``."""
    router = APIRouter(tags=["inference"])

    @router.post("/v1/plan", openapi_extra=merge_bodies(PLAN_JSON_BODY, PLAN_UPLOAD_BODY), responses=PLAN_RESPONSES)
    async def plan(request: Request, routing_key: RoutingKey = None) -> Response:
        """What would be sampled, what it takes of the context and whether that fits; the model is not run.

        Takes what `/predict` takes; the prompt may be left out.
        """
        try:
            parsed = with_routing_key(await read_any(service, request, is_plan=True), routing_key)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        try:
            answer = await unless_client_leaves(partial(service.plan, parsed, principal_of(request)), request)
        finally:
            await service.discard(*parsed.files)
        if answer is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return JSONResponse(dataclasses.asdict(answer))

    return router
