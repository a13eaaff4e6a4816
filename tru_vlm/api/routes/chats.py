"""Chats about kept videos: ``/v1/chats``, to begin, list, rename, delete and export them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tru_vlm.api.bodies import parse_object, validate
from tru_vlm.api.request_body import owner_of, receive_json
from tru_vlm.api.service import InferenceService
from tru_vlm.api.stored_chats.bodies import ChatTitleBody, NewChatBody
from tru_vlm.api.stored_chats.openapi import (
    CHAT_RESPONSES,
    CHAT_TITLE_BODY,
    EXPORT_RESPONSES,
    NEW_CHAT_BODY,
    NEW_CHAT_RESPONSES,
    WHOLE_CHAT_RESPONSES,
    ChatAnswer,
    ChatIdPath,
    ChatList,
)
from tru_vlm.api.stored_chats.turns import Chats
from tru_vlm.chats.export import to_markdown
from tru_vlm.chats.records import Chat, Turn

_PAGE_SIZE, _MAX_PAGE_SIZE = 20, 100


def build_router(service: InferenceService, chats: Chats) -> APIRouter:
    """The routes over ``chats``; ``service`` receives their bodies."""
    router = APIRouter(tags=["chats"])

    @router.post("/v1/chats", status_code=201, openapi_extra=NEW_CHAT_BODY, responses=NEW_CHAT_RESPONSES)
    async def create(request: Request, response: Response) -> ChatAnswer:
        """Begin a chat about kept videos. Its turns are asked at `/v1/chats/{id}/turns`."""
        body = validate(NewChatBody, parse_object(await receive_json(service, request)))
        chat = await chats.create(owner_of(request), body.ids, body.title)
        response.headers["Location"] = f"/v1/chats/{chat.id}"
        return chat_answer(chat)

    @router.get("/v1/chats")
    async def page(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=_MAX_PAGE_SIZE, description="Most chats of a page.")] = _PAGE_SIZE,
        cursor: Annotated[
            str | None, Query(pattern=r"^[0-9]{1,18}$", description="A page's `next_cursor`, for the page after it.")
        ] = None,
        query: Annotated[
            str | None, Query(min_length=1, max_length=200, description="Only chats with this in their title.")
        ] = None,
    ) -> ChatList:
        """The chats, the last used first."""
        below = int(cursor) if cursor is not None else None
        found = await chats.store.page(owner_of(request), below=below, limit=limit + 1, words=query)
        shown, has_more = found[:limit], len(found) > limit
        next_cursor = str(shown[-1].place) if has_more else None
        return ChatList(data=[chat_answer(chat) for chat in shown], has_more=has_more, next_cursor=next_cursor)

    @router.get("/v1/chats/{chat_id}", response_class=JSONResponse, responses=WHOLE_CHAT_RESPONSES)
    async def chat(chat_id: ChatIdPath, request: Request) -> Response:
        """A chat with its turns."""
        return JSONResponse(await _whole(chats, owner_of(request), chat_id))

    @router.patch("/v1/chats/{chat_id}", openapi_extra=CHAT_TITLE_BODY, responses=CHAT_RESPONSES)
    async def rename(chat_id: ChatIdPath, request: Request) -> ChatAnswer:
        """Give a chat another title."""
        body = validate(ChatTitleBody, parse_object(await receive_json(service, request)))
        return chat_answer(await chats.store.rename(owner_of(request), chat_id, body.title))

    @router.delete("/v1/chats/{chat_id}", status_code=204, response_model=None, responses=CHAT_RESPONSES)
    async def delete(chat_id: ChatIdPath, request: Request) -> None:
        """Remove a chat. Its videos stay; a turn that runs is answered, and not stored."""
        await chats.store.delete(owner_of(request), chat_id)

    @router.get("/v1/chats/{chat_id}/export", response_class=Response, responses=EXPORT_RESPONSES)
    async def export(
        chat_id: ChatIdPath,
        request: Request,
        format: Annotated[  # noqa: A002 - the query's own name
            Literal["markdown", "json"], Query(description="To be read by people, or by programs.")
        ] = "markdown",
    ) -> Response:
        """The whole conversation as a file."""
        name, suffix = chat_id, "md" if format == "markdown" else "json"
        if format == "json":
            response: Response = JSONResponse(await _whole(chats, owner_of(request), chat_id))
        else:
            chat, turns = await chats.store.with_turns(owner_of(request), chat_id)
            names = [video.filename if video else None for video in await chats.videos(chat)]
            response = Response(to_markdown(chat, turns, names), media_type="text/markdown")
        response.headers["Content-Disposition"] = f'attachment; filename="{name}.{suffix}"'
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return router


def chat_answer(chat: Chat) -> ChatAnswer:
    """A chat as clients read it."""
    return ChatAnswer(
        id=chat.id,
        title=chat.title,
        video_ids=list(chat.video_ids),
        num_turns=chat.num_turns,
        created_at=int(chat.created_at),
        updated_at=int(chat.updated_at),
    )


async def _whole(chats: Chats, owner: str, chat_id: str) -> dict[str, Any]:
    chat, turns = await chats.store.with_turns(owner, chat_id)
    videos = await chats.videos(chat)
    return {
        **chat_answer(chat).model_dump(),
        "videos": [
            {"id": video_id, "filename": video.filename if video else None, "is_kept": video is not None}
            for video_id, video in zip(chat.video_ids, videos, strict=True)
        ],
        "turns": [_turn_answer(turn) for turn in turns],
    }


def _turn_answer(turn: Turn) -> dict[str, Any]:
    return {
        "index": turn.index,
        "prompt": turn.prompt,
        "status": turn.status,
        "model": turn.request.get("model"),
        "video_params": turn.request.get("video_params", {}),
        "generation_params": turn.request.get("generation_params", {}),
        "answer": turn.answer,
        "error": turn.error,
        "created_at": int(turn.created_at),
    }
