"""A chat completion's body becomes an :class:`InferenceRequest`: messages, media, parameters, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tru_vlm.api.bodies import parse_object, validate
from tru_vlm.api.inference_request import FieldNames, InferenceRequest
from tru_vlm.api.openai_compatible.chat_bodies import (
    NEUTRAL,
    ChatImagePart,
    ChatRequestBody,
    ChatTextPart,
    ChatVideoPart,
)
from tru_vlm.api.openai_compatible.chat_media import SharedSampling
from tru_vlm.api.openai_compatible.conversation import Conversation, Medium
from tru_vlm.api.openai_compatible.neutral import without_neutral
from tru_vlm.api.schemas import build_generation
from tru_vlm.errors import InvalidRequestError
from tru_vlm.settings import Settings

Part = ChatTextPart | ChatVideoPart | ChatImagePart
_PARTS: dict[str, type[Part]] = {"text": ChatTextPart, "video_url": ChatVideoPart, "image_url": ChatImagePart}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked chat completion.

    Attributes:
        inference: what is to be answered.
        include_usage: whether a stream ends with the token counts.
    """

    inference: InferenceRequest
    include_usage: bool


def parse_chat(body: bytes, settings: Settings) -> ChatRequest:
    """A JSON body as a request.

    Args:
        body: the bytes.
        settings: the server's limits and defaults.

    Raises:
        InvalidRequestError: naming the field at fault and what is accepted.
    """
    return check_chat(parse_object(body), settings)


def check_chat(values: Mapping[str, Any], settings: Settings) -> ChatRequest:
    """A body that is a JSON object as a request.  Raises as :func:`parse_chat`."""
    chat = validate(ChatRequestBody, without_neutral(values, NEUTRAL))
    if chat.stream_options is not None and not chat.stream:
        raise InvalidRequestError("stream_options is accepted only with stream.", param="stream_options")
    conversation = Conversation(_PARTS, _open_part, shared=SharedSampling.of(chat), settings=settings, param="messages")
    for index, message in enumerate(chat.messages):
        conversation.add(message.role, message.content, at=f"messages.{index}")
    messages, media = conversation.finish()
    length, length_name = _length(chat)
    return ChatRequest(
        InferenceRequest(
            messages=messages,
            media=media,
            generation=build_generation(
                chat,
                settings,
                max_tokens=length,
                response_format=chat.response_format,
                max_tokens_param=length_name,
                response_format_param="response_format",
            ),
            max_tokens_is_default=length is None,
            stream=chat.stream,
            names=FieldNames(prompt="messages", max_tokens=length_name, response_format="response_format"),
            model=chat.model,
            routing_key=chat.prompt_cache_key or chat.user or None,
        ),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
    )


def _length(chat: ChatRequestBody) -> tuple[int | None, str]:
    """The most tokens of the answer, and the field that says so."""
    old, new = chat.max_tokens, chat.max_completion_tokens
    if old is not None and new is not None and old != new:
        text = f"max_tokens is {old} and max_completion_tokens is {new}; give one of them."
        raise InvalidRequestError(text, param="max_completion_tokens")
    return (old, "max_tokens") if new is None else (new, "max_completion_tokens")


def _open_part(part: Part) -> str | Medium:
    if isinstance(part, ChatTextPart):
        return part.text
    url = part.video_url if isinstance(part, ChatVideoPart) else part.image_url
    return Medium(url, at=part.type)
