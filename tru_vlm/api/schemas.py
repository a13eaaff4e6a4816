"""The requests that clients send, as the OpenAPI schema shows them, and how they become :class:`InferenceRequest`.

This is the door: every field is checked here once, an unknown one is refused, and the result is trusted afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from tru_vlm.errors import InvalidRequestError
from tru_vlm.intake.spool import SpooledFile
from tru_vlm.processor.grammar import ANY_OBJECT, MAX_SCHEMA_CHARACTERS, MAX_SCHEMA_DEPTH
from tru_vlm.settings import Settings
from tru_vlm.types import GenerationParams, MediaPart, Message, TextPart, VideoParams

_MAX_PIXELS = 1 << 34
_MAX_FRAMES = 1 << 20
_MAX_SECONDS = 1e7

StopString = Annotated[str, Field(min_length=1, max_length=256)]


def _conflict(name: str, text: str) -> PydanticCustomError:
    """Two fields that contradict each other; ``name`` is the one to blame."""
    return PydanticCustomError("conflict", "{text}", {"name": name, "text": text})


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


Body = TypeVar("Body", bound=_Body)


class VideoParamsBody(_Body):
    """How frames are sampled. What is left out takes the server's default."""

    fps: Annotated[float, Field(gt=0, le=240)] | None = Field(
        None, description="Frames to sample per second of video; excludes `nframes`.", examples=[2.0]
    )
    nframes: Annotated[int, Field(ge=1, le=_MAX_FRAMES)] | None = Field(
        None, description="Exact number of frames to sample (rounded to even); excludes `fps`."
    )
    min_frames: Annotated[int, Field(ge=1, le=_MAX_FRAMES)] | None = Field(
        None, description="Least number of frames when `fps` decides."
    )
    max_frames: Annotated[int, Field(ge=2, le=_MAX_FRAMES)] | None = Field(
        None, description="Most frames when `fps` decides.", examples=[64]
    )
    min_pixels: Annotated[int, Field(ge=1, le=_MAX_PIXELS)] | None = Field(
        None, description="Least height x width of a resized frame."
    )
    max_pixels: Annotated[int, Field(ge=1, le=_MAX_PIXELS)] | None = Field(
        None, description="Most height x width of a resized frame."
    )
    total_pixels: Annotated[int, Field(ge=1, le=_MAX_PIXELS)] | None = Field(
        None, description="Budget of pixels for the whole video."
    )
    video_start: Annotated[float, Field(ge=0, le=_MAX_SECONDS)] | None = Field(
        None, description="Where to begin, in seconds."
    )
    video_end: Annotated[float, Field(gt=0, le=_MAX_SECONDS)] | None = Field(
        None, description="Where to end, in seconds."
    )
    fit: bool = Field(
        False,
        description=(
            "Where the video would not fit into the model's context, or more is asked for than the server or the file "
            "allows, take smaller or fewer frames instead of refusing, and say so in `video.notes`."
        ),
    )

    @model_validator(mode="after")
    def _check(self) -> VideoParamsBody:
        if self.fps is not None and self.nframes is not None:
            raise _conflict("nframes", "give fps or nframes, not both")
        for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
            first, second = getattr(self, low), getattr(self, high)
            if first is not None and second is not None and first > second:
                raise _conflict(low, f"{low} ({first}) must not exceed {high} ({second})")
        if self.video_start is not None and self.video_end is not None and self.video_end <= self.video_start:
            text = f"video_end ({self.video_end}) must be greater than video_start ({self.video_start})"
            raise _conflict("video_end", text)
        return self


class JsonSchemaBody(_Body):
    """A named JSON schema, as OpenAI's API takes it."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] = Field(description="For people; any word.")
    description: str | None = Field(None, description="For people.")
    json_schema: dict[str, Any] = Field(
        alias="schema", description=f"At most {MAX_SCHEMA_CHARACTERS} characters and {MAX_SCHEMA_DEPTH} levels."
    )
    strict: bool | None = Field(None, description="The schema is always followed to the letter; this changes nothing.")

    @model_validator(mode="after")
    def _check(self) -> JsonSchemaBody:
        if _depth(self.json_schema) > MAX_SCHEMA_DEPTH:
            raise _conflict("schema", f"the schema nests deeper than {MAX_SCHEMA_DEPTH} levels")
        length = len(json.dumps(self.json_schema))
        if length > MAX_SCHEMA_CHARACTERS:
            text = f"the schema has {length} characters; at most {MAX_SCHEMA_CHARACTERS} are accepted"
            raise _conflict("schema", text)
        return self


def _depth(value: Any) -> int:
    """Levels of objects and arrays within each other; stops counting above the most that is accepted."""
    level, depth = [value], 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [part for item in containers for part in (item.values() if isinstance(item, dict) else item)]
        depth += bool(containers)
    return depth


class ResponseFormatBody(_Body):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="`text` is free, `json_object` any JSON object, `json_schema` what the schema allows."
    )
    json_schema: JsonSchemaBody | None = Field(None, description="For the type `json_schema`.")

    @model_validator(mode="after")
    def _check(self) -> ResponseFormatBody:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise _conflict("json_schema", "give json_schema with the type json_schema, and with no other")
        return self

    def schema_text(self) -> str | None:
        """The schema as JSON text; None where the answer is free."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.json_schema)
        return ANY_OBJECT if self.type == "json_object" else None


class GenerationParamsBody(_Body):
    """How the answer is generated. What is left out takes the server's default."""

    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Most tokens to generate.", examples=[128])
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy.", examples=[0.0])
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus mass.")
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = Field(0, description="Keep the k likeliest tokens; 0 keeps all.")
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = Field(None, description="Makes sampling reproducible.")
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = Field(
        None, description="Strings that end the answer; not part of it."
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = Field(
        1.0, description="Above 1 discourages what was already said."
    )
    ignore_eos: bool = Field(False, description="Go on past the model's own end, up to `max_tokens`.")
    response_format: ResponseFormatBody | None = Field(
        None,
        description="Make the answer JSON, on one line; in a form, this field is JSON text. "
        "`max_tokens` and `stop` may cut it off. Excludes `ignore_eos`.",
        examples=[{"type": "json_object"}],
    )


Prompt = Annotated[str, Field(min_length=1, description="The question.", examples=["What happens in this video?"])]
VideoUrl = Annotated[
    str,
    Field(
        min_length=1,
        description="Where the video (or image) is: an http(s) URL or a base64 data URI.",
        examples=["https://example.com/clip.mp4"],
    ),
]


class UrlRequestBody(_Body):
    """A question about a video that the server fetches."""

    video_url: VideoUrl
    prompt: Prompt
    video_params: VideoParamsBody = VideoParamsBody()
    generation_params: GenerationParamsBody = GenerationParamsBody()
    stream: bool = Field(False, description="Answer as server-sent events.")


class UrlPlanBody(UrlRequestBody):
    """A question to be planned; the body of one that is to be asked will do."""

    prompt: Prompt = Field("", description="The question, if its length is to count.")
    stream: bool = Field(False, description="A plan is never streamed; a question's body may have this field.")


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A checked question: where the video is, what is asked, and how to sample and generate.

    Exactly one of ``file`` and ``video_url`` is set; ``prompt`` is empty only where a plan was asked for without one.
    """

    prompt: str
    video_params: VideoParams
    generation: GenerationParams
    max_tokens_is_default: bool
    stream: bool
    file: SpooledFile | None = None
    video_url: str | None = None

    @property
    def video(self) -> SpooledFile | str:
        """The file that was uploaded, or the address of one."""
        return self.file or self.video_url or ""

    @property
    def response_format_param(self) -> str:
        """The field that held the answer's format."""
        return "response_format" if self.file else "generation_params.response_format"

    @property
    def video_param(self) -> str:
        """The field that held the video."""
        return "video" if self.file else "video_url"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question as a conversation."""
        text = (TextPart(self.prompt),) if self.prompt else ()
        return (Message("user", (MediaPart(0), *text)),)


_FLAT_FIELDS = {"prompt", "video_url", "stream"}
_VIDEO_FIELDS = frozenset(VideoParamsBody.model_fields)
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
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequestError("The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(values, dict):
        raise InvalidRequestError("The body must be a JSON object.", code="invalid_json")
    return _build(_validate(UrlPlanBody if is_plan else UrlRequestBody, values), settings)


def parse_form(
    fields: Mapping[str, str], file: SpooledFile | None, settings: Settings, *, is_plan: bool = False
) -> InferenceRequest:
    """The flat fields of a form, and its file, as a request.  An empty field counts as left out.

    Args:
        fields: its texts.
        file: its video.
        settings: the server's limits and defaults.
        is_plan: whether a plan is asked for, which needs no prompt.

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
    if file is not None and "video_url" in given:
        raise InvalidRequestError("Give the file `video` or the field `video_url`, not both.", param="video_url")
    if file is None and "video_url" not in given:
        raise InvalidRequestError(
            "The file `video` (or the field `video_url`) is missing.", param="video", code="missing_field"
        )
    values: dict[str, Any] = {name: value for name, value in given.items() if name in _FLAT_FIELDS}
    values["video_params"] = {name: value for name, value in given.items() if name in _VIDEO_FIELDS}
    response_format = _parse_response_format(given.pop("response_format", None))
    values["generation_params"] = {name: value for name, value in given.items() if name in _GENERATION_FIELDS}
    model = UrlPlanBody if is_plan else UrlRequestBody
    body = _validate(model, {"video_url": "upload:", **values}, is_form=True)
    return _build(body, settings, file, response_format)


def _parse_response_format(text: str | None) -> ResponseFormatBody | None:
    """The one field of a form that is JSON."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequestError("response_format is not valid JSON.", param="response_format") from None
    return _validate(GenerationParamsBody, {"response_format": value}).response_format


def _build(
    body: UrlRequestBody,
    settings: Settings,
    file: SpooledFile | None = None,
    response_format: ResponseFormatBody | None = None,
) -> InferenceRequest:
    if len(body.prompt) > settings.max_prompt_characters:
        raise InvalidRequestError(
            f"The prompt has {len(body.prompt)} characters; at most {settings.max_prompt_characters} are accepted.",
            param="prompt",
            code="prompt_too_long",
        )
    if not body.prompt.strip() and "prompt" in body.model_fields_set:
        raise InvalidRequestError("The prompt is empty; ask a question.", param="prompt")
    generation = body.generation_params
    if generation.max_tokens is not None and generation.max_tokens > settings.max_new_tokens:
        raise InvalidRequestError(
            f"max_tokens is {generation.max_tokens}; this server accepts 1 to {settings.max_new_tokens}.",
            param="max_tokens" if file else "generation_params.max_tokens",
        )
    response_format = response_format or generation.response_format
    json_schema = response_format.schema_text() if response_format else None
    if json_schema is not None and generation.ignore_eos:
        raise InvalidRequestError(
            "response_format and ignore_eos contradict each other: JSON ends where it is complete.",
            param="response_format" if file else "generation_params.response_format",
        )
    stop = generation.stop if isinstance(generation.stop, list) else [generation.stop] if generation.stop else []
    return InferenceRequest(
        prompt=body.prompt,
        video_params=VideoParams(**body.video_params.model_dump()),
        generation=GenerationParams(
            max_tokens=generation.max_tokens or settings.max_new_tokens,
            temperature=settings.temperature if generation.temperature is None else generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            seed=generation.seed,
            stop=tuple(stop),
            repetition_penalty=generation.repetition_penalty,
            ignore_eos=generation.ignore_eos,
            json_schema=json_schema,
        ),
        max_tokens_is_default=generation.max_tokens is None,
        stream=body.stream,
        file=file,
        video_url=None if file else body.video_url,
    )


def _validate(model: type[Body], values: Mapping[str, Any], *, is_form: bool = False) -> Body:
    """Check ``values``; JSON numbers must be numbers, form fields are strings that must spell them."""
    try:
        if is_form:
            return model.model_validate_strings(values)
        return model.model_validate(values, strict=True)
    except ValidationError as error:
        raise _explain(error, is_form=is_form) from None


def _explain(error: ValidationError, *, is_form: bool) -> InvalidRequestError:
    """The first of pydantic's complaints as ours: the field, what came, what is accepted."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-", "list["))]
    if first["type"] == "conflict":
        path.append(first["ctx"]["name"])
    name = (path[-1] if is_form and path else ".".join(path)) or None
    if first["type"] == "missing":
        return InvalidRequestError(f"The field {name} is missing.", param=name, code="missing_field")
    if first["type"] == "extra_forbidden":
        return InvalidRequestError(f"There is no field {name!r}.", param=name, code="unknown_field")
    shown = repr(first["input"])
    came = f" (got {shown})" if len(shown) <= 80 and not isinstance(first["input"], dict) else ""  # noqa: PLR2004
    text = first["msg"]
    return InvalidRequestError(f"{name or 'request'}: {text}{came}.", param=name)
