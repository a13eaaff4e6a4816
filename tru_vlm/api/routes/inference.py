"""Questions and answers: ``/predict``, ``/v1/inference/url``, ``/v1/inference/upload``, and the frames they saw."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tru_vlm.api.answering import respond
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST
from tru_vlm.api.inference_request import InferenceRequest
from tru_vlm.api.openapi.description import ANSWER_RESPONSES, JSON_BODY, UPLOAD_BODY, error_entry, merge_bodies
from tru_vlm.api.request_body import read_any, read_form, read_json
from tru_vlm.api.routing_key import RoutingKey, with_routing_key
from tru_vlm.api.security.identity import principal_of
from tru_vlm.api.service import InferenceService
from tru_vlm.errors import NotFoundError

_THUMBNAIL_PIXELS = 320


def build_router(service: InferenceService) -> APIRouter:
    """The inference routes over ``service``."""
    router = APIRouter(tags=["inference"])

    async def answer(
        request: Request, reader: Callable[..., Awaitable[InferenceRequest]], routing_key: str | None
    ) -> Response:
        try:
            parsed = await reader(service, request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return await respond(service, with_routing_key(parsed, routing_key), request)

    @router.post("/predict", openapi_extra=merge_bodies(JSON_BODY, UPLOAD_BODY), responses=ANSWER_RESPONSES)
    async def predict(request: Request, routing_key: RoutingKey = None) -> Response:
        """Ask about a video: JSON with its URL, or a form with the file; LitServe's client posts here."""
        return await answer(request, read_any, routing_key)

    @router.post("/v1/inference/url", openapi_extra=JSON_BODY, responses=ANSWER_RESPONSES)
    async def inference_url(request: Request, routing_key: RoutingKey = None) -> Response:
        """Ask about a video that the server fetches from a URL (or reads from a data URI)."""
        return await answer(request, read_json, routing_key)

    @router.post("/v1/inference/upload", openapi_extra=UPLOAD_BODY, responses=ANSWER_RESPONSES)
    async def inference_upload(request: Request, routing_key: RoutingKey = None) -> Response:
        """Ask about an uploaded video; the file goes to disk while it arrives."""
        return await answer(request, read_form, routing_key)

    @router.get(
        "/v1/frames/{content_key}/{index}.jpg",
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {}}, "description": "The frame."},
            404: error_entry("The frame is not (or no longer) in the cache."),
        },
    )
    async def frame(
        request: Request,
        content_key: Annotated[str, Path(pattern="^[0-9a-f]{16,128}$", description="From `video.frames_url`.")],
        index: Annotated[int, Path(ge=0, description="Number of the frame, from 0.")],
    ) -> Response:
        """A frame that the model saw, as JPEG, while it is in the frame cache."""
        is_own = content_key.startswith(principal_of(request).cache_salt)
        jpeg = await service.videos.frame_jpeg(content_key, index, _THUMBNAIL_PIXELS) if is_own else None
        if jpeg is None:
            raise NotFoundError("The frame is not (or no longer) in the cache.", param="index")
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600, immutable"})

    return router
