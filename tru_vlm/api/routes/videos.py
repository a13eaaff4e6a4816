"""Videos that are kept: ``/v1/videos``, to keep, list, rename and delete them."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tru_vlm.api.bodies import parse_object, validate
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST, unless_client_leaves
from tru_vlm.api.kept_videos.videos_openapi import (
    KEEP_BODY,
    KEEP_RESPONSES,
    RENAME_BODY,
    VIDEO_RESPONSES,
    KeepUrlBody,
    KeptVideoAnswer,
    KeptVideoList,
    RenameBody,
    VideoIdPath,
)
from tru_vlm.api.request_body import content_type_of, owner_of, receive_json
from tru_vlm.api.service import InferenceService
from tru_vlm.errors import InvalidRequestError
from tru_vlm.intake.spool import display_name
from tru_vlm.library.catalog import Video

_PAGE_SIZE, _MAX_PAGE_SIZE = 20, 100


def build_router(service: InferenceService) -> APIRouter:
    """The routes over ``service``."""
    router = APIRouter(tags=["videos"])
    library = service.library

    def shown(video: Video) -> KeptVideoAnswer:
        return video_answer(video, library.store.expires_at(video))

    @router.post("/v1/videos", openapi_extra=KEEP_BODY, responses=KEEP_RESPONSES)
    async def keep(request: Request) -> Response:
        """Keep a video or image, from a form or from a URL; questions then name it by its `video_id`."""
        try:
            kept = await _keep(service, request)
        except ClientDisconnect:
            kept = None
        if kept is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        video, is_new = kept
        location = f"/v1/videos/{video.content.sha256}"
        return JSONResponse(shown(video).model_dump(), 201 if is_new else 200, {"Location": location})

    @router.get("/v1/videos")
    async def videos(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=_MAX_PAGE_SIZE, description="Most videos of a page.")] = _PAGE_SIZE,
        cursor: Annotated[
            str | None, Query(pattern=r"^[0-9]{1,18}$", description="A page's `next_cursor`, for the page after it.")
        ] = None,
        query: Annotated[
            str | None, Query(min_length=1, max_length=200, description="Only videos with this in their name.")
        ] = None,
    ) -> KeptVideoList:
        """The kept videos, the newest first."""
        below = int(cursor) if cursor is not None else None
        found = await library.store.page(owner_of(request), below=below, limit=limit + 1, words=query)
        page, has_more = found[:limit], len(found) > limit
        next_cursor = str(page[-1].number) if has_more else None
        return KeptVideoList(data=[shown(video) for video in page], has_more=has_more, next_cursor=next_cursor)

    @router.get("/v1/videos/{video_id}", responses=VIDEO_RESPONSES)
    async def video(video_id: VideoIdPath, request: Request) -> KeptVideoAnswer:
        """What is known of a kept video."""
        return shown(await library.store.get(video_id, owner_of(request)))

    @router.patch("/v1/videos/{video_id}", openapi_extra=RENAME_BODY, responses=VIDEO_RESPONSES)
    async def rename(video_id: VideoIdPath, request: Request) -> KeptVideoAnswer:
        """Give a kept video another name."""
        body = validate(RenameBody, parse_object(await receive_json(service, request)))
        filename = display_name(body.filename)
        if filename is None:
            text = f"filename: nothing of {body.filename[:80]!r} can be shown as a name."
            raise InvalidRequestError(text, param="filename")
        return shown(await library.store.rename(video_id, owner_of(request), filename))

    @router.delete("/v1/videos/{video_id}", status_code=204, response_model=None, responses=VIDEO_RESPONSES)
    async def delete(video_id: VideoIdPath, request: Request) -> None:
        """Remove a kept video. A question that has begun goes on; the next one gets a 404."""
        await library.store.delete(video_id, owner_of(request))

    return router


def video_answer(video: Video, expires_at: float | None) -> KeptVideoAnswer:
    """A kept video as clients read it."""
    content = video.content
    return KeptVideoAnswer(
        id=content.sha256,
        filename=video.filename,
        size_bytes=content.size_bytes,
        kind=content.kind,
        media_type=content.media_type,
        container=content.container,
        codec=content.codec,
        width=content.width,
        height=content.height,
        duration_seconds=content.duration_seconds,
        source_fps=content.source_fps,
        num_frames=content.num_frames,
        created_at=int(video.created_at),
        expires_at=None if expires_at is None else int(expires_at),
    )


async def _keep(service: InferenceService, request: Request) -> tuple[Video, bool] | None:
    """The video of a body of either kind, and whether it is new; None if the client left while it was fetched.

    Raises:
        TruError: it cannot be kept.
        ClientDisconnect: the client left while it sent.
    """
    owner, content_type = owner_of(request), content_type_of(request)
    if content_type.startswith("multipart/form-data"):
        return await service.library.receive(request.stream(), content_type, owner=owner)
    body = validate(KeepUrlBody, parse_object(await receive_json(service, request)))
    return await unless_client_leaves(
        partial(service.library.fetch, body.video_url, body.filename, owner=owner), request
    )
