"""What the routes of chats take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from tru_vlm.api.bodies import Body, GenerationParamsBody, VideoId, VideoParamsBody, conflict
from tru_vlm.api.schemas import ModelName, Prompt

MAX_TITLE_CHARACTERS = 200

Title = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_TITLE_CHARACTERS,
        pattern=r"\S",
        description="For people.",
        examples=["The kitchen, Monday"],
    ),
]


class NewChatBody(Body):
    """A new chat: give `video_id` or `video_ids`."""

    video_id: VideoId | None = None
    video_ids: Annotated[list[VideoId], Field(min_length=1)] | None = Field(
        None, description="Several kept videos or images, in order."
    )
    title: Title | None = Field(None, description="For people; left out, the first question becomes it.")

    @model_validator(mode="after")
    def _check(self) -> NewChatBody:
        if (self.video_id is None) == (self.video_ids is None):
            raise conflict("video_id", "give video_id or video_ids, and not both")
        return self

    @property
    def ids(self) -> list[str]:
        """The videos."""
        return [self.video_id] if self.video_id is not None else list(self.video_ids or ())


class ChatTitleBody(Body):
    """Another title."""

    title: Title


class TurnBody(Body):
    """The next question of a chat."""

    prompt: Prompt
    video_params: VideoParamsBody | None = Field(
        None,
        description="How the chat's videos are sampled from this turn on; left out, as in the turn before, "
        "which alone spares computing them again.",
    )
    generation_params: GenerationParamsBody = GenerationParamsBody()
    model: ModelName | None = Field(None, description="Left out, as in the turn before.")
    stream: bool = Field(False, description="Answer as server-sent events.")


class RetryBody(Body):
    """The last question again, with its parameters."""

    stream: bool = Field(False, description="Answer as server-sent events.")
