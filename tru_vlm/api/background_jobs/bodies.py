"""What a job is made of, as clients send it, and how every line of it is checked before the job is accepted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tru_vlm.api.background_jobs.webhook_bodies import WebhookBody, webhook_of
from tru_vlm.api.bodies import Body, GenerationParamsBody, VideoId, VideoParamsBody, conflict, parse_object, validate
from tru_vlm.api.inference_request import InferenceRequest
from tru_vlm.api.openai_compatible.chat_request import check_chat
from tru_vlm.api.schemas import ModelName, Prompt, UrlRequestBody, VideoUrl, build_request, check_length
from tru_vlm.errors import InvalidRequestError, TruError
from tru_vlm.intake.source import MediaSource
from tru_vlm.jobs.tables import NewItem
from tru_vlm.jobs.webhook_store import Webhook
from tru_vlm.settings import Settings
from tru_vlm.types import KeptVideo

NATIVE_ROUTE, CHAT_ROUTE = "/v1/inference/url", "/v1/chat/completions"
DEFAULT_SPAN_PROMPT = "Describe what happens in this video."
MAX_SPAN_SECONDS = 24 * 3600.0

CustomId = Annotated[
    str, Field(min_length=1, max_length=512, description="Your name for it, unique in the job.", examples=["clip-17"])
]


class BatchItemBody(UrlRequestBody):
    """A question of a batch: the body of `/v1/inference/url`, and a name for it."""

    custom_id: CustomId | None = None
    stream: Literal[False] = Field(False, description="Nothing is streamed in a job.")


class BatchHeadBody(Body):
    """What a batch says beside its items."""

    kind: Literal["batch"] = "batch"
    webhook: WebhookBody | None = None


class BatchJobBody(BatchHeadBody):
    """Many questions."""

    items: Annotated[list[BatchItemBody], Field(min_length=1, description="The questions.")]


class BatchFormBody(Body):
    """Many questions in a file."""

    file: Annotated[
        bytes,
        Field(
            json_schema_extra={
                "type": "string",
                "format": "binary",
                "x-lines": {"$ref": "#/components/schemas/BatchLineBody"},
            }
        ),
    ] = Field(description="JSON lines in the shape of OpenAI's batches, each of them a `BatchLineBody`.")
    webhook: WebhookBody | None = Field(None, description="As JSON text.")


class BatchLineBody(Body):
    """A line of a batch file."""

    custom_id: CustomId
    method: Literal["POST"] = "POST"
    url: Literal["/v1/inference/url", "/v1/chat/completions"]
    body: dict[str, Any] = Field(description="The body of that route, without `stream`.")


class LongVideoJobBody(Body):
    """A long video: give `video_url` or `video_id`. It is described span by span, and then the question is answered."""

    kind: Literal["long_video"]
    video_url: VideoUrl | None = None
    video_id: VideoId | None = None
    prompt: Prompt = Field(description="The question that is answered from the timeline.")
    span_seconds: Annotated[float, Field(ge=1, le=MAX_SPAN_SECONDS)] = Field(
        description="Length of a span.", examples=[30.0]
    )
    overlap_seconds: Annotated[float, Field(ge=0, le=MAX_SPAN_SECONDS)] = Field(
        0.0, description="How long before the end of a span the next one begins; less than half of `span_seconds`."
    )
    span_prompt: Prompt = Field(DEFAULT_SPAN_PROMPT, description="What is asked about each span.")
    video_params: VideoParamsBody = Field(
        VideoParamsBody(), description="How each span is sampled; `video_start` and `video_end` bound the whole."
    )
    generation_params: GenerationParamsBody = Field(
        GenerationParamsBody(), description="How captions and answer are generated; `response_format` is the answer's."
    )
    model: ModelName | None = None
    webhook: WebhookBody | None = None

    @model_validator(mode="after")
    def _check(self) -> LongVideoJobBody:
        if self.overlap_seconds * 2 >= self.span_seconds:
            text = (
                f"overlap_seconds ({self.overlap_seconds}) must be less than half of span_seconds ({self.span_seconds})"
            )
            raise conflict("overlap_seconds", text)
        return self


@dataclass(frozen=True, slots=True)
class Checks:
    """What a question is checked against.

    Attributes:
        settings: the server's limits.
        check_model: raises for a model that is not served.
        check_source: raises for an address that leads nowhere; is told the field.
    """

    settings: Settings
    check_model: Callable[[str | None], object]
    check_source: Callable[[MediaSource, str], None]

    def check(self, request: InferenceRequest) -> None:
        """Check what the body alone does not tell.

        Raises:
            TruError: naming the field at fault.
        """
        self.check_model(request.model)
        for item in request.media:
            self.check_source(item.source, item.param)


@dataclass(slots=True)
class Batch:
    """A checked batch.

    Attributes:
        items: the questions.
        videos: the kept videos that they name, each with the field that named it first.
        webhook: where the batch's end is told.
    """

    items: list[NewItem] = field(default_factory=list)
    videos: dict[str, str] = field(default_factory=dict)
    webhook: Webhook | None = None
    _names: set[str] = field(default_factory=set)

    def add(self, item: NewItem, checks: Checks, *, at: str) -> None:
        """Check a question and take it in.

        Args:
            item: the question.
            checks: what it is checked against.
            at: where its body stands.

        Raises:
            TruError: naming the field of the body that is at fault.
        """
        if item.custom_id is not None and item.custom_id in self._names:
            text = f"the custom_id {item.custom_id[:80]!r} has been given before."
            raise InvalidRequestError(text, param="custom_id", code="duplicate_custom_id")
        request = parse_route(item.route, item.body, checks.settings)
        checks.check(request)
        for medium in request.media:
            if isinstance(medium.source, KeptVideo):
                self.videos.setdefault(medium.source.id, f"{at}{medium.param}")
        if item.custom_id is not None:
            self._names.add(item.custom_id)
        self.items.append(item)


def parse_route(route: str, body: Mapping[str, Any], settings: Settings) -> InferenceRequest:
    """A route's body as a request.

    Raises:
        InvalidRequestError: naming the field at fault, as the route does.
    """
    if route == CHAT_ROUTE:
        return check_chat(body, settings).inference
    return build_request(validate(UrlRequestBody, body), settings)


def parse_batch(values: Mapping[str, Any], checks: Checks) -> Batch:
    """A body with `items`.

    Raises:
        TruError: naming the item and the field at fault.
    """
    given = values.get("items")
    head = validate(BatchHeadBody, {name: value for name, value in values.items() if name != "items"})
    if not isinstance(given, list):
        what = "is missing" if given is None else "must be a list"
        raise InvalidRequestError(f"The field items {what}.", param="items", code="missing_field")
    _check_number(len(given), checks, param="items")
    batch = Batch(webhook=webhook_of(head.webhook))
    for index, item in enumerate(given):
        with _named(f"Item {index}", f"items.{index}"):
            if not isinstance(item, dict):
                raise InvalidRequestError("it must be a JSON object.")
            custom_id = validate(BatchItemBody, item).custom_id
            question = {name: value for name, value in item.items() if name != "custom_id"}
            batch.add(NewItem(custom_id, NATIVE_ROUTE, question), checks, at=f"items.{index}.")
    return batch


def parse_form_webhook(text: str | None) -> Webhook | None:
    """The field `webhook` of a form.

    Raises:
        InvalidRequestError: naming the field at fault.
    """
    if text is None:
        return None
    with _named("", "webhook"):
        body = validate(WebhookBody, parse_object(text, what="field webhook"))
    return webhook_of(body)


def parse_lines(content: bytes, webhook: Webhook | None, checks: Checks) -> Batch:
    """A file of JSON lines.

    Args:
        content: the file.
        webhook: where the batch's end is told.
        checks: what lines are checked against.

    Raises:
        TruError: naming the line and the field at fault.
    """
    lines = [(number, line) for number, line in enumerate(content.splitlines(), start=1) if line.strip()]
    _check_number(len(lines), checks, param="file")
    batch = Batch(webhook=webhook)
    for number, text in lines:
        with _named(f"Line {number}", f"file.{number}"):
            line = validate(BatchLineBody, parse_object(text, what="line"))
            with _named("", "body"):
                if line.body.get("stream"):
                    raise InvalidRequestError("nothing is streamed in a job; leave stream out.", param="stream")
                batch.add(NewItem(line.custom_id, line.url, line.body), checks, at=f"file.{number}.body.")
    return batch


def parse_long_video(values: Mapping[str, Any], checks: Checks) -> LongVideoJobBody:
    """A body whose kind is `long_video`.

    Raises:
        TruError: naming the field at fault.
    """
    job = validate(LongVideoJobBody, values)
    checks.check(build_request(whole_body(job), checks.settings))
    with _named("", "span_prompt"):
        check_length(len(job.span_prompt), checks.settings, param="")
    return job


def whole_body(job: LongVideoJobBody) -> UrlRequestBody:
    """The question of a long video's job as if it were asked about the whole."""
    return UrlRequestBody(
        video_url=job.video_url,
        video_id=job.video_id,
        prompt=job.prompt,
        video_params=job.video_params,
        generation_params=job.generation_params,
        model=job.model,
    )


def _check_number(number: int, checks: Checks, *, param: str) -> None:
    most = checks.settings.max_job_items
    if not 1 <= number <= most:
        raise InvalidRequestError(f"The job has {number} items; 1 to {most} are accepted.", param=param)


@contextlib.contextmanager
def _named(what: str, at: str) -> Iterator[None]:
    """Let errors name the line."""
    try:
        yield
    except TruError as error:
        error.message = f"{what}: {error.message}" if what else error.message
        error.param = ".".join(filter(None, [at, error.param])) or None
        raise
