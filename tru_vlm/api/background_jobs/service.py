"""What routes call to have jobs done and to look after them.  It knows no HTTP; the store knows what may follow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tru_vlm.api.background_jobs.answers import job_answer
from tru_vlm.api.background_jobs.bodies import (
    Batch,
    Checks,
    parse_batch,
    parse_form_webhook,
    parse_lines,
    parse_long_video,
)
from tru_vlm.api.background_jobs.long_video import answer_of, spans_of, timeline_of
from tru_vlm.api.background_jobs.openapi import JobAnswer, TimelineEntry
from tru_vlm.api.background_jobs.webhook_bodies import webhook_of
from tru_vlm.api.background_jobs.webhook_message import message_body
from tru_vlm.api.background_jobs.work import ServiceWork
from tru_vlm.api.bodies import media_source, parse_object
from tru_vlm.api.service import InferenceService
from tru_vlm.api.stopping import Drain
from tru_vlm.database import Database
from tru_vlm.errors import FetchError, InvalidRequestError, UnavailableError
from tru_vlm.intake.multipart import receive_multipart
from tru_vlm.jobs import tables
from tru_vlm.jobs.bell import Bell, wait_for
from tru_vlm.jobs.files import JobFiles
from tru_vlm.jobs.process_lock import ProcessLock
from tru_vlm.jobs.runner import JobRunner
from tru_vlm.jobs.store import JobStore, new_job_id
from tru_vlm.jobs.tables import Job, JobEvent, JobStatus, Kind, NewItem, Result
from tru_vlm.jobs.webhook_deliverer import Retrying, WebhookDeliverer
from tru_vlm.jobs.webhook_sender import PARAM, WebhookSender
from tru_vlm.jobs.webhook_store import Webhook, WebhookStatus, WebhookStore
from tru_vlm.telemetry import catalogue
from tru_vlm.telemetry.metrics import Metrics, Reading
from tru_vlm.types import KeptVideo

_PAGE = 100
_LOOK_SECONDS = 1.0
_RESOLVE_SECONDS = 5.0
_MAX_FIELD_BYTES, _MAX_FIELDS = 1 << 16, 8
_DELIVERY_OUTCOMES: dict[WebhookStatus, str] = {"delivered": "delivered", "pending": "retried", "failed": "failed"}


class JobService:
    """One per HTTP process.

    Args:
        service: answers what jobs ask.
        metrics: where items and deliveries are counted.
        drain: tells when the server stops, and nothing is begun any more.
    """

    def __init__(self, service: InferenceService, metrics: Metrics, drain: Drain) -> None:
        settings, folder = service.settings, service.settings.storage_dir / "jobs"
        self._service = service
        self._drain = drain
        self._database = Database(
            settings.storage_dir / "jobs.sqlite3", tables.MIGRATIONS, is_shared=settings.storage_shared
        )
        self._files = JobFiles(folder / "videos", service.spool)
        self._bell = Bell()
        self._checks = Checks(settings, service.models.name_of, service.check_source)
        self.store = JobStore(self._database, max_queued_jobs=settings.max_queued_jobs)
        self._runner = JobRunner(
            self.store,
            self._files,
            ServiceWork(service, self._files, self.store),
            lock=ProcessLock(settings.storage_dir / "jobs.lock"),
            bell=self._bell,
            concurrency=settings.job_concurrency,
            ttl_seconds=settings.job_ttl_seconds,
            is_stopping=lambda: drain.has_begun,
            count=lambda kind, outcome: metrics.count(catalogue.JOB_ITEMS, kind=kind, outcome=outcome),
        )
        self._webhooks = WebhookStore(self._database)
        self._deliverer = WebhookDeliverer(
            self._webhooks,
            WebhookSender(service.web_guard, timeout_seconds=settings.webhook_timeout_seconds),
            self._message_body,
            lock=ProcessLock(settings.storage_dir / "webhooks.lock"),
            bell=self._bell,
            retrying=Retrying(settings.webhook_max_attempts, settings.webhook_retry_seconds),
            count=lambda status: metrics.count(catalogue.WEBHOOK_DELIVERIES, outcome=_DELIVERY_OUTCOMES[status]),
        )
        self._counts: dict[tuple[Kind, JobStatus], int] = {}
        for outcome in _DELIVERY_OUTCOMES.values():
            metrics.begin(catalogue.WEBHOOK_DELIVERIES, outcome=outcome)
        for kind in tables.KINDS:
            for ended in ("succeeded", "failed"):
                metrics.begin(catalogue.JOB_ITEMS, kind=kind, outcome=ended)
        metrics.read_from(self._readings)

    async def start(self) -> None:
        """Open the jobs, and go on with those that are not finished.

        Raises:
            DatabaseError: their database cannot be used.
        """
        await self._database.start()
        self._runner.start()
        self._deliverer.start()

    async def close(self) -> None:
        """Stop; the next start goes on."""
        await self._runner.close()
        await self._deliverer.close()
        await self._database.close()

    async def stats(self) -> dict[str, int]:
        """Jobs by status, and the items that are being asked."""
        counts = await self.store.counts()
        found: dict[str, int] = {
            status: sum(counts[kind, status] for kind in tables.KINDS) for status in tables.STATUSES
        }
        return found | {"items_running": self._runner.num_running}

    async def count(self) -> None:
        """Count the jobs, for metrics; where that cannot be done now, the last count stays."""
        with contextlib.suppress(UnavailableError):
            self._counts = await self.store.counts()

    def _readings(self) -> Iterator[Reading]:
        for (kind, status), number in self._counts.items():
            yield Reading(catalogue.JOBS, number, {"kind": kind, "status": status})

    async def answers(self, jobs: Sequence[Job]) -> list[JobAnswer]:
        """Jobs as lists have them, without what was found out."""
        ttl_seconds = self._service.settings.job_ttl_seconds
        webhooks = await self._webhooks.states([job.number for job in jobs])
        return [job_answer(job, webhooks.get(job.number), ttl_seconds=ttl_seconds) for job in jobs]

    async def answer(self, job: Job) -> JobAnswer:
        """The job as lists have it."""
        (answer,) = await self.answers([job])
        return answer

    async def whole_answer(self, job: Job) -> JobAnswer:
        """The job as clients read it; a long video's with its timeline and answer, as far as they are there."""
        answer = await self.answer(job)
        if job.kind == "long_video":
            answer.timeline = [TimelineEntry(**asdict(entry)) for entry in await timeline_of(self.store, job)]
            answer.answer = await answer_of(self.store, job)
        return answer

    async def submit(self, body: bytes, *, owner: str) -> Job:
        """Accept a JSON body.

        Raises:
            TruError: what is wrong, naming item and field; or there is no room.
        """
        values = await asyncio.to_thread(parse_object, body)
        if values.get("kind") == "long_video":
            return await self._accept_long_video(values, owner)
        return await self._accept(await asyncio.to_thread(parse_batch, values, self._checks), owner)

    async def receive(self, chunks: AsyncIterator[bytes], content_type: str, *, owner: str) -> Job:
        """Accept a form with a file of JSON lines.

        Raises:
            TruError: what is wrong, naming line and field; or there is no room.
        """
        spool = self._service.spool
        form = await receive_multipart(
            chunks,
            content_type,
            spool=spool,
            file_fields=frozenset({"file"}),
            max_file_bytes=self._service.settings.max_json_bytes,
            max_field_bytes=_MAX_FIELD_BYTES,
            max_fields=_MAX_FIELDS,
        )
        file = form.files.get("file")
        try:
            _check_fields(form.fields)
            if file is None:
                raise InvalidRequestError("The file `file` is missing.", param="file", code="missing_field")
            webhook = parse_form_webhook(form.fields.get("webhook"))
            content = await asyncio.to_thread(file.path.read_bytes)
        finally:
            if file is not None:
                await spool.remove(file)
        return await self._accept(await asyncio.to_thread(parse_lines, content, webhook, self._checks), owner)

    async def _accept_long_video(self, values: dict[str, Any], owner: str) -> Job:
        body = await asyncio.to_thread(parse_long_video, values, self._checks)
        source = media_source(body.video_url, body.video_id)
        videos = {}
        if isinstance(source, KeptVideo):
            param = "video_id" if body.video_id else "video_url"
            video = await self._service.library.store.get(source.id, owner, param=param)
            spans_of(body, video.content.duration_seconds, self._service.settings)
            videos[source.id] = param
        request = {name: value for name, value in values.items() if name != "webhook"}
        return await self._add(owner, "long_video", {"request": request}, (), videos, webhook=webhook_of(body.webhook))

    async def _accept(self, batch: Batch, owner: str) -> Job:
        return await self._add(owner, "batch", {}, batch.items, batch.videos, webhook=batch.webhook)

    async def _add(
        self,
        owner: str,
        kind: Kind,
        body: dict[str, Any],
        items: Sequence[NewItem],
        videos: Mapping[str, str],
        *,
        webhook: Webhook | None,
    ) -> Job:
        """Accept a job, with links of its own to the kept videos that it names, by the fields that name them."""
        await self.store.check_room()
        if webhook is not None:
            await self._check(webhook)
        job_id = new_job_id()
        try:
            for video_id, param in videos.items():
                await self._keep(job_id, video_id, owner, param)
            job = await self.store.add(job_id, owner=owner, kind=kind, body=body, items=items, webhook=webhook)
        except BaseException:
            await self._files.remove(job_id)
            raise
        self._bell.ring()
        return job

    async def _check(self, webhook: Webhook) -> None:
        """Refuse an address where nothing would be sent.  One that is not known now may be later."""
        guard = self._service.web_guard
        url = guard.parse(webhook.url, PARAM)
        try:
            await guard.addresses(url, PARAM, timeout_seconds=_RESOLVE_SECONDS)
        except FetchError as error:
            if error.code == "url_not_allowed":
                raise

    async def _message_body(self, number: int) -> str | None:
        """What is told of a job that has ended; None if it is gone, or goes on."""
        job = await self.store.by_number(number)
        if job is None or job.ended_at is None:
            return None
        answer = job_answer(job, None, ttl_seconds=self._service.settings.job_ttl_seconds)
        return message_body(answer, ended_at=job.ended_at)

    async def _keep(self, job_id: str, video_id: str, owner: str, param: str) -> None:
        """Give the job a link of its own to a kept video."""
        _, file = await self._service.library.store.borrow(video_id, owner, param=param)
        try:
            await self._files.keep(job_id, file)
        finally:
            await self._service.spool.remove(file)

    async def cancel_or_delete(self, job_id: str, owner: str) -> Job | None:
        """Cancel a job that has not ended; delete one that has.

        Returns:
            The cancelled job; None when it was deleted.

        Raises:
            NotFoundError: there is none (any more).
        """
        if (await self.store.get(job_id, owner)).is_active:
            job = await self.store.cancel(job_id, owner)
            self._bell.ring()
            return job
        await self.store.delete(job_id, owner)
        await self._files.remove(job_id)
        return None

    async def resume(self, job_id: str, owner: str) -> Job:
        """Go on with a job.  Raises as :meth:`tru_vlm.jobs.store.JobStore.resume`."""
        job = await self.store.resume(job_id, owner)
        self._bell.ring()
        return job

    async def results(self, job: Job) -> AsyncIterator[Result]:
        """What became of the items that have ended so far, in order."""
        after = -1
        while page := await self.store.results(job, after=after, limit=_PAGE):
            for result in page:
                yield result
            after = page[-1].place

    async def looks(self) -> AsyncIterator[None]:
        """Now, and whenever something may have happened to a job; ends when the server stops."""
        while not self._drain.has_begun:
            ring = self._bell.next_ring()
            yield
            await wait_for(ring, _LOOK_SECONDS)

    async def events(self, job: Job, *, after: int) -> AsyncIterator[JobEvent | None]:
        """What happened and happens, from behind an event's number on; None when nothing has happened for a while.

        Ends behind the job's last event, when the job is gone, and when the server stops.
        """
        while not self._drain.has_begun:
            ring = self._bell.next_ring()
            page = await self.store.events(job, after=after, limit=_PAGE)
            for event in page:
                yield event
                if event.name == "done":
                    return
                after = event.number
            if not page:
                if await self.store.by_number(job.number) is None:
                    return
                await wait_for(ring, _LOOK_SECONDS)
                yield None


def _check_fields(fields: Mapping[str, str]) -> None:
    unknown = sorted(set(fields) - {"file", "webhook"})
    if unknown:
        text = f"Unknown field {unknown[0]!r}; accepted are file and webhook."
        raise InvalidRequestError(text, param=unknown[0], code="unknown_field")
