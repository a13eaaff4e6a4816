"""Jobs side by side: in order, bounded, and all over when it ends, however it ends."""

from __future__ import annotations

import asyncio

import pytest
from cancelling import until

from tru_vlm.api.pipeline.side_by_side import side_by_side


class Jobs:
    """Jobs that wait until they are let go; counts what runs."""

    def __init__(self) -> None:
        self.running = self.most = self.ended = 0
        self.go = asyncio.Event()

    async def work(self, number: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if number < 0:
                raise ValueError(number)
            await self.go.wait()
            return number * 10
        finally:
            await asyncio.sleep(0)  # what gives something back takes its time
            self.running -= 1
            self.ended += 1


@pytest.mark.parametrize("num_items", [0, 1, 2, 9])
def test_results_are_in_order_and_few_run_at_once(num_items: int) -> None:
    async def scenario() -> None:
        jobs = Jobs()
        running = asyncio.ensure_future(side_by_side(jobs.work, range(num_items), at_once=3))
        await until(lambda: jobs.running == min(num_items, 3))
        jobs.go.set()
        assert await running == [number * 10 for number in range(num_items)]
        assert (jobs.most, jobs.ended) == (min(num_items, 3), num_items)

    asyncio.run(scenario())


@pytest.mark.parametrize("numbers", [[-1], [1, -1, 2], [1, 2, 3, 4, -5]])
def test_the_first_failure_is_raised_as_it_is_and_ends_the_others(numbers: list[int]) -> None:
    async def scenario() -> None:
        jobs = Jobs()
        jobs.go = asyncio.Event()
        with pytest.raises(ValueError, match=str(min(numbers))):
            await side_by_side(jobs.work, numbers, at_once=8)
        assert (jobs.running, jobs.ended) == (0, len(numbers))

    asyncio.run(scenario())


def test_a_deadline_that_passes_after_a_failure_is_no_cancellation() -> None:
    async def scenario() -> None:
        async with asyncio.timeout(None) as deadline:
            try:
                await side_by_side(Jobs().work, [1, -1, 2])
            finally:
                deadline.reschedule(0.0)  # while what was held is given back
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(scenario())


@pytest.mark.parametrize("num_cancels", [1, 2, 3])
def test_a_cancellation_even_a_repeated_one_returns_when_all_are_over(num_cancels: int) -> None:
    async def scenario() -> None:
        jobs = Jobs()
        running = asyncio.ensure_future(side_by_side(jobs.work, [1, 2, 3]))
        await until(lambda: jobs.running == 3)
        for _ in range(num_cancels):
            running.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (jobs.running, jobs.ended) == (0, 3)

    asyncio.run(scenario())
