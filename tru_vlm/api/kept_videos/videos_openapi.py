"""What the routes of kept videos take and answer, as the OpenAPI schema shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field, TypeAdapter

from tru_vlm.api.bodies import Body, VideoParamsBody
from tru_vlm.api.openapi.description import ERROR_RESPONSES, body_of, error_entry, merge_bodies
from tru_vlm.api.schemas import ModelName, VideoUrl
from tru_vlm.types import VideoInfo

Filename = Annotated[str, Field(min_length=1, max_length=255, description="A name for people.", examples=["clip.mp4"])]
VideoIdPath = Annotated[str, Path(max_length=128, description="The video's `id`.")]
MaxSide = Annotated[
    int,
    Field(ge=16, le=4096, description="Most pixels of the longer side; left out, as large as the model sees it."),
]


class KeepUrlBody(Body):
    """An address whose content is to be kept."""

    video_url: VideoUrl
    filename: Filename | None = Field(None, description="A name for people; by default the address's last part.")


class KeepUploadBody(Body):
    """A file that is to be kept."""

    video: Annotated[bytes, Field(json_schema_extra={"type": "string", "format": "binary"})] = Field(
        description="The video or image."
    )
    filename: Filename | None = Field(None, description="A name for people; by default the file's own.")


class RenameBody(Body):
    """A new name."""

    filename: Filename


class FramesQuery(VideoParamsBody):
    """How frames are sampled, as in a question, and as what they are sent."""

    model: ModelName | None = None
    format: Literal["jpeg", "png", "webp"] = Field("jpeg", description="Of the images.")
    max_side: MaxSide | None = None


class FrameQuery(VideoParamsBody):
    """How frames are sampled, and how large one is sent."""

    model: ModelName | None = None
    max_side: MaxSide | None = None


class KeptVideoAnswer(BaseModel):
    """A video or image that is kept."""

    id: str = Field(
        description="Hex sha256 of the content: the same content has the same id.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    object: Literal["video"] = "video"
    filename: str | None = Field(description="A name for people.", examples=["clip.mp4"])
    size_bytes: int = Field(examples=[81920])
    kind: Literal["video", "image"]
    media_type: str = Field(description="From the content, not from the name.", examples=["video/mp4"])
    container: str = Field(examples=["MP4"])
    codec: str = Field(examples=["h264"])
    width: int = Field(description="As shown, after rotation, in pixels.", examples=[320])
    height: int = Field(examples=[240])
    duration_seconds: float | None = Field(description="Null for images.", examples=[10.0])
    source_fps: float | None = Field(description="Null for images.", examples=[24.0])
    num_frames: int | None = Field(description="Null for images.", examples=[240])
    created_at: int = Field(description="Seconds since 1970.", examples=[1790000000])
    expires_at: int | None = Field(
        description="When it may be removed if it is not used again; null for never.", examples=[1790604800]
    )


class KeptVideoList(BaseModel):
    """A page of the list, the newest first."""

    object: Literal["list"] = "list"
    data: list[KeptVideoAnswer]
    has_more: bool
    next_cursor: str | None = Field(description="The `cursor` of the next page.")


class FrameAnswer(BaseModel):
    """A sampled frame."""

    index: int
    time_seconds: float | None = Field(description="From the start of the file; null for an image.")
    url: str = Field(description="The frame as an image.")


class FramesAnswer(BaseModel):
    """The frames that a question with these options would see."""

    object: Literal["list"] = "list"
    video: VideoInfo
    data: list[FrameAnswer]


KEEP_BODY = merge_bodies(
    body_of("multipart/form-data", KeepUploadBody, {"filename": "clip.mp4"}),
    body_of("application/json", KeepUrlBody, {"video_url": "https://example.com/clip.mp4"}),
)
RENAME_BODY = body_of("application/json", RenameBody, {"filename": "kitchen, Monday.mp4"})
COMPONENT_BODIES = (KeepUrlBody, KeepUploadBody, RenameBody)

Responses = dict[int | str, dict[str, Any]]

_NOT_FOUND: Responses = {404: error_entry("No such video is kept (any more).")}
VIDEO_RESPONSES: Responses = {**_NOT_FOUND}
KEEP_RESPONSES: Responses = {
    200: {"model": KeptVideoAnswer, "description": "The content was kept already; its life begins anew."},
    201: {"model": KeptVideoAnswer, "description": "The video is kept."},
    **ERROR_RESPONSES,
    507: error_entry("There is no room for it; the message has the numbers."),
}
FRAMES_RESPONSES: Responses = {
    **{status: ERROR_RESPONSES[status] for status in (400, 415, 429, 503, 504)},
    **_NOT_FOUND,
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
IMAGE_RESPONSES: Responses = {
    200: {
        "description": "The image.",
        "content": {f"image/{kind}": _BYTES for kind in ("jpeg", "png", "webp")},
    },
    **FRAMES_RESPONSES,
}
CONTENT_RESPONSES: Responses = {
    200: {"description": "The whole file.", "content": {"video/*": _BYTES, "image/*": _BYTES}},
    206: {"description": "The range that was asked for.", "content": {"video/*": _BYTES, "image/*": _BYTES}},
    304: {"description": "The client has it already."},
    **_NOT_FOUND,
    416: error_entry("The range lies behind the end of the file."),
}


def query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """A flat model as query parameters that a route reads by itself."""
    properties = TypeAdapter(model).json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.get("description", ""),
            "schema": {key: value for key, value in schema.items() if key not in ("title", "description")},
        }
        for name, schema in properties.items()
    ]
