"""Asks what jobs ask, of the same service as everybody, in the background.  It decides nothing about when.

Videos that the server keeps are the job's own links to them (:mod:`tru_vlm.jobs.files`), not the library's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from tru_vlm.api.background_jobs.bodies import CHAT_ROUTE, parse_route
from tru_vlm.api.background_jobs.long_video import TIMELINE_ROUTE, prepare_long_video, timeline_of, timeline_request
from tru_vlm.api.error_response import error_body, new_request_id
from tru_vlm.api.event_stream import answer_body
from tru_vlm.api.inference_request import InferenceRequest, MediaRequest
from tru_vlm.api.openai_compatible.chat_answer import ChatAnswer
from tru_vlm.api.service import InferenceService
from tru_vlm.errors import ErrorInfo, NotFoundError, TruError, UnavailableError
from tru_vlm.jobs.files import JobFiles
from tru_vlm.jobs.runner import Reply
from tru_vlm.jobs.store import JobStore
from tru_vlm.jobs.tables import Item, Job, NewItem
from tru_vlm.principal import Principal
from tru_vlm.types import Answer, DoneEvent, ErrorEvent, KeptVideo, VideoEvent, VideoInfo

_ROOM_SECONDS = 0.05


class ServiceWork:
    """See the module's docstring.

    Args:
        service: answers.
        files: the jobs' videos.
        store: has the captions from which a long video's question is answered.
    """

    def __init__(self, service: InferenceService, files: JobFiles, store: JobStore) -> None:
        self._service = service
        self._files = files
        self._store = store

    async def ask(self, job: Job, item: Item) -> Reply:
        """Ask once; an error is a reply as well."""
        try:
            request = await self._request(job, item)
            return await self._answer(request, job.owner, is_chat=item.route == CHAT_ROUTE)
        except TruError as error:
            return _refusal(error.info(), new_request_id())

    async def prepare(self, job: Job) -> tuple[dict[str, Any], Sequence[NewItem]]:
        """Get the long video, keep it for the job, and cut it into spans."""
        return await prepare_long_video(job, self._service, self._files)

    async def _request(self, job: Job, item: Item) -> InferenceRequest:
        """The question, with files of its own for the job's videos."""
        if item.route == TIMELINE_ROUTE:
            request = timeline_request(item, await timeline_of(self._store, job), self._service.settings)
        else:
            request = await asyncio.to_thread(parse_route, item.route, item.body, self._service.settings)
        await self._room(request)
        async with contextlib.AsyncExitStack() as undo:
            media: list[MediaRequest] = []
            for medium in request.media:
                if isinstance(medium.source, KeptVideo):
                    file = await self._borrow(job, medium.source, medium.param)
                    undo.push_async_callback(self._service.spool.remove, file)
                    media.append(dataclasses.replace(medium, source=file))
                else:
                    media.append(medium)
            undo.pop_all()
        return dataclasses.replace(request, media=tuple(media), is_background=True, stream=False)

    async def _borrow(self, job: Job, video: KeptVideo, param: str) -> Any:
        try:
            return await self._files.borrow(job.id, video.id)
        except FileNotFoundError:
            text = f"The job's copy of the video {video.id[:80]!r} is gone."
            raise NotFoundError(text, param=param, code="video_not_found") from None

    async def _room(self, request: InferenceRequest) -> None:
        """Wait until nobody who waits for an answer would have to wait for this one."""
        models = self._service.models
        variants = models.variants_of(models.name_of(request.model))
        while not any(variant.workers.has_room_in_background for variant in variants):  # noqa: ASYNC110 - rows have no event
            await asyncio.sleep(_ROOM_SECONDS)

    async def _answer(self, request: InferenceRequest, owner: str, *, is_chat: bool) -> Reply:
        # A job was counted when it was accepted; how fast its items are asked is the server's affair.
        stream = await self._service.open(request, Principal(name="jobs", tenant=owner, counted_as=f"jobs of {owner}"))
        try:
            events = [event async for event in stream if isinstance(event, VideoEvent | DoneEvent | ErrorEvent)]
        finally:
            await stream.aclose()
        videos = [event.video for event in events if isinstance(event, VideoEvent)]
        match events[-1]:
            case ErrorEvent(_, info):
                return _refusal(info, stream.id)
            case DoneEvent(answer) if answer.finish_reason == "abort":
                raise UnavailableError("The answer was stopped before it was complete.", code="aborted")
            case DoneEvent(answer):
                return Reply(200, stream.id, self._body(answer, videos, is_chat=is_chat))
            case other:
                raise AssertionError(f"{other} is no last event")

    def _body(self, answer: Answer, videos: Sequence[VideoInfo], *, is_chat: bool) -> dict[str, Any]:
        if not is_chat:
            return answer_body(answer)
        return ChatAnswer(answer.id, model=answer.model, include_usage=False).body(answer, videos)


def _refusal(info: ErrorInfo, request_id: str) -> Reply:
    return Reply(info.status, request_id, error_body(info, request_id), info.retry_after_seconds)
