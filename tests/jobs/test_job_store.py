"""The store: what is accepted is there, an item ends once, and a job's end is told once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from job_bench import Bench, open_bench, questions

from tru_vlm.errors import InvalidRequestError, NotFoundError, OverloadedError
from tru_vlm.jobs.tables import Item, Job

DONE = {"status_code": 200, "request_id": "r", "body": {"text": "yes"}}


async def take(bench: Bench, job: Job) -> Item:
    item = await bench.store.next_item(job, but_for=())
    assert item is not None
    return item


async def names(bench: Bench, job: Job, after: int = 0) -> list[str]:
    return [event.name for event in await bench.store.events(job, after=after, limit=100)]


def test_an_item_ends_once_and_the_last_one_ends_the_job(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_bench(tmp_path) as bench:
            job = await bench.add(questions(2))
            assert await bench.store.begin(job.number)
            first = await take(bench, job)
            assert await bench.store.finish_item(first, "succeeded", DONE) == "running"
            assert await bench.store.finish_item(first, "failed", DONE) is None
            second = await take(bench, job)
            assert (first.place, second.place) == (0, 1)
            assert await bench.store.finish_item(second, "succeeded", DONE) == "succeeded"
            assert await bench.store.next_item(job, but_for=()) is None
            ended = await bench.now_of(job)
            assert (ended.status, ended.num_succeeded, ended.num_failed, ended.error) == ("succeeded", 2, 0, None)
            assert await names(bench, job) == ["status", "status", "item", "item", "done"]

    asyncio.run(run())


def test_one_failure_fails_the_job_when_all_were_asked_and_resume_asks_only_that(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_bench(tmp_path) as bench:
            job = await bench.add(questions(2))
            assert await bench.store.finish_item(await take(bench, job), "failed", DONE) == "queued"
            assert await bench.store.finish_item(await take(bench, job), "succeeded", DONE) == "failed"
            failed = await bench.now_of(job)
            assert failed.error is not None
            assert failed.error["code"] == "items_failed"
            read = (await bench.store.events(job, after=0, limit=100))[-1].number
            resumed = await bench.store.resume(job.id, "public")
            assert (resumed.status, resumed.num_succeeded, resumed.num_failed) == ("queued", 1, 0)
            assert (await take(bench, job)).place == 0
            assert await bench.store.finish_item(await take(bench, job), "succeeded", DONE) == "succeeded"
            assert await names(bench, job, after=read) == ["status", "item", "done"]
            assert (await names(bench, job)).count("done") == 1
            places = [event.result.place for event in await bench.store.events(job, after=0, limit=9) if event.result]
            assert places == [1, 0]

    asyncio.run(run())


def test_a_stage_waits_for_the_one_before_and_is_not_asked_after_a_failure(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_bench(tmp_path) as bench:
            for result in ("succeeded", "failed"):
                job = await bench.add([*questions(2), *questions(1, stage=1)])
                first = await take(bench, job)
                assert await bench.store.next_item(job, but_for=(0, 1)) is None
                await bench.store.finish_item(first, "succeeded", DONE)
                status = await bench.store.finish_item(await take(bench, job), result, DONE)
                assert status == ("queued" if result == "succeeded" else "failed")
                assert (await take(bench, job)).stage == 1

    asyncio.run(run())


def test_a_cancelled_job_takes_no_more_outcomes_and_goes_on_when_resumed(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_bench(tmp_path) as bench:
            job = await bench.add(questions(2))
            await bench.store.finish_item(await take(bench, job), "succeeded", DONE)
            late = await take(bench, job)
            assert (await bench.store.cancel(job.id, "public")).status == "cancelled"
            assert (await bench.store.cancel(job.id, "public")).status == "cancelled"
            assert await bench.store.finish_item(late, "succeeded", DONE) is None
            assert not await bench.store.begin(job.number)
            assert (await names(bench, job)).count("done") == 1
            await bench.store.resume(job.id, "public")
            assert (await take(bench, job)).place == 1
            assert [result.place for result in await bench.store.results(job, limit=9)] == [0]

    asyncio.run(run())


def test_only_what_ended_is_deleted_or_expires_and_only_what_failed_is_resumed(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_bench(tmp_path) as bench:
            job = await bench.add(questions(1))
            for refused in (bench.store.delete, bench.store.resume):
                with pytest.raises(InvalidRequestError):
                    await refused(job.id, "public")
            assert await bench.store.expire(bench.now[0] + 1) == 0
            await bench.store.finish_item(await take(bench, job), "succeeded", DONE)
            with pytest.raises(InvalidRequestError, match="is succeeded"):
                await bench.store.resume(job.id, "public")
            assert await bench.store.expire(bench.now[0]) == 0
            assert await bench.store.expire(bench.now[0] + 1) == 1
            count = "SELECT (SELECT count(*) FROM items) + (SELECT count(*) FROM events)"
            assert await bench.database.read(lambda connection: connection.execute(count).fetchone()[0]) == 0
            with pytest.raises(NotFoundError):
                await bench.store.get(job.id, "public")

    asyncio.run(run())


def test_a_job_is_its_owner_s_alone(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_bench(tmp_path) as bench:
            job = await bench.add(questions(1), owner="a")
            for refused in (bench.store.get, bench.store.cancel, bench.store.resume, bench.store.delete):
                with pytest.raises(NotFoundError):
                    await refused(job.id, "b")
            assert await bench.store.page("b", limit=9) == []
            assert [found.id for found in await bench.store.page("a", limit=9)] == [job.id]

    asyncio.run(run())


def test_no_more_jobs_are_taken_than_may_be_unfinished(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_bench(tmp_path, max_queued_jobs=1) as bench:
            job = await bench.add(questions(1))
            with pytest.raises(OverloadedError):
                await bench.add(questions(1))
            await bench.store.cancel(job.id, "public")
            await bench.add(questions(1))
            with pytest.raises(OverloadedError):
                await bench.store.resume(job.id, "public")

    asyncio.run(run())
