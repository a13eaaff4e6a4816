"""The native routes' requests, as the OpenAPI schema shows them, and how they become :class:`InferenceRequest`.

This is the door: every field is checked here once, an unknown one is refused, and the result is trusted afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from tru_vlm.api.bodies import (
    Body,
    GenerationParamsBody,
    ResponseFormatBody,
    SamplingBody,
    VideoId,
    VideoParamsBody,
    media_source,
    parse_object,
    validate,
)
from tru_vlm.api.inference_request import FieldNames, InferenceRequest, MediaRequest
from tru_vlm.errors import InvalidRequestError
from tru_vlm.intake.source import MediaSource
from tru_vlm.intake.spool import SpooledFile
from tru_vlm.settings import Settings
from tru_vlm.types import GenerationParams, MediaPart, Message, TextPart, VideoParams

ModelName = Annotated[
    str,
    Field(
        min_length=1,
        description="A model or alias that `/v1/models` lists; left out, the server's default.",
        examples=["demo"],
    ),
]
Prompt = Annotated[str, Field(min_length=1, description="The question.", examples=["What happens in this video?"])]
VideoUrl = Annotated[
    str,
    Field(
        min_length=1,
        description="Where the video (or image) is: an http(s) URL or a base64 data URI.",
        examples=["https://example.com/clip.mp4"],
    ),
]


class UrlRequestBody(Body):
    """A question about a video that the server fetches, or keeps: give `video_url` or `video_id`."""

    video_url: VideoUrl | None = None
    video_id: VideoId | None = None
    prompt: Prompt
    video_params: VideoParamsBody = VideoParamsBody()
    generation_params: GenerationParamsBody = GenerationParamsBody()
    model: ModelName | None = None
    stream: bool = Field(False, description="Answer as server-sent events.")


class UrlPlanBody(UrlRequestBody):
    """A question to be planned; the body of one that is to be asked will do."""

    prompt: str = Field("", description="The question, if its length is to count.")
    stream: bool = Field(False, description="A plan is never streamed; a question's body may have this field.")


_FLAT_FIELDS = {"prompt", "video_url", "video_id", "model", "stream"}
_VIDEO_FIELDS = frozenset(VideoParamsBody.model_fields)
_STRUCTURED_FIELDS = ("response_format", "logit_bias")
_GENERATION_FIELDS = frozenset(GenerationParamsBody.model_fields)
UPLOAD_FIELDS = frozenset(_FLAT_FIELDS | _VIDEO_FIELDS | _GENERATION_FIELDS)


def parse_json(body: bytes, settings: Settings, *, is_plan: bool = False) -> InferenceRequest:
    """A JSON body as a request.

    Args:
        body: the bytes.
        settings: the server's limits and defaults.
        is_plan: whether a plan is asked for, which needs no prompt.

    Raises:
        InvalidRequestError: naming the field at fault and what is accepted.
    """
    return build_request(validate(UrlPlanBody if is_plan else UrlRequestBody, parse_object(body)), settings)


def parse_form(
    fields: Mapping[str, str], file: SpooledFile | None, settings: Settings, *, is_plan: bool = False
) -> InferenceRequest:
    """The flat fields of a form, and its file, as a request.

    Args:
        fields: its texts.
        file: its video.
        settings: the server's limits and defaults.
        is_plan: whether a plan is asked for, which needs no prompt.

    Raises:
        InvalidRequestError: naming the field at fault and what is accepted.
    """
    return build_request(form_body(fields, file, is_plan=is_plan), settings, file)


def form_body(fields: Mapping[str, str], file: SpooledFile | None, *, is_plan: bool = False) -> UrlRequestBody:
    """The flat fields of a form as a body, without a video if the form has a file.  An empty field counts as left out.

    Raises:
        InvalidRequestError: naming the field at fault and what is accepted.
    """
    given = {name: value for name, value in fields.items() if value != ""}
    unknown = sorted(set(given) - UPLOAD_FIELDS)
    if unknown:
        raise InvalidRequestError(
            f"Unknown field {unknown[0]!r}; accepted are video, {', '.join(sorted(UPLOAD_FIELDS))}.",
            param=unknown[0],
            code="unknown_field",
        )
    named = next((name for name in ("video_url", "video_id") if name in given), None)
    if file is not None and named is not None:
        raise InvalidRequestError(f"Give the file `video` or the field `{named}`, not both.", param=named)
    if file is None and named is None:
        raise InvalidRequestError(
            "The file `video` (or the field `video_url` or `video_id`) is missing.", param="video", code="missing_field"
        )
    values: dict[str, Any] = {name: value for name, value in given.items() if name in _FLAT_FIELDS}
    values["video_params"] = {name: value for name, value in given.items() if name in _VIDEO_FIELDS}
    structured = _parse_structured({name: given.pop(name) for name in _STRUCTURED_FIELDS if name in given})
    values["generation_params"] = {name: value for name, value in given.items() if name in _GENERATION_FIELDS}
    model = UrlPlanBody if is_plan else UrlRequestBody
    body = validate(model, values, is_form=True)
    generation = body.generation_params.model_copy(update=structured)
    return body.model_copy(update={"generation_params": generation})


def _parse_structured(texts: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a form that are JSON text, checked."""
    values = {}
    for name, text in texts.items():
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidRequestError(f"{name} is not valid JSON.", param=name) from None
    body = validate(GenerationParamsBody, values)
    return {name: getattr(body, name) for name in values}


def build_request(
    body: UrlRequestBody,
    settings: Settings,
    file: SpooledFile | None = None,
) -> InferenceRequest:
    """A body whose fields are right as a request.

    Args:
        body: the fields.
        settings: the server's limits and defaults.
        file: the video, if it was uploaded.

    Raises:
        InvalidRequestError: naming the field that this server's limits refuse.
    """
    check_length(len(body.prompt), settings, param="prompt")
    if not body.prompt.strip() and "prompt" in body.model_fields_set:
        raise InvalidRequestError("The prompt is empty; ask a question.", param="prompt")
    source: MediaSource = file or media_source(body.video_url, body.video_id)
    param = "video" if file else "video_id" if body.video_id is not None else "video_url"
    where = "" if file else "generation_params."
    text = (TextPart(body.prompt),) if body.prompt else ()
    params = VideoParams(**body.video_params.model_dump())
    generation = body.generation_params
    return InferenceRequest(
        messages=(Message("user", (MediaPart(0), *text)),),
        media=(MediaRequest(source, params, param=param),),
        generation=build_generation(
            generation,
            settings,
            max_tokens=generation.max_tokens,
            response_format=generation.response_format,
            max_tokens_param=f"{where}max_tokens",
            response_format_param=f"{where}response_format",
        ),
        max_tokens_is_default=generation.max_tokens is None,
        stream=body.stream,
        names=FieldNames(response_format=f"{where}response_format", logit_bias=f"{where}logit_bias"),
        model=body.model,
    )


def build_generation(
    body: SamplingBody,
    settings: Settings,
    *,
    max_tokens: int | None,
    response_format: ResponseFormatBody | None,
    max_tokens_param: str,
    response_format_param: str,
) -> GenerationParams:
    """Checked parameters with the server's defaults filled in.

    Args:
        body: how tokens are drawn.
        settings: the server's limits and defaults.
        max_tokens: most tokens of the answer; None takes the server's limit.
        response_format: what the answer's text must be.
        max_tokens_param: the request's field that errors name for the length.
        response_format_param: and for the format.

    Raises:
        InvalidRequestError: more tokens than the server allows, or a format that contradicts ``ignore_eos``.
    """
    if max_tokens is not None and max_tokens > settings.max_new_tokens:
        raise InvalidRequestError(
            f"{max_tokens_param} is {max_tokens}; this server accepts 1 to {settings.max_new_tokens}.",
            param=max_tokens_param,
        )
    json_schema = response_format.schema_text() if response_format else None
    if json_schema is not None and body.ignore_eos:
        raise InvalidRequestError(
            f"{response_format_param} and ignore_eos contradict each other: JSON ends where it is complete.",
            param=response_format_param,
        )
    stop = body.stop if isinstance(body.stop, list) else [body.stop] if body.stop else []
    return GenerationParams(
        max_tokens=max_tokens or settings.max_new_tokens,
        temperature=settings.temperature if body.temperature is None else body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k),
        min_p=body.min_p,
        seed=body.seed,
        stop=tuple(stop),
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=tuple({int(token): bias for token, bias in (body.logit_bias or {}).items()}.items()),
        ignore_eos=body.ignore_eos,
        json_schema=json_schema,
    )


def check_length(num_characters: int, settings: Settings, *, param: str) -> None:
    """Refuse text that is longer than the server accepts.

    Raises:
        InvalidRequestError: with the numbers.
    """
    if num_characters > settings.max_prompt_characters:
        raise InvalidRequestError(
            f"The prompt has {num_characters} characters; at most {settings.max_prompt_characters} are accepted.",
            param=param,
            code="prompt_too_long",
        )
