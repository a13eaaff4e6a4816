"""A chat completion's body becomes an :class:`InferenceRequest`: messages, media, parameters, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tru_vlm.api.bodies import parse_object, validate
from tru_vlm.api.chat_bodies import (
    NEUTRAL,
    ChatImagePart,
    ChatMessage,
    ChatRequestBody,
    ChatTextPart,
    ChatVideoPart,
)
from tru_vlm.api.chat_media import SharedSampling, media_request
from tru_vlm.api.inference_request import FieldNames, InferenceRequest, MediaRequest
from tru_vlm.api.schemas import build_generation, check_length
from tru_vlm.errors import InvalidRequestError
from tru_vlm.settings import Settings
from tru_vlm.types import MediaPart, Message, Role, TextPart

Part = ChatTextPart | ChatVideoPart | ChatImagePart
_PART_TYPES: dict[str, type[Part]] = {"text": ChatTextPart, "video_url": ChatVideoPart, "image_url": ChatImagePart}
_SYSTEM = frozenset({"system", "developer"})


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
    given = {name: value for name, value in values.items() if value is not None}
    _refuse_unsupported(given)
    chat = validate(ChatRequestBody, {name: value for name, value in given.items() if name not in NEUTRAL})
    if chat.stream_options is not None and not chat.stream:
        raise InvalidRequestError("stream_options is accepted only with stream.", param="stream_options")
    messages, media = _Conversation(SharedSampling.of(chat), settings).read(chat.messages)
    length, length_name = _length(chat)
    return ChatRequest(
        InferenceRequest(
            messages=messages,
            media=media,
            generation=build_generation(
                chat.model_copy(update={"max_tokens": length}),
                settings,
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


def _refuse_unsupported(given: Mapping[str, Any]) -> None:
    for name, values in NEUTRAL.items():
        if name in given and given[name] not in values:
            accepted = " or ".join(["null", *map(repr, values)])
            text = f"{name} is not supported by this server; leave it out (accepted: {accepted})."
            raise InvalidRequestError(text, param=name, code="unsupported_parameter")


def _length(chat: ChatRequestBody) -> tuple[int | None, str]:
    """The most tokens of the answer, and the field that says so."""
    old, new = chat.max_tokens, chat.max_completion_tokens
    if old is not None and new is not None and old != new:
        text = f"max_tokens is {old} and max_completion_tokens is {new}; give one of them."
        raise InvalidRequestError(text, param="max_completion_tokens")
    return (old, "max_tokens") if new is None else (new, "max_completion_tokens")


class _Conversation:
    """Reads messages in order, and numbers their media."""

    def __init__(self, shared: SharedSampling, settings: Settings) -> None:
        self._shared = shared
        self._settings = settings
        self._media: list[MediaRequest] = []

    def read(self, given: list[ChatMessage]) -> tuple[tuple[Message, ...], tuple[MediaRequest, ...]]:
        """Messages and media."""
        system: list[str] = []
        turns: list[Message] = []
        for index, message in enumerate(given):
            at = f"messages.{index}"
            if message.role not in _SYSTEM:
                turns.append(Message(_turn_role(message), self._content(message, at)))
            elif turns:
                # Qwen's template leaves out a system message that stands later, without a word.
                raise InvalidRequestError("System messages must come first.", param=f"{at}.role")
            else:
                system.append(_text_of(self._content(message, at)))
        messages = (Message("system", (TextPart("\n\n".join(system)),)), *turns) if system else tuple(turns)
        num_characters = sum(len(_text_of(message.content)) for message in messages)
        check_length(num_characters, self._settings, param="messages")
        if not self._media and not any(_text_of(turn.content).strip() for turn in turns):
            raise InvalidRequestError("The messages are empty; ask a question.", param="messages")
        return messages, tuple(self._media)

    def _content(self, message: ChatMessage, at: str) -> tuple[TextPart | MediaPart, ...]:
        content, where = message.content, f"{at}.content"
        if isinstance(content, str):
            return (TextPart(content),)
        if not isinstance(content, list):
            raise InvalidRequestError(f"{where} must be a string or a list of parts.", param=where)
        return tuple(self._part(part, message, f"{where}.{index}") for index, part in enumerate(content))

    def _part(self, given: Any, message: ChatMessage, at: str) -> TextPart | MediaPart:
        kind = given.get("type") if isinstance(given, dict) else None
        model = _PART_TYPES.get(kind) if isinstance(kind, str) else None
        if model is None:
            accepted = ", ".join(_PART_TYPES)
            raise InvalidRequestError(f"{at}.type is {str(kind)[:80]!r}; accepted are {accepted}.", param=f"{at}.type")
        part: Part = validate(model, given, at=at)
        if isinstance(part, ChatTextPart):
            return TextPart(part.text)
        if message.role != "user":
            raise InvalidRequestError(f"{at}: videos and images belong into the user's messages.", param=f"{at}.type")
        if len(self._media) == self._settings.max_request_media:
            text = f"At most {self._settings.max_request_media} videos and images are accepted in one conversation."
            raise InvalidRequestError(text, param=at)
        url = part.video_url if isinstance(part, ChatVideoPart) else part.image_url
        self._media.append(media_request(url, self._shared, at=f"{at}.{part.type}"))
        return MediaPart(len(self._media) - 1)


def _turn_role(message: ChatMessage) -> Role:
    return "assistant" if message.role == "assistant" else "user"


def _text_of(content: tuple[TextPart | MediaPart, ...]) -> str:
    return "".join(part.text for part in content if isinstance(part, TextPart))
