"""The parts that the bodies of several routes share, and how a body is checked.  They know no route."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from tru_vlm.errors import InvalidRequestError
from tru_vlm.intake.source import MediaSource
from tru_vlm.processor.grammar import ANY_OBJECT, MAX_SCHEMA_CHARACTERS, MAX_SCHEMA_DEPTH
from tru_vlm.types import KeptVideo

MAX_PIXELS = 1 << 34
MAX_FRAMES = 1 << 20
_MAX_SECONDS = 1e7
_MAX_SHOWN_CHARACTERS = 80

KEPT = "video_id:"
"""What an address begins with that names a kept video."""

VideoId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        description="A video (or image) that the server keeps, by the `id` that `/v1/videos` told.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    ),
]
MAX_BIASES = 1024

Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


def conflict(name: str, text: str) -> PydanticCustomError:
    """Two fields that contradict each other; ``name`` is the one to blame."""
    return PydanticCustomError("conflict", "{text}", {"name": name, "text": text})


class Body(BaseModel):
    """JSON of known fields, checked once and frozen."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


AnyBody = TypeVar("AnyBody", bound=Body)


class VideoParamsBody(Body):
    """How frames are sampled. What is left out takes the server's default."""

    fps: Annotated[float, Field(gt=0, le=240)] | None = Field(
        None, description="Frames to sample per second of video; excludes `nframes`.", examples=[2.0]
    )
    nframes: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = Field(
        None, description="Exact number of frames to sample (rounded to even); excludes `fps`."
    )
    min_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = Field(
        None, description="Least number of frames when `fps` decides."
    )
    max_frames: Annotated[int, Field(ge=2, le=MAX_FRAMES)] | None = Field(
        None, description="Most frames when `fps` decides.", examples=[64]
    )
    min_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] | None = Field(
        None, description="Least height x width of a resized frame."
    )
    max_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] | None = Field(
        None, description="Most height x width of a resized frame."
    )
    total_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] | None = Field(
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
            raise conflict("nframes", "give fps or nframes, not both")
        for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
            first, second = getattr(self, low), getattr(self, high)
            if first is not None and second is not None and first > second:
                raise conflict(low, f"{low} ({first}) must not exceed {high} ({second})")
        if self.video_start is not None and self.video_end is not None and self.video_end <= self.video_start:
            text = f"video_end ({self.video_end}) must be greater than video_start ({self.video_start})"
            raise conflict("video_end", text)
        return self


class JsonSchemaBody(Body):
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
            raise conflict("schema", f"the schema nests deeper than {MAX_SCHEMA_DEPTH} levels")
        length = len(json.dumps(self.json_schema))
        if length > MAX_SCHEMA_CHARACTERS:
            text = f"the schema has {length} characters; at most {MAX_SCHEMA_CHARACTERS} are accepted"
            raise conflict("schema", text)
        return self


def _depth(value: Any) -> int:
    """Levels of objects and arrays within each other; stops counting above the most that is accepted."""
    level, depth = [value], 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [part for item in containers for part in (item.values() if isinstance(item, dict) else item)]
        depth += bool(containers)
    return depth


class ResponseFormatBody(Body):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="`text` is free, `json_object` any JSON object, `json_schema` what the schema allows."
    )
    json_schema: JsonSchemaBody | None = Field(None, description="For the type `json_schema`.")

    @model_validator(mode="after")
    def _check(self) -> ResponseFormatBody:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise conflict("json_schema", "give json_schema with the type json_schema, and with no other")
        return self

    def schema_text(self) -> str | None:
        """The schema as JSON text; None where the answer is free."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.json_schema)
        return ANY_OBJECT if self.type == "json_object" else None


class SamplingBody(Body):
    """How the answer's tokens are drawn. What is left out takes the server's default."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy.", examples=[0.0])
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus mass.")
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = Field(
        0, description="Keep the k likeliest tokens; 0 or -1 keeps all."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Keep tokens that are at least this part as likely as the likeliest one; 0 keeps all."
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = Field(None, description="Makes sampling reproducible.")
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = Field(
        None, description="Strings that end the answer; not part of it."
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = Field(
        1.0, description="Above 1 discourages what prompt and answer have said."
    )
    presence_penalty: Penalty = Field(0.0, description="Above 0 discourages what the answer has said.")
    frequency_penalty: Penalty = Field(0.0, description="The same, once for each time that it was said.")
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES)] | None = Field(
        None,
        description="What is added to the logits of tokens, by their ids: -100 forbids one, 100 forces it; in a form, "
        "this field is JSON text.",
        examples=[{"42": -100}],
    )
    ignore_eos: bool = Field(False, description="Go on past the model's own end, up to the most tokens.")


class GenerationParamsBody(SamplingBody):
    """How the answer is generated. What is left out takes the server's default."""

    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Most tokens to generate.", examples=[128])
    response_format: ResponseFormatBody | None = Field(
        None,
        description="Make the answer JSON, on one line; in a form, this field is JSON text. "
        "`max_tokens` and `stop` may cut it off. Excludes `ignore_eos`.",
        examples=[{"type": "json_object"}],
    )


def media_source(url: str | None, video_id: str | None, *, at: str = "", name: str = "video_url") -> MediaSource:
    """Where a video is, by whichever of two fields says it.

    Args:
        url: an address; ``video_id:<id>`` is a kept video as well.
        video_id: a kept video.
        at: what stands before the fields' names in the body.
        name: the address's field.

    Raises:
        InvalidRequestError: if none or both are given.
    """
    if url is not None and video_id is not None:
        raise InvalidRequestError(f"Give {at}{name} or {at}video_id, not both.", param=f"{at}video_id")
    if video_id is not None:
        return KeptVideo(video_id)
    if url is None:
        raise InvalidRequestError(
            f"The field {at}{name} (or {at}video_id) is missing.", param=f"{at}{name}", code="missing_field"
        )
    return KeptVideo(url.removeprefix(KEPT)) if url.startswith(KEPT) else url


def parse_object(text: bytes | str, *, what: str = "body") -> dict[str, Any]:
    """A JSON object.

    Args:
        text: the JSON.
        what: what an error calls it.

    Raises:
        InvalidRequestError: if it is none.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequestError(f"The {what} is not valid JSON.", code="invalid_json") from None
    if not isinstance(values, dict):
        raise InvalidRequestError(f"The {what} must be a JSON object.", code="invalid_json")
    return values


def validate(model: type[AnyBody], values: Mapping[str, Any], *, is_form: bool = False, at: str = "") -> AnyBody:
    """Check ``values``; JSON numbers must be numbers, form fields are strings that must spell them.

    Args:
        model: what is accepted.
        values: what came.
        is_form: whether it came in a form, which is flat.
        at: where it stood in the request, dotted.

    Raises:
        InvalidRequestError: naming the field at fault and what is accepted.
    """
    try:
        if is_form:
            return model.model_validate_strings(values)
        return model.model_validate(values, strict=True)
    except ValidationError as error:
        raise _explain(error, is_form=is_form, at=at) from None


def _explain(error: ValidationError, *, is_form: bool, at: str) -> InvalidRequestError:
    """The first of pydantic's complaints as ours: the field, what came, what is accepted."""
    first = error.errors(include_url=False)[0]
    path = [
        str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-", "list[", "[key]"))
    ]
    if first["type"] == "conflict":
        path.append(first["ctx"]["name"])
    if at:
        path.insert(0, at)
    name = (path[-1] if is_form and path else ".".join(path)) or None
    if first["type"] == "missing":
        return InvalidRequestError(f"The field {name} is missing.", param=name, code="missing_field")
    if first["type"] == "extra_forbidden":
        return InvalidRequestError(f"There is no field {name!r}.", param=name, code="unknown_field")
    shown = repr(first["input"])
    is_short = len(shown) <= _MAX_SHOWN_CHARACTERS and not isinstance(first["input"], dict)
    came = f" (got {shown})" if is_short else ""
    return InvalidRequestError(f"{name or 'request'}: {first['msg']}{came}.", param=name)
