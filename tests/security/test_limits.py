"""Rates: what is counted, for whom, in memory and in a real Redis, and what a client is told."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from client import TIMEOUT, error_of
from starlette.requests import HTTPConnection
from support import free_port, require
from watching import Brake

from tru_vlm.api.security.identity import client_network
from tru_vlm.api.security.rate_limits import RateCounter
from tru_vlm.errors import InvalidRequestError, OverloadedError
from tru_vlm.principal import Principal, RateLimits

pytestmark = pytest.mark.usefixtures("one_minute")
BODY = {"video_url": "http://127.0.0.1:65001/a.mp4", "prompt": "x"}


def post(keyed, name: str) -> requests.Response:
    return requests.post(keyed.base + "/v1/plan", json=BODY, headers=keyed.bearer(name), timeout=TIMEOUT)


def test_requests_in_a_minute(keyed) -> None:
    answers = [post(keyed, "slow") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [400, 400, 429]
    assert [answer.headers["X-RateLimit-Remaining-Requests"] for answer in answers[:2]] == ["1", "0"]
    assert answers[0].headers["X-RateLimit-Limit-Requests"] == "2"
    assert (error_of(answers[2])["type"], error_of(answers[2])["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 90
    assert requests.get(keyed.base + "/v1/models", headers=keyed.bearer("slow"), timeout=TIMEOUT).status_code == 200
    assert post(keyed, "alice").status_code == 400, "others are counted for themselves"


def test_a_stranger_is_not_counted(keyed) -> None:
    headers = {"Authorization": "Bearer tru_wrong"}
    statuses = [
        requests.post(keyed.base + "/v1/plan", json=BODY, headers=headers, timeout=TIMEOUT).status_code
        for _ in range(5)
    ]
    assert statuses == [401] * 5


def ask(keyed, name: str, clip: Path, **fields: str) -> requests.Response:
    with clip.open("rb") as file:
        return requests.post(
            keyed.base + "/v1/inference/upload",
            files={"video": file},
            data={"prompt": "What happens?", "max_tokens": "2", **fields},
            headers=keyed.bearer(name),
            timeout=TIMEOUT,
        )


def test_seconds_of_video_in_a_minute(keyed, clip: Path) -> None:
    assert ask(keyed, "short", clip).status_code == 200, "four of five"
    refused = ask(keyed, "short", clip)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["Retry-After"]) >= 1
    assert ask(keyed, "short", clip, video_end="1").status_code == 200, "one more is left"


def test_questions_at_once(keyed, clip: Path) -> None:
    brake = Brake(keyed.server, keyed.bearer("alice"))
    with clip.open("rb") as file:
        running = requests.post(
            keyed.base + "/v1/inference/upload",
            files={"video": file},
            data={"prompt": "What happens?", "max_tokens": "2000", "ignore_eos": "true", "stream": "true"},
            headers=keyed.bearer("lonely"),
            timeout=TIMEOUT,
            stream=True,
        )
    lines = running.iter_lines()  # held: the client closes the connection of an iterator that nobody holds
    assert next(lines)
    with brake:
        refused = ask(keyed, "lonely", clip)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "too_many_concurrent_requests")
    assert ask(keyed, "alice", clip).status_code == 200
    running.close()
    deadline = time.monotonic() + TIMEOUT
    while ask(keyed, "lonely", clip).status_code != 200:
        assert time.monotonic() < deadline


# ---- the counter itself ---------------------------------------------------------------------------------------------


def who(name: str = "key:a", **limits: int) -> Principal:
    return Principal("a", "a", name, RateLimits(**limits))


@contextlib.contextmanager
def running_redis() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A Redis server of the tests' own, with a password."""
    program = shutil.which("redis-server")
    require(program, "redis-server (apt-get install redis-server)")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", "canary-password"]
    with subprocess.Popen([str(program), *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "Ready to accept connections" not in process.stdout.readline():
            assert process.poll() is None
        yield f"redis://:canary-password@127.0.0.1:{port}/0", process
        process.terminate()


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running_redis() as (url, _):
        yield url


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


@contextlib.asynccontextmanager
async def started(url: str) -> AsyncIterator[RateCounter]:
    counter = RateCounter(url)
    await counter.start()
    try:
        yield counter
    finally:
        await counter.close()


async def is_in(counter: RateCounter, principal: Principal) -> bool:
    try:
        await counter.count_request(principal)
    except OverloadedError as error:
        return not 1 <= (error.retry_after_seconds or 0) <= 120  # a refusal tells when to come back
    return True


def test_two_servers_count_together_in_redis(redis_url: str) -> None:
    async def scenario() -> None:
        principal = who("key:together", requests_per_minute=3)
        async with started(redis_url) as one, started(redis_url) as two:
            admitted = [await is_in(counter, principal) for counter in (one, two, one, two, one)]
        assert admitted == [True, True, True, False, False]

    run(scenario())


def test_in_memory_each_counts_alone() -> None:
    async def scenario() -> None:
        principal = who(requests_per_minute=1)
        async with started("") as one, started("") as two:
            assert [await is_in(counter, principal) for counter in (one, two, one, two)] == [True, True, False, False]
            assert await is_in(one, who("key:b", requests_per_minute=1))
            assert await one.count_request(who()) is None, "no limit, nothing counted"

    run(scenario())


def test_a_redis_that_is_not_there_stops_the_start_and_is_not_shown() -> None:
    async def scenario() -> None:
        with pytest.raises(ConnectionError, match="REDIS_URL: no Redis answers") as caught:
            await RateCounter(f"redis://:canary-password@127.0.0.1:{free_port()}/0").start()
        assert "canary" not in str(caught.value)

    run(scenario())


def test_a_redis_that_goes_away_leaves_each_server_counting_alone(caplog: pytest.LogCaptureFixture) -> None:
    principal = who("key:gone", requests_per_minute=1)

    async def scenario(url: str, redis: subprocess.Popen[str]) -> None:
        async with started(url) as counter:
            assert await is_in(counter, principal)
            redis.kill()
            redis.wait()
            assert await is_in(counter, principal), "this server has not counted any yet"
            assert not await is_in(counter, principal)

    with running_redis() as (url, redis):
        run(scenario(url, redis))
    assert "this server counts alone" in caplog.text
    assert "canary" not in caplog.text


def test_more_than_a_minute_s_worth_can_never_be_had() -> None:
    async def scenario() -> None:
        counter = RateCounter("")
        await counter.start()
        principal = who(video_seconds_per_minute=10)
        with pytest.raises(InvalidRequestError, match=r"11 s of video; 10 s a minute"):
            await counter.count_video(principal, 10.5, param="video_url")
        await counter.count_video(principal, 10.0, param="video_url")
        await counter.count_video(principal, 0.0, param="video_url")
        with pytest.raises(OverloadedError):
            await counter.count_video(principal, 0.1, param="video_url")

    run(scenario())


def test_places_are_given_back() -> None:
    counter = RateCounter("")
    principal = who(max_concurrent_requests=1)
    counter.enter(principal)
    with pytest.raises(OverloadedError):
        counter.enter(principal)
    counter.leave(principal)
    with contextlib.suppress(OverloadedError):
        counter.enter(principal)
        counter.leave(principal)
    assert not counter._open


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("", "unknown"),
    ],
)
def test_whose_address_counts(address: str, counted: str) -> None:
    scope = {"type": "http", "headers": [], "client": (address, 1)}
    assert client_network(HTTPConnection(scope)) == counted
