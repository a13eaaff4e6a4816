"""The body of ``POST /v1/responses`` as the OpenAPI schema shows it.  Its meaning is ``responses_request.py``'s."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema, model_validator

from tru_vlm.api.bodies import Body, VideoId, VideoParamsBody, conflict
from tru_vlm.api.openai_compatible.chat_bodies import ChatImagePart, ChatVideoPart, ConversationBody, ImageUrlBody, Url
from tru_vlm.api.openai_compatible.neutral import describe_neutral


class InputTextPart(Body):
    """Words of the user or of the system."""

    type: Literal["input_text"]
    text: str


class OutputTextPart(Body):
    """Words of an earlier answer, as it came."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None


class InputImagePart(ImageUrlBody):
    """An image: give `image_url` or `video_id`."""

    type: Literal["input_image"]
    url: Url | None = Field(None, alias="image_url")
    detail: Literal["auto", "low", "high", "original"] | None = Field(  # type: ignore[assignment]
        None, description="Changes nothing; give `max_pixels`."
    )


class InputVideoPart(VideoParamsBody):
    """A video (`video_url` or `video_id`), and how it alone is sampled.  OpenAI's API has no such part."""

    type: Literal["input_video"]
    video_url: Url | None = None
    video_id: VideoId | None = None


RESPONSES_PARTS = (InputTextPart, OutputTextPart, InputImagePart, InputVideoPart)
_PART_REFS = [
    {"$ref": f"#/components/schemas/{part.__name__}"} for part in (*RESPONSES_PARTS, ChatVideoPart, ChatImagePart)
]


class InputMessage(Body):
    """One turn, new or sent back as it came.  System messages come first."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Any,
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": _PART_REFS}}]}),
        Field(description="Words, or parts: words, videos and images in the order in which the model sees them."),
    ]
    id: str | None = Field(None, description="Changes nothing.")
    status: Literal["in_progress", "completed", "incomplete"] | None = Field(None, description="Changes nothing.")
    phase: Literal["commentary", "final_answer"] | None = Field(None, description="Changes nothing.")


_MESSAGE_REF = {"$ref": f"#/components/schemas/{InputMessage.__name__}"}


class TextFormatBody(Body):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="`text` is free, `json_object` any JSON object, `json_schema` what the schema allows."
    )
    name: str | None = Field(None, description="Of the schema; for people.")
    description: str | None = Field(None, description="For people.")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="For the type `json_schema`.")
    strict: bool | None = Field(None, description="The schema is always followed to the letter; this changes nothing.")

    @model_validator(mode="after")
    def _check(self) -> TextFormatBody:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise conflict("schema", "give schema with the type json_schema, and with no other")
        return self


class TextBody(Body):
    """About the answer's text."""

    format: TextFormatBody | None = None
    verbosity: Literal["medium"] | None = Field(None, description="Changes nothing.")


class ResponsesStreamOptions(Body):
    """What a stream has beside the text."""

    include_obfuscation: bool | None = Field(None, description="Changes nothing: nothing is added to events.")


RESPONSES_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({}, {"effort": "none"}),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
"""Fields of OpenAI's that this server does not implement, and the values, beside null, that ask for nothing."""


class ResponsesRequestBody(ConversationBody):
    """OpenAI's response.  Nothing is stored: an earlier turn comes along in `input`.  Null counts as left out."""

    model_config = ConfigDict(json_schema_extra=describe_neutral(RESPONSES_NEUTRAL))

    input: Annotated[
        list[InputMessage],
        Field(min_length=1, description="A question, or the turns of a conversation."),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _MESSAGE_REF, "minItems": 1}]}),
    ]
    instructions: str | None = Field(None, description="A system message that stands before all others.")
    max_output_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Most tokens to generate.")
    text: TextBody | None = None
    stream_options: ResponsesStreamOptions | None = None
