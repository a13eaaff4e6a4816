"""Collects the turns of a conversation, in order, and numbers their media.  It knows no API's names of parts.

What a part is called and holds is the API's own; what must hold for a conversation stands here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tru_vlm.api.bodies import Body, validate
from tru_vlm.api.inference_request import MediaRequest
from tru_vlm.api.openai_compatible.chat_bodies import ImageUrlBody, VideoUrlBody
from tru_vlm.api.openai_compatible.chat_media import SharedSampling, media_request
from tru_vlm.api.schemas import check_length
from tru_vlm.errors import InvalidRequestError
from tru_vlm.settings import Settings
from tru_vlm.types import MediaPart, Message, Role, TextPart

_SYSTEM = frozenset({"system", "developer"})


@dataclass(frozen=True, slots=True)
class Medium:
    """A part's video or image, and where in the part its fields stand.

    Attributes:
        url: where it is, and how it is sampled.
        at: the part's field that holds it; empty when the part itself does.
        url_name: the field that holds the address.
    """

    url: VideoUrlBody | ImageUrlBody
    at: str = ""
    url_name: str = "url"


class Conversation:
    """Reads messages one after the other.

    Args:
        parts: the API's bodies of parts, by their ``type``.
        open_part: a part's words, or its medium.
        shared: what the request says of all its media.
        settings: the server's limits.
        param: the body's field that holds the conversation.
    """

    def __init__(
        self,
        parts: Mapping[str, type[Body]],
        open_part: Callable[[Any], str | Medium],
        *,
        shared: SharedSampling,
        settings: Settings,
        param: str,
    ) -> None:
        self._parts = parts
        self._open_part = open_part
        self._shared = shared
        self._settings = settings
        self._param = param
        self._system: list[str] = []
        self._turns: list[Message] = []
        self._media: list[MediaRequest] = []

    def add(self, role: str, content: Any, *, at: str) -> None:
        """The next message.

        Args:
            role: system, developer, user or assistant.
            content: words, or a list of parts as they came.
            at: where the message stands in the body, dotted.

        Raises:
            InvalidRequestError: naming the field at fault.
        """
        if role not in _SYSTEM:
            turn: Role = "assistant" if role == "assistant" else "user"
            self._turns.append(Message(turn, self._content(role, content, f"{at}.content")))
        elif self._turns:
            # Qwen's template leaves out a system message that stands later, without a word.
            raise InvalidRequestError("System messages must come first.", param=f"{at}.role")
        else:
            self._system.append(_text_of(self._content(role, content, f"{at}.content")))

    def finish(self) -> tuple[tuple[Message, ...], tuple[MediaRequest, ...]]:
        """All messages, and their media in order.

        Raises:
            InvalidRequestError: if they are too long, or ask nothing.
        """
        system = (Message("system", (TextPart("\n\n".join(self._system)),)),) if self._system else ()
        messages = (*system, *self._turns)
        num_characters = sum(len(_text_of(message.content)) for message in messages)
        check_length(num_characters, self._settings, param=self._param)
        if not self._media and not any(_text_of(turn.content).strip() for turn in self._turns):
            raise InvalidRequestError(f"The {self._param} is empty; ask a question.", param=self._param)
        return messages, tuple(self._media)

    def _content(self, role: str, content: Any, at: str) -> tuple[TextPart | MediaPart, ...]:
        if isinstance(content, str):
            return (TextPart(content),)
        if not isinstance(content, list):
            raise InvalidRequestError(f"{at} must be a string or a list of parts.", param=at)
        return tuple(self._part(role, part, f"{at}.{index}") for index, part in enumerate(content))

    def _part(self, role: str, given: Any, at: str) -> TextPart | MediaPart:
        kind = given.get("type") if isinstance(given, dict) else None
        model = self._parts.get(kind) if isinstance(kind, str) else None
        if model is None:
            accepted = ", ".join(self._parts)
            raise InvalidRequestError(f"{at}.type is {str(kind)[:80]!r}; accepted are {accepted}.", param=f"{at}.type")
        opened = self._open_part(validate(model, given, at=at))
        if isinstance(opened, str):
            return TextPart(opened)
        if role != "user":
            raise InvalidRequestError(f"{at}: videos and images belong into the user's messages.", param=f"{at}.type")
        if len(self._media) == self._settings.max_request_media:
            text = f"At most {self._settings.max_request_media} videos and images are accepted in one conversation."
            raise InvalidRequestError(text, param=at)
        where = f"{at}.{opened.at}" if opened.at else at
        self._media.append(media_request(opened.url, self._shared, at=where, url_name=opened.url_name))
        return MediaPart(len(self._media) - 1)


def _text_of(content: tuple[TextPart | MediaPart, ...]) -> str:
    return "".join(part.text for part in content if isinstance(part, TextPart))
