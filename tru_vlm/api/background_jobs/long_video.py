"""A long video's job: cut into spans, each of them captioned, and the question answered from the timeline."""

from __future__ import annotations

import dataclasses
from typing import Any

from tru_vlm.api.background_jobs.bodies import NATIVE_ROUTE, LongVideoJobBody, parse_route
from tru_vlm.api.bodies import media_source, validate
from tru_vlm.api.inference_request import InferenceRequest
from tru_vlm.api.service import InferenceService
from tru_vlm.errors import InvalidRequestError, UnsupportedMediaError
from tru_vlm.jobs.files import JobFiles
from tru_vlm.jobs.store import JobStore
from tru_vlm.jobs.tables import Item, Job, NewItem, Result
from tru_vlm.jobs.timeline import Entry, Span, merge, num_spans, question, split
from tru_vlm.principal import cache_salt_of
from tru_vlm.settings import Settings
from tru_vlm.types import KeptVideo, Message, TextPart

TIMELINE_ROUTE = "timeline"
"""Of the item whose question is answered from the captions of all others."""

_CAPTIONS, _ANSWER = 0, 1
_PAGE = 100


def spans_of(body: LongVideoJobBody, duration_seconds: float | None, settings: Settings) -> list[Span]:
    """The spans of a video of this length.

    Raises:
        InvalidRequestError: nothing of the video is asked about, or it would be too many.
    """
    if duration_seconds is None:
        raise UnsupportedMediaError("A long video's job takes a video whose length is known.", param=_field(body))
    start = body.video_params.video_start or 0.0
    end = min(body.video_params.video_end or duration_seconds, duration_seconds)
    if start >= end:
        text = f"video_start ({start:g}) lies behind the end of the video, which has {duration_seconds:g} s."
        raise InvalidRequestError(text, param="video_params.video_start")
    number = num_spans(start, end, span_seconds=body.span_seconds, overlap_seconds=body.overlap_seconds)
    if number >= settings.max_job_items:
        text = f"{end - start:g} s make {number} spans; at most {settings.max_job_items - 1} are accepted."
        raise InvalidRequestError(text, param="span_seconds")
    return split(start, end, span_seconds=body.span_seconds, overlap_seconds=body.overlap_seconds)


async def prepare_long_video(
    job: Job, service: InferenceService, files: JobFiles
) -> tuple[dict[str, Any], list[NewItem]]:
    """Get the video, keep it for the job, and cut it into spans.

    Returns:
        The job's body with its spans, and its items.

    Raises:
        TruError: the video cannot be had, or is no video.
    """
    given = job.body["request"]
    body = validate(LongVideoJobBody, given)
    source = media_source(body.video_url, body.video_id)
    if isinstance(source, KeptVideo):
        file = await files.borrow(job.id, source.id)
    else:
        file = await service.local_file(source, param="video_url", owner=job.owner)
    try:
        probe = await service.videos.inspect(file, _field(body), cache_salt_of(job.owner))
        spans = spans_of(body, probe.duration_seconds, service.settings)
        await files.keep(job.id, file)
    finally:
        await service.discard(file)
    sampling = given.get("video_params", {})
    generation = given.get("generation_params", {})
    captions = {name: value for name, value in generation.items() if name != "response_format"}
    common = {"video_id": file.sha256} | ({"model": body.model} if body.model else {})
    items = [
        NewItem(
            f"span-{number}",
            NATIVE_ROUTE,
            {
                **common,
                "prompt": body.span_prompt,
                "video_params": {**sampling, "video_start": span.start, "video_end": span.end},
                "generation_params": captions,
            },
            _CAPTIONS,
        )
        for number, span in enumerate(spans)
    ]
    answer = {**common, "prompt": body.prompt, "generation_params": generation}
    items.append(NewItem("answer", TIMELINE_ROUTE, answer, _ANSWER))
    return {**job.body, "spans": [[span.start, span.end] for span in spans]}, items


def timeline_request(item: Item, timeline: list[Entry], settings: Settings) -> InferenceRequest:
    """The question of a long video's job, with what is known of it instead of the video."""
    request = parse_route(NATIVE_ROUTE, item.body, settings)
    text = question(timeline, item.body["prompt"])
    return dataclasses.replace(request, messages=(Message("user", (TextPart(text),)),), media=())


async def timeline_of(store: JobStore, job: Job) -> list[Entry]:
    """What the captions so far tell."""
    spans, entries = job.body.get("spans", []), []
    for result in await _results(store, job):
        if result.stage == _CAPTIONS and result.status == "succeeded" and result.outcome:
            start, end = spans[result.place]
            entries.append(Entry(start, end, result.outcome["body"]["text"]))
    return merge(entries)


async def answer_of(store: JobStore, job: Job) -> str | None:
    """The answer to a long video's question, once it is there."""
    results = await store.results(job, after=job.num_items - 2, limit=1)
    for result in results:
        if result.stage == _ANSWER and result.status == "succeeded" and result.outcome:
            return str(result.outcome["body"]["text"])
    return None


async def _results(store: JobStore, job: Job) -> list[Result]:
    found: list[Result] = []
    while page := await store.results(job, after=found[-1].place if found else -1, limit=_PAGE):
        found += page
    return found


def _field(body: LongVideoJobBody) -> str:
    return "video_url" if body.video_id is None else "video_id"
