"""What a kept video looks like: its file, its frames, a small picture of it."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from tru_vlm.api.bodies import Body, VideoParamsBody, validate
from tru_vlm.api.error_response import error_response, new_request_id
from tru_vlm.api.kept_videos.kept_file import FOR_EVER, SAFE_HEADERS, KeptFileResponse, etag, is_known, wants_range
from tru_vlm.api.kept_videos.videos_openapi import (
    CONTENT_RESPONSES,
    FRAMES_RESPONSES,
    IMAGE_RESPONSES,
    FrameAnswer,
    FrameQuery,
    FramesAnswer,
    FramesQuery,
    VideoIdPath,
    query_parameters,
)
from tru_vlm.api.request_body import owner_of
from tru_vlm.api.service import InferenceService
from tru_vlm.errors import InvalidRequestError, NotFoundError, RangeError
from tru_vlm.types import VideoInfo, VideoParams

_POSTER_PIXELS = 480

AnyQuery = TypeVar("AnyQuery", bound=Body)


def build_router(service: InferenceService) -> APIRouter:
    """The routes over ``service``."""
    router = APIRouter(tags=["videos"])
    library = service.library

    @router.head("/v1/videos/{video_id}/content", include_in_schema=False)
    @router.get("/v1/videos/{video_id}/content", response_class=Response, responses=CONTENT_RESPONSES)
    async def content(
        video_id: VideoIdPath,
        request: Request,
        download: Annotated[bool, Query(description="To be saved, not shown.")] = False,
    ) -> Response:
        """The file itself, whole or in ranges, for a player."""
        kept = await library.store.get(video_id, owner_of(request))
        tag, size_bytes = etag(kept.content.sha256), kept.content.size_bytes
        if is_known(request, tag):
            return Response(status_code=304, headers={"ETag": tag})
        try:
            is_partial = wants_range(request, tag, size_bytes)
        except RangeError as error:
            response = error_response(error.info(), new_request_id())
            response.headers["Content-Range"] = f"bytes */{size_bytes}"
            return response
        _, file = await library.store.borrow(video_id, owner_of(request))
        return KeptFileResponse(
            file,
            service.spool.remove,
            is_partial=is_partial,
            media_type=kept.content.media_type,
            filename=kept.filename or f"{video_id[:16]}.{kept.content.container.lower()}",
            as_attachment=download,
        )

    @router.get("/v1/videos/{video_id}/thumbnail", response_class=Response, responses=IMAGE_RESPONSES)
    async def thumbnail(video_id: VideoIdPath, request: Request) -> Response:
        """A small picture of the video, as JPEG."""
        tag = etag(f"{video_id}-{_POSTER_PIXELS}")
        owner = owner_of(request)
        await library.store.get(video_id, owner)
        if is_known(request, tag):
            return Response(status_code=304, headers={"ETag": tag})
        jpeg = await library.poster(video_id, max_side=_POSTER_PIXELS, owner=owner)
        return _image(jpeg, "jpeg", {"ETag": tag, "Cache-Control": "private, max-age=3600"})

    @router.get(
        "/v1/videos/{video_id}/frames",
        openapi_extra={"parameters": query_parameters(FramesQuery)},
        responses=FRAMES_RESPONSES,
    )
    async def frames(video_id: VideoIdPath, request: Request) -> FramesAnswer:
        """The frames that a question with these options would see, with their times."""
        query = _query(FramesQuery, request)
        async with library.frames(video_id, _sampling(query), owner=owner_of(request), model=query.model) as lease:
            info = lease.info
        given = urlencode({name: value for name, value in request.query_params.items() if name != "format"})
        address = f"/v1/videos/{video_id}/frames/{{}}.{query.format}" + (f"?{given}" if given else "")
        return FramesAnswer(video=info, data=_frame_answers(info, address))

    @router.get(
        "/v1/videos/{video_id}/frames/{index}.{image_format}",
        response_class=Response,
        openapi_extra={"parameters": query_parameters(FrameQuery)},
        responses=IMAGE_RESPONSES,
    )
    async def frame(
        video_id: VideoIdPath,
        index: Annotated[int, Path(ge=0, le=1 << 20, description="Number of the frame, from 0.")],
        image_format: Literal["jpeg", "png", "webp"],
        request: Request,
    ) -> Response:
        """One sampled frame as the model sees it; the options are those of the list."""
        query = _query(FrameQuery, request)
        async with library.frames(video_id, _sampling(query), owner=owner_of(request), model=query.model) as lease:
            image = await library.frame(lease, index, image_format=image_format, max_side=query.max_side)
            num_frames = lease.info.num_frames
        if image is None:
            text = f"There is no frame {index}; these options give {num_frames} frames, counted from 0."
            raise NotFoundError(text, param="index", code="frame_not_found")
        return _image(image, image_format, {"Cache-Control": FOR_EVER})

    return router


def _frame_answers(info: VideoInfo, address: str) -> list[FrameAnswer]:
    times = info.frame_timestamps or (None,) * info.num_frames
    return [FrameAnswer(index=i, time_seconds=time, url=address.replace("{}", str(i))) for i, time in enumerate(times)]


def _query(model: type[AnyQuery], request: Request) -> AnyQuery:
    """The query as flat fields.

    Raises:
        InvalidRequestError: naming the field at fault, or one that is given twice.
    """
    pairs = request.query_params.multi_items()
    values = dict(pairs)
    if len(values) < len(pairs):
        name = next(name for name in values if len(request.query_params.getlist(name)) > 1)
        raise InvalidRequestError(f"The field {name[:80]!r} is given more than once.", param=name[:80])
    return validate(model, values, is_form=True)


def _sampling(query: FramesQuery | FrameQuery) -> VideoParams:
    return VideoParams(**query.model_dump(include=set(VideoParamsBody.model_fields)))


def _image(data: bytes, image_format: str, headers: dict[str, str]) -> Response:
    return Response(data, media_type=f"image/{image_format}", headers={**SAFE_HEADERS, **headers})
