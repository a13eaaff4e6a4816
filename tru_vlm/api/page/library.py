"""The page's list of kept videos, and ``GET /ui/library``, which searches it and goes on with it.

It knows no HTML but that the renderer has a partial for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tru_vlm.api.page.spans import until
from tru_vlm.api.request_body import owner_of
from tru_vlm.library.catalog import Video
from tru_vlm.library.store import VideoLibrary

if TYPE_CHECKING:
    from tru_vlm.api.page.html import PageRenderer

_NUM_LISTED = 20


@dataclass(frozen=True, slots=True)
class ShownVideo:
    """A kept video; ``kind`` is the page's word, the URLs are relative to the page."""

    id: str
    kind: str
    name: str
    url: str
    thumbnail_url: str
    size_bytes: int
    width: int
    height: int
    duration_seconds: float | None
    expiry: str


@dataclass(frozen=True, slots=True)
class ShownLibrary:
    """A page of the list.

    Attributes:
        videos: the newest first.
        words: what was searched for; empty for all.
        next_cursor: where the next page begins; None after the last one.
        is_first: whether the list begins here.
    """

    videos: list[ShownVideo]
    words: str = ""
    next_cursor: str | None = None
    is_first: bool = True


async def show_library(
    library: VideoLibrary, owner: str, *, words: str = "", cursor: str | None = None
) -> ShownLibrary:
    """A page of an owner's videos, those with ``words`` in their name."""
    below = int(cursor) if cursor is not None else None
    found = await library.page(owner, below=below, limit=_NUM_LISTED + 1, words=words or None)
    page, has_more = found[:_NUM_LISTED], len(found) > _NUM_LISTED
    return ShownLibrary(
        [show_video(video, library.expires_at(video)) for video in page],
        words,
        str(page[-1].number) if has_more else None,
        is_first=cursor is None,
    )


def show_video(video: Video, expires_at: float | None = None) -> ShownVideo:
    """A kept video as the page has it."""
    content = video.content
    address = f"v1/videos/{content.sha256}"
    return ShownVideo(
        id=content.sha256,
        kind="picture" if content.kind == "image" else "video",
        name=video.filename or "video",
        url=f"{address}/content",
        thumbnail_url=f"{address}/thumbnail",
        size_bytes=content.size_bytes,
        width=content.width,
        height=content.height,
        duration_seconds=content.duration_seconds,
        expiry="" if expires_at is None else until(expires_at - time.time()),
    )


def add_library(router: APIRouter, library: VideoLibrary, renderer: PageRenderer, headers: Mapping[str, str]) -> None:
    """The route of the list."""

    @router.get("/ui/library", include_in_schema=False)
    async def rows(
        request: Request,
        query: Annotated[str, Query(max_length=200)] = "",
        cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None,
    ) -> Response:
        """A page of the kept videos, as rows."""
        found = await show_library(library, owner_of(request), words=query.strip(), cursor=cursor)
        return HTMLResponse(renderer.library(found), headers={**headers, "Cache-Control": "no-store"})
