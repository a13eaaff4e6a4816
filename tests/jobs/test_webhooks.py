"""Webhooks: a job's end is told, signed, until it is taken, and nowhere where the guard would not go.

Real sockets, a real receiver, the real store; only the schedule is short.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from job_bench import Bench, open_bench, questions
from standardwebhooks import Webhook as Verifier
from webhook_receiver import SECRET, receiver

from tru_vlm.intake import web_guard
from tru_vlm.intake.addresses import is_allowed_address
from tru_vlm.intake.web_guard import Resolver, WebGuard
from tru_vlm.jobs.bell import Bell
from tru_vlm.jobs.process_lock import ProcessLock
from tru_vlm.jobs.store import new_job_id
from tru_vlm.jobs.tables import Job
from tru_vlm.jobs.webhook_deliverer import MAX_OF_OWNER, Retrying, WebhookDeliverer
from tru_vlm.jobs.webhook_sender import WebhookSender, is_secret, signed_headers
from tru_vlm.jobs.webhook_store import Attempt, Webhook, WebhookState, WebhookStore

OPEN = WebGuard(allow_private=True)
SOON = Retrying(max_attempts=50, first_wait_seconds=0.01)


class Desk:
    """A bench with webhooks."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        bench.now[0] = datetime.now(UTC).timestamp()
        self.webhooks = WebhookStore(bench.database)
        self.told: Counter[str] = Counter()

    async def ended(self, url: str, *, owner: str = "public") -> Job:
        """A job that has been cancelled, which is an end."""
        job = await self.bench.store.add(
            new_job_id(), owner=owner, kind="batch", body={}, items=questions(1), webhook=Webhook(url, SECRET)
        )
        return await self.bench.store.cancel(job.id, owner)

    async def state(self, job: Job) -> WebhookState:
        return (await self.webhooks.states([job.number]))[job.number]

    async def until(self, job: Job, is_so: Callable[[WebhookState], bool]) -> WebhookState:
        async with asyncio.timeout(60):
            while not is_so(state := await self.state(job)):  # noqa: ASYNC110 - rows have no event
                await asyncio.sleep(0.005)
        return state

    async def body(self, number: int) -> str | None:
        job = await self.bench.store.by_number(number)
        return json.dumps({"id": job.id}) if job else None

    @contextlib.asynccontextmanager
    async def delivering(
        self, *, guard: WebGuard = OPEN, retrying: Retrying = SOON, timeout_seconds: float = 60.0
    ) -> AsyncIterator[WebhookDeliverer]:
        deliverer = WebhookDeliverer(
            self.webhooks,
            WebhookSender(guard, timeout_seconds=timeout_seconds),
            self.body,
            lock=ProcessLock(self.bench.folder / "webhooks.lock"),
            bell=Bell(),
            retrying=retrying,
            count=lambda status: self.told.update([status]),
        )
        deliverer.start()
        try:
            yield deliverer
        finally:
            await deliverer.close()


def at_a_desk(folder: Path, scenario: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with open_bench(folder) as bench:
            await scenario(Desk(bench))

    asyncio.run(run())


def resolver(*answers: Sequence[str]) -> tuple[Resolver, list[str]]:
    """Answers in order, the last one for ever; and whom it was asked about."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    return resolve, asked


def test_the_scheme_s_published_example() -> None:
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", '{"test": 2432232314}', SECRET, datetime.fromtimestamp(1614265330, UTC)
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (SECRET, True),
        ("whsec_" + "A" * 88, False),  # 66 bytes
        ("whsec_" + "A" * 86 + "==", True),  # 64
        ("whsec_" + "A" * 28, False),  # 21
        ("whsec_" + "A" * 31 + "!", False),
        ("whsec_" + "A" * 33, False),
        (SECRET.removeprefix("whsec_"), False),
        ("whsec_", False),
        ("whsec_" + "ä" * 32, False),
    ],
)
def test_what_is_a_secret(text: str, is_one: bool) -> None:
    assert is_secret(text) is is_one


def test_an_end_is_told_once_and_signed(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        with receiver() as one:
            job = await desk.ended(one.url("/hook?token=t"))
            other = await desk.bench.add(questions(1))  # without a webhook
            await desk.bench.store.cancel(other.id, "public")
            async with desk.delivering():
                state = await desk.until(job, lambda state: state.status == "delivered")
            assert (state.num_attempts, state.status_code, state.error, state.next_attempt_at) == (1, 204, None, None)
            async with desk.delivering():  # another process finds nothing to send
                assert await desk.webhooks.next_due() is None
            (message,) = one.received
            assert (message.path, json.loads(message.body)) == ("/hook?token=t", {"id": job.id})
            assert message.headers["content-type"] == "application/json"
            Verifier(SECRET).verify(message.body, message.headers)
            assert desk.told == {"delivered": 1}

    at_a_desk(tmp_path, scenario)


def test_nothing_is_told_before_the_end(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        webhook = Webhook("http://127.0.0.1:9/", SECRET)
        job = await desk.bench.store.add(
            new_job_id(), owner="public", kind="batch", body={}, items=questions(1), webhook=webhook
        )
        state = await desk.state(job)
        assert (state.status, state.num_attempts, await desk.webhooks.next_due()) == ("waiting", 0, None)

    at_a_desk(tmp_path, scenario)


def test_a_receiver_that_is_down_is_told_when_it_is_up(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        with receiver(is_down=True) as one:
            job = await desk.ended(one.url())
            async with desk.delivering():
                state = await desk.until(job, lambda state: state.num_attempts >= 2)
                assert (state.status, state.status_code) == ("pending", None)
                assert state.error == "The URL's server could not be reached."
                one.go_up()
                state = await desk.until(job, lambda state: state.status == "delivered")
            assert len(one.received) == 1
        assert state.num_attempts >= 3
        assert desk.told == {"pending": state.num_attempts - 1, "delivered": 1}

    at_a_desk(tmp_path, scenario)


@pytest.mark.parametrize(
    ("statuses", "num_received", "status"),
    [((500, 429, 204), 3, "delivered"), ((404,), 3, "failed"), ((503, 410), 2, "failed"), ((302,), 3, "failed")],
)
def test_only_2xx_is_taken_and_it_is_not_tried_for_ever(
    tmp_path: Path, statuses: tuple[int, ...], num_received: int, status: str
) -> None:
    async def scenario(desk: Desk) -> None:
        with receiver(*statuses) as one:
            job = await desk.ended(one.url())
            async with desk.delivering(retrying=Retrying(3, 0.01)):
                state = await desk.until(job, lambda state: state.status in ("delivered", "failed"))
            assert (state.status, state.num_attempts, state.next_attempt_at) == (status, num_received, None)
            assert len(one.received) == num_received
            assert len({message.id for message in one.received}) == 1, "one event, one id"
            assert await desk.webhooks.next_due() is None
            for message in one.received:
                Verifier(SECRET).verify(message.body, message.headers)

    at_a_desk(tmp_path, scenario)


def test_a_redirect_is_not_followed_to_a_private_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(  # one loopback address stands for a public one
        web_guard,
        "is_allowed_address",
        lambda text, *, allow_private: text == "127.0.0.1" or is_allowed_address(text, allow_private=allow_private),
    )

    async def scenario(desk: Desk) -> None:
        with (
            receiver(host="127.0.0.2") as inside,
            receiver(307, location=f"http://127.0.0.2:{inside.port}/") as outside,
        ):
            job = await desk.ended(outside.url())
            async with desk.delivering(guard=WebGuard(), retrying=Retrying(2, 0.01)):
                state = await desk.until(job, lambda state: state.status == "failed")
            assert (state.status_code, len(outside.received), inside.received) == (307, 2, [])
            assert state.error == "The receiver answered 307; redirects are not followed."

    at_a_desk(tmp_path, scenario)


def test_the_address_is_checked_anew_at_each_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_guard, "is_allowed_address", lambda text, *, allow_private: text == "127.0.0.1")

    async def scenario(desk: Desk) -> None:
        with receiver(500, 204) as one:
            answers, asked = resolver(["127.0.0.1"], ["169.254.169.254"], ["127.0.0.1"])
            has_looked = asyncio.Event()

            async def resolve(host: str, port: int) -> Sequence[str]:
                found = await answers(host, port)
                if len(asked) > 2:  # the attempt before is looked at first, however late that is
                    await has_looked.wait()
                return found

            job = await desk.ended(f"http://hooks.test:{one.port}/")
            async with desk.delivering(guard=WebGuard(resolver=resolve), retrying=Retrying(3, 0.05)):
                state = await desk.until(job, lambda state: state.num_attempts == 2)
                assert (state.status_code, state.status) == (None, "pending")
                assert state.error == "The URL leads to an address that this server does not go to."
                has_looked.set()
                await desk.until(job, lambda state: state.status == "delivered")
            assert (asked, len(one.received)) == (["hooks.test"] * 3, 2)
            assert one.received[0].headers["host"] == f"hooks.test:{one.port}"

    at_a_desk(tmp_path, scenario)


def test_a_receiver_that_does_not_answer_is_left(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        with receiver(is_slow=True) as one:
            job = await desk.ended(one.url())
            async with desk.delivering(retrying=Retrying(1, 0.01), timeout_seconds=0.5):
                state = await desk.until(job, lambda state: state.status == "failed")
            assert (state.status_code, state.error) == (None, "The receiver did not answer within 0.5 seconds.")

    at_a_desk(tmp_path, scenario)


def test_what_was_sent_and_not_written_down_is_sent_again_with_the_same_id(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        with receiver(is_slow=True) as one:
            job = await desk.ended(one.url())
            async with desk.delivering():
                await asyncio.to_thread(one.wait_for, 1)
            assert (await desk.state(job)).num_attempts == 0
            one.may_answer.set()
            async with desk.delivering():
                await desk.until(job, lambda state: state.status == "delivered")
            assert len(one.received) == 2
            assert len({message.id for message in one.received}) == 1

    at_a_desk(tmp_path, scenario)


def test_a_job_that_goes_on_takes_its_end_back_and_tells_the_next_one(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        with receiver() as one:
            job = await desk.ended(one.url())
            async with desk.delivering():
                await desk.until(job, lambda state: state.status == "delivered")
                await desk.bench.store.resume(job.id, "public")
                state = await desk.state(job)
                assert (state.status, state.num_attempts, state.status_code) == ("waiting", 0, None)
                await desk.bench.store.cancel(job.id, "public")
                await desk.until(job, lambda state: state.status == "delivered")
            assert len({message.id for message in one.received}) == 2

    at_a_desk(tmp_path, scenario)


def test_what_came_of_an_end_that_was_taken_back_is_not_written_down(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        job = await desk.ended("http://127.0.0.1:9/")
        due = await desk.webhooks.due(2e12, but_for=[], max_of_owner=1)
        assert due is not None
        await desk.bench.store.resume(job.id, "public")
        assert await desk.webhooks.record(due, Attempt(204, None), now=1.0, next_attempt_at=None) is None
        assert (await desk.state(job)).status == "waiting"

    at_a_desk(tmp_path, scenario)


def test_an_owner_s_slow_receivers_do_not_stop_those_of_others(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        with receiver(is_slow=True) as slow, receiver() as quick:
            for _ in range(3 * MAX_OF_OWNER):
                await desk.ended(slow.url(), owner="slow")
            job = await desk.ended(quick.url(), owner="quick")
            async with desk.delivering():
                await desk.until(job, lambda state: state.status == "delivered")
                assert len(await asyncio.to_thread(slow.wait_for, MAX_OF_OWNER)) == MAX_OF_OWNER

    at_a_desk(tmp_path, scenario)


def test_a_message_that_is_being_sent_is_not_due(tmp_path: Path) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.ended("http://127.0.0.1:9/")
        due = await desk.webhooks.due(2e12, but_for=[], max_of_owner=5)
        assert due is not None
        assert await desk.webhooks.due(2e12, but_for=[due], max_of_owner=5) is None
        assert SECRET not in repr(due)

    at_a_desk(tmp_path, scenario)


def test_waits_grow_within_bounds_and_a_receiver_may_ask_for_longer() -> None:
    retrying = Retrying(max_attempts=10, first_wait_seconds=5.0)
    failed = Attempt(500, "no")
    waits = [retrying.wait_seconds(number, failed) for number in range(1, 11)]
    assert waits[-1] is None
    for number, wait in enumerate(waits[:-1]):
        assert wait is not None
        assert min(21600.0, 5.0 * 4**number) <= wait <= min(21600.0, 6.0 * 4**number)
    assert retrying.wait_seconds(1, Attempt(429, "no", retry_after_seconds=90.0)) == 90.0
    assert retrying.wait_seconds(1, Attempt(429, "no", retry_after_seconds=1e9)) == 21600.0
    assert retrying.wait_seconds(1, Attempt(410, "no", is_last=True)) is None
