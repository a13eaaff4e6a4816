"""A response's body becomes an :class:`InferenceRequest`, and what the answer repeats of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tru_vlm.api.bodies import JsonSchemaBody, ResponseFormatBody, VideoParamsBody, parse_object, validate
from tru_vlm.api.inference_request import FieldNames, InferenceRequest
from tru_vlm.api.openai_compatible.chat_bodies import ChatImagePart, ChatVideoPart, VideoUrlBody
from tru_vlm.api.openai_compatible.chat_media import SharedSampling
from tru_vlm.api.openai_compatible.conversation import Conversation, Medium
from tru_vlm.api.openai_compatible.neutral import without_neutral
from tru_vlm.api.openai_compatible.responses_bodies import (
    RESPONSES_NEUTRAL,
    InputImagePart,
    InputTextPart,
    InputVideoPart,
    OutputTextPart,
    ResponsesRequestBody,
    TextFormatBody,
)
from tru_vlm.api.schemas import build_generation
from tru_vlm.errors import InvalidRequestError
from tru_vlm.settings import Settings

Part = InputTextPart | OutputTextPart | InputImagePart | InputVideoPart | ChatVideoPart | ChatImagePart
_PARTS: dict[str, type[Part]] = {
    "input_text": InputTextPart,
    "output_text": OutputTextPart,
    "input_image": InputImagePart,
    "input_video": InputVideoPart,
    "video_url": ChatVideoPart,
    "image_url": ChatImagePart,
}
_FORMAT = "text.format"
_FREE = {"type": "text"}


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """A checked request for a response.

    Attributes:
        inference: what is to be answered.
        repeated: the fields of the body that the answer has too.
    """

    inference: InferenceRequest
    repeated: dict[str, Any]


def parse_responses(body: bytes, settings: Settings) -> ResponsesRequest:
    """A JSON body as a request.

    Args:
        body: the bytes.
        settings: the server's limits and defaults.

    Raises:
        InvalidRequestError: naming the field at fault and what is accepted.
    """
    given = without_neutral(parse_object(body), RESPONSES_NEUTRAL)
    asked = validate(ResponsesRequestBody, {**given, **_as_messages(given)})
    if asked.stream_options is not None and not asked.stream:
        raise InvalidRequestError("stream_options is accepted only with stream.", param="stream_options")
    conversation = Conversation(_PARTS, _open_part, shared=SharedSampling.of(asked), settings=settings, param="input")
    if asked.instructions is not None:
        conversation.add("system", asked.instructions, at="instructions")
    for index, message in enumerate(asked.input):
        conversation.add(message.role, message.content, at=f"input.{index}")
    messages, media = conversation.finish()
    text_format = asked.text.format if asked.text else None
    generation = build_generation(
        asked,
        settings,
        max_tokens=asked.max_output_tokens,
        response_format=_response_format(text_format),
        max_tokens_param="max_output_tokens",
        response_format_param=_FORMAT,
    )
    inference = InferenceRequest(
        messages=messages,
        media=media,
        generation=generation,
        max_tokens_is_default=asked.max_output_tokens is None,
        stream=asked.stream,
        names=FieldNames(prompt="input", max_tokens="max_output_tokens", response_format=_FORMAT),
        model=asked.model,
        routing_key=asked.prompt_cache_key or asked.user or None,
    )
    repeated = {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "temperature": generation.temperature,
        "text": {"format": text_format.model_dump(by_alias=True, exclude_none=True) if text_format else _FREE},
        "top_p": generation.top_p,
    }
    return ResponsesRequest(inference, repeated)


def _as_messages(given: Mapping[str, Any]) -> dict[str, Any]:
    """The input as a list of messages; empty where there is none.

    Raises:
        InvalidRequestError: naming the first item that is something else.
    """
    items = given.get("input")
    if isinstance(items, str):
        return {"input": [{"role": "user", "content": items}]}
    for index, item in enumerate(items if isinstance(items, list) else []):
        kind = item.get("type", "message") if isinstance(item, dict) else "message"
        if kind != "message":
            param = f"input.{index}.type"
            raise InvalidRequestError(f"{param} is {str(kind)[:80]!r}; accepted is 'message'.", param=param)
    return {}


def _response_format(given: TextFormatBody | None) -> ResponseFormatBody | None:
    """The format as the other routes have it, its schema checked."""
    if given is None:
        return None
    if given.json_schema is None:
        return ResponseFormatBody(type=given.type, json_schema=None)
    named = given.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
    return ResponseFormatBody(type=given.type, json_schema=validate(JsonSchemaBody, named, at=_FORMAT))


def _open_part(part: Part) -> str | Medium:
    if isinstance(part, InputTextPart | OutputTextPart):
        return part.text
    if isinstance(part, InputImagePart):
        return Medium(part, url_name="image_url")
    if isinstance(part, InputVideoPart):
        sampling = part.model_dump(include=set(VideoParamsBody.model_fields), exclude_unset=True)
        return Medium(VideoUrlBody(url=part.video_url, video_id=part.video_id, **sampling), url_name="video_url")
    return Medium(part.video_url if isinstance(part, ChatVideoPart) else part.image_url, at=part.type)
