"""What the routes of chats answer, as the OpenAPI schema shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field

from tru_vlm.api.openapi.description import ANSWER_RESPONSES, ERROR_RESPONSES, ErrorDetail, body_of, error_entry
from tru_vlm.api.stored_chats.bodies import ChatTitleBody, NewChatBody, RetryBody, TurnBody
from tru_vlm.types import Answer

ChatIdPath = Annotated[str, Path(max_length=128, description="The chat's `id`.")]
TurnIndexPath = Annotated[int, Path(ge=0, le=1 << 20, description="The turn's `index`.")]

_VIDEO_ID = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class ChatAnswer(BaseModel):
    """A chat."""

    id: str = Field(examples=["chat-5f0c9a7e2b"])
    object: Literal["chat"] = "chat"
    title: str | None = Field(description="Null until the first question, if none was given.")
    video_ids: list[str] = Field(examples=[[_VIDEO_ID]])
    num_turns: int
    created_at: int = Field(description="Seconds since 1970.", examples=[1790000000])
    updated_at: int = Field(description="Of the last question.", examples=[1790000060])


class ChatList(BaseModel):
    """A page of the list, the last used first."""

    object: Literal["list"] = "list"
    data: list[ChatAnswer]
    has_more: bool
    next_cursor: str | None = Field(description="The `cursor` of the next page.")


class ChatVideoAnswer(BaseModel):
    """A video that a chat is about."""

    id: str
    filename: str | None
    is_kept: bool = Field(description="False after it was deleted or has expired; keep the same file again to go on.")


class TurnAnswer(BaseModel):
    """A question, and what became of it."""

    index: int
    prompt: str
    status: Literal["running", "done", "stopped", "failed"]
    model: str | None = Field(description="The model that was asked for; null is the server's default.")
    video_params: dict[str, Any]
    generation_params: dict[str, Any]
    answer: Answer | None = Field(description="Of a stopped turn, what there was of it.")
    error: ErrorDetail | None
    created_at: int


class WholeChatAnswer(ChatAnswer):
    """A chat with its turns."""

    videos: list[ChatVideoAnswer]
    turns: list[TurnAnswer]


NEW_CHAT_BODY = body_of("application/json", NewChatBody, {"video_id": _VIDEO_ID})
CHAT_TITLE_BODY = body_of("application/json", ChatTitleBody, {"title": "The kitchen, Monday"})
TURN_BODY = body_of("application/json", TurnBody, {"prompt": "What happens?", "generation_params": {"max_tokens": 128}})
RETRY_BODY = body_of("application/json", RetryBody, {"stream": False})
RETRY_BODY["requestBody"]["required"] = False
COMPONENT_BODIES = (NewChatBody, ChatTitleBody, TurnBody, RetryBody)

Responses = dict[int | str, dict[str, Any]]

CHAT_RESPONSES: Responses = {404: error_entry("There is no such chat (any more).")}
NEW_CHAT_RESPONSES: Responses = {
    400: ERROR_RESPONSES[400],
    404: error_entry("No such video is kept (any more)."),
    507: error_entry("Too many chats are kept."),
}
WHOLE_CHAT_RESPONSES: Responses = {200: {"model": WholeChatAnswer, "description": "The chat."}, **CHAT_RESPONSES}
EXPORT_RESPONSES: Responses = {
    200: {
        "description": "The chat as a file.",
        "content": {
            "text/markdown": {"schema": {"type": "string"}},
            "application/json": {"schema": {"type": "object"}},
        },
    },
    **CHAT_RESPONSES,
}
TURN_RESPONSES: Responses = {
    **ANSWER_RESPONSES,
    404: error_entry("There is no such chat, turn or model, or the chat's video is not kept any more."),
    409: error_entry("A turn of the chat is being answered, or the turn is not the last one."),
}
