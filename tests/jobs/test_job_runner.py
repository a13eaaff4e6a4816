"""The runner: every item is asked and ends once, a few at a time, in turns; what may pass is tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from job_bench import Reply, Work, error, ok, open_bench, questions

from tru_vlm.errors import NotFoundError
from tru_vlm.jobs import runner as runner_module
from tru_vlm.jobs.runner import MAX_ATTEMPTS
from tru_vlm.jobs.tables import Item


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_FIRST_BACKOFF_SECONDS", 0.0)


def test_all_are_asked_once_and_not_more_at_once_than_allowed(tmp_path: Path) -> None:
    async def run() -> None:
        are_three = asyncio.Event()

        async def answer(item: Item) -> Reply:
            if work.at_once == 3:
                are_three.set()
            await are_three.wait()
            return ok(str(item.place))

        work = Work(answer)
        async with open_bench(tmp_path) as bench:
            jobs = [await bench.add(questions(6)) for _ in range(3)]
            async with bench.running(work, concurrency=3):
                assert [(await bench.ended(job)).status for job in jobs] == ["succeeded"] * 3
            results = await bench.store.results(jobs[0], limit=99)
            assert [result.outcome["body"]["text"] for result in results if result.outcome] == list("012345")
        assert set(work.asked.values()) == {1}
        assert len(work.asked) == 18
        assert work.most_at_once == 3

    asyncio.run(run())


def test_jobs_take_turns(tmp_path: Path) -> None:
    order: list[int] = []

    async def answer(item: Item) -> Reply:
        order.append(item.job)
        return ok()

    async def run() -> None:
        async with open_bench(tmp_path) as bench:
            large, small = await bench.add(questions(50)), await bench.add(questions(3))
            async with bench.running(Work(answer), concurrency=1):
                await bench.ended(small)
                await bench.ended(large)
            assert order[:6].count(small.number) == 3

    asyncio.run(run())


@pytest.mark.parametrize(
    ("replies", "asked", "status"),
    [
        ([503, 504, 200], 3, "succeeded"),
        ([429] * 8 + [200], 9, "succeeded"),
        ([503] * MAX_ATTEMPTS, MAX_ATTEMPTS, "failed"),
        ([400], 1, "failed"),
        ([500], 1, "failed"),
    ],
)
def test_what_may_pass_is_tried_again(tmp_path: Path, replies: list[int], asked: int, status: str) -> None:
    left = list(replies)

    async def answer(item: Item) -> Reply:
        code = left.pop(0)
        return ok() if code == 200 else error(code)

    async def run() -> None:
        work = Work(answer)
        async with open_bench(tmp_path) as bench:
            job = await bench.add(questions(1))
            async with bench.running(work):
                assert (await bench.ended(job)).status == status
            (result,) = await bench.store.results(job, limit=9)
            assert result.outcome is not None
            assert result.outcome["status_code"] == replies[-1]
        assert work.asked.total() == asked

    asyncio.run(run())


def test_a_mistake_of_ours_fails_the_item_and_not_the_others(tmp_path: Path) -> None:
    async def answer(item: Item) -> Reply:
        if item.place == 0:
            raise ZeroDivisionError
        return ok()

    async def run() -> None:
        async with open_bench(tmp_path) as bench:
            job = await bench.add(questions(3))
            async with bench.running(Work(answer)):
                ended = await bench.ended(job)
            assert (ended.status, ended.num_succeeded, ended.num_failed) == ("failed", 2, 1)

    asyncio.run(run())


def test_cancelling_stops_what_is_being_asked(tmp_path: Path) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def answer(item: Item) -> Reply:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ok()

    async def run() -> None:
        async with open_bench(tmp_path) as bench:
            job = await bench.add(questions(1))
            async with bench.running(Work(answer)), asyncio.timeout(20):
                await begun.wait()
                await bench.store.cancel(job.id, "public")
                await stopped.wait()

    asyncio.run(run())


def test_a_runner_that_is_stopped_loses_nothing_and_the_next_one_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        first_asked = asyncio.Event()

        async def answer(item: Item) -> Reply:
            if item.place == 2:
                first_asked.set()
                await asyncio.Event().wait()
            return ok()

        work, next_work = Work(answer), Work()
        async with open_bench(tmp_path) as bench:
            job = await bench.add(questions(5))
            async with bench.running(work, concurrency=1):
                await first_asked.wait()
            async with bench.running(next_work, concurrency=1):
                assert (await bench.ended(job)).status == "succeeded"
            assert sorted(work.asked) == [f"{job.number}.{place}" for place in range(3)]
            assert sorted(next_work.asked) == [f"{job.number}.{place}" for place in range(2, 5)]

    asyncio.run(run())


def test_a_job_is_prepared_once_or_fails_with_the_reason(tmp_path: Path) -> None:
    async def run() -> None:
        async def prepared(job: object) -> tuple[dict[str, int], list]:
            if not calls:
                calls.append(0)
                raise NotFoundError("gone", param="video_url")
            return {"spans": 2}, questions(2)

        calls: list[int] = []
        async with open_bench(tmp_path) as bench:
            failing, good = await bench.add([]), await bench.add([])
            async with bench.running(Work(prepared=prepared), concurrency=1):
                failed = await bench.ended(failing)
                assert (failed.status, failed.error and failed.error["param"]) == ("failed", "video_url")
                ended = await bench.ended(good)
            assert (ended.status, ended.num_succeeded, ended.body) == ("succeeded", 2, {"spans": 2})

    asyncio.run(run())
