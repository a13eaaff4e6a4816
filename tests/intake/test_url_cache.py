"""What was fetched before: asked for changes, bounded, one tenant's own, and no way past the guard."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from cancelling import at_every_wait, until
from fetch_bench import MOVIE, Bench, Resolver, pretend_public
from web_server import Asked, answer, raw_answer, web_server

from tru_vlm.errors import FetchError
from tru_vlm.intake.spool import SpooledFile


class Versioned:
    """A server whose file has a version; it counts whole answers."""

    def __init__(self) -> None:
        self.version = 1
        self.num_sent = 0

    async def __call__(self, writer: asyncio.StreamWriter, asked: Asked) -> None:
        tag = f'"v{self.version}"'
        if asked.headers.get("if-none-match") == tag:
            writer.write(raw_answer(304, etag=tag))
            return
        self.num_sent += 1
        writer.write(raw_answer(200, b"version %d" % self.version, etag=tag, last_modified="yesterday"))


def test_an_unchanged_file_is_not_downloaded_twice(tmp_path: Path) -> None:
    async def scenario() -> None:
        versioned = Versioned()
        bench = Bench(tmp_path, cache_bytes=1000)
        async with web_server(versioned) as web:
            url = f"http://video.test:{web.port}/clip?token=secret"
            first = await bench.fetcher.fetch(url)
            await bench.spool.remove(first)
            second = await bench.fetcher.fetch(url)
            assert (second.path.read_bytes(), second.sha256) == (b"version 1", first.sha256)
            assert (versioned.num_sent, len(web.asked)) == (1, 2)
            versioned.version = 2
            third = await bench.fetcher.fetch(url)
            assert (third.path.read_bytes(), second.path.read_bytes()) == (b"version 2", b"version 1")
            assert web.asked[2].headers["if-modified-since"] == "yesterday"
            await bench.fetcher.fetch(url + "2")
            assert "if-none-match" not in web.asked[3].headers, "another URL is another file"

    asyncio.run(scenario())


def test_what_one_tenant_fetched_is_fetched_again_for_another(tmp_path: Path) -> None:
    """The other server's answer, and its time, would else tell who has asked for a URL before."""

    async def scenario() -> None:
        bench = Bench(tmp_path, cache_bytes=1 << 20)
        async with web_server(answer(body=MOVIE, etag='"1"')) as web:
            for salt in ("aa", "bb", "aa"):
                await bench.fetcher.salted(salt).fetch(f"http://video.test:{web.port}/a")
            assert ["if-none-match" in asked.headers for asked in web.asked] == [False, False, True]

    asyncio.run(scenario())


def test_the_url_cache_is_bounded_and_survives_eviction(tmp_path: Path) -> None:
    async def scenario() -> None:
        versioned = Versioned()
        bench = Bench(tmp_path, cache_bytes=20)  # two files of nine bytes
        assert bench.cache is not None
        async with web_server(versioned) as web:
            urls = [f"http://video.test:{web.port}/{name}" for name in "abc"]
            for url in urls:
                await bench.spool.remove(await bench.fetcher.fetch(url))
            assert (bench.cache.used_bytes, bench.spool.used_bytes, len(bench.leftovers())) == (18, 18, 2)
            for path in bench.leftovers():
                path.unlink()
            again = await bench.fetcher.fetch(urls[2])
            assert again.path.read_bytes() == b"version 1", "the stored copy is gone: it is fetched again"

    asyncio.run(scenario())


def test_a_date_alone_is_enough_to_ask_for_changes(tmp_path: Path) -> None:
    num_sent = 0

    async def dated(writer: asyncio.StreamWriter, asked: Asked) -> None:
        nonlocal num_sent
        if asked.headers.get("if-modified-since") == "yesterday":
            writer.write(raw_answer(304))
            return
        num_sent += 1
        writer.write(raw_answer(200, MOVIE, last_modified="yesterday"))

    async def scenario() -> None:
        bench = Bench(tmp_path, cache_bytes=1 << 20)
        async with web_server(dated) as web:
            files = [await bench.fetcher.fetch(f"http://video.test:{web.port}/a") for _ in range(3)]
            assert [file.path.read_bytes() for file in files] == [MOVIE] * 3
            assert (num_sent, len({file.path for file in files})) == (1, 3), "each has a file of its own"
            assert "if-none-match" not in web.asked[1].headers

    asyncio.run(scenario())


def test_a_file_without_validators_is_fetched_each_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path, cache_bytes=1 << 20)
        async with web_server(answer(body=MOVIE)) as web:
            for _ in range(2):
                await bench.spool.remove(await bench.fetcher.fetch(f"http://video.test:{web.port}/a"))
            assert [set(asked.headers) & {"if-none-match", "if-modified-since"} for asked in web.asked] == [
                set(),
                set(),
            ]
        assert (bench.leftovers(), bench.spool.used_bytes) == ([], 0)

    asyncio.run(scenario())


def test_behind_a_redirect_the_goal_is_asked_for_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        versioned = Versioned()
        bench = Bench(tmp_path, cache_bytes=1000)
        async with (
            web_server(versioned) as goal,
            web_server(answer(302, location=f"http://other.test:{goal.port}/b")) as start,
        ):
            for _ in range(2):
                file = await bench.fetcher.fetch(f"http://video.test:{start.port}/a")
                assert file.path.read_bytes() == b"version 1"
            assert (versioned.num_sent, len(start.asked), len(goal.asked)) == (1, 2, 2)
            assert "if-none-match" not in start.asked[1].headers

    asyncio.run(scenario())


def test_a_remembered_file_does_not_pass_the_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has come to lead inside is refused, although its file is here."""
    pretend_public(monkeypatch, "127.0.0.1")

    async def scenario() -> None:
        bench = Bench(
            tmp_path, resolver=Resolver(["127.0.0.1"], ["10.0.0.1"]), allow_private=False, cache_bytes=1 << 20
        )
        async with web_server(answer(body=MOVIE, etag='"1"')) as web:
            url = f"http://video.test:{web.port}/"
            assert (await bench.fetcher.fetch(url)).size_bytes == len(MOVIE)
            with pytest.raises(FetchError, match="address that this server does not go to"):
                await bench.fetcher.fetch(url)
            assert len(web.asked) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_fetch_that_is_cancelled_at_any_of_its_waits_leaves_nothing(tmp_path: Path, is_changed: bool) -> None:
    async def scenario() -> None:
        versioned = Versioned()
        bench = Bench(tmp_path, cache_bytes=1000)
        cache = bench.cache
        assert cache is not None
        async with web_server(versioned) as web:
            url = f"http://video.test:{web.port}/clip"
            await bench.spool.remove(await bench.fetcher.fetch(url))

            def fetch() -> Coroutine[Any, Any, SpooledFile]:
                versioned.version += is_changed
                return bench.fetcher.fetch(url)

            async def nothing_is_left() -> None:
                await until(lambda: bench.spool.used_bytes == cache.used_bytes)
                await until(lambda: sum(path.stat().st_size for path in bench.leftovers()) == cache.used_bytes)

            await at_every_wait(fetch, release=bench.spool.remove, check=nothing_is_left)
        assert cache.num_hits > 0 or is_changed

    asyncio.run(scenario())
