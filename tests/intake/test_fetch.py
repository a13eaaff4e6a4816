"""Fetching: what comes, what is too much or too slow, and what is told of it.  Real sockets, loopback."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
from fetch_bench import MOVIE, Bench, Resolver
from web_server import Asked, answer, raw_answer, web_server

from tru_vlm.errors import FetchError, PayloadTooLargeError
from tru_vlm.intake.fetch import FetchLimits, UrlFetcher
from tru_vlm.intake.spool import Spool
from tru_vlm.intake.web_guard import WebGuard

CERTIFICATES = Path(__file__).parent / "certificates"


def test_a_file_is_fetched_with_the_name_it_was_asked_under(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        async with web_server(answer(body=MOVIE)) as web:
            file = await bench.fetcher.fetch(f"http://video.test:{web.port}/a/clip%20one.mp4?token=s#part")
            assert file.path.read_bytes() == MOVIE
            assert file.filename == "clip one.mp4"
            assert web.asked[0].target == "/a/clip%20one.mp4?token=s"
            assert web.asked[0].headers["host"] == f"video.test:{web.port}"
            assert web.asked[0].headers["accept-encoding"] == "identity"
            assert not {"cookie", "authorization", "proxy-authorization"} & set(web.asked[0].headers)
        assert bench.resolver.asked == ["video.test"], "resolved once: no second answer to rebind to"

    asyncio.run(scenario())


def test_a_chunked_body_and_an_ipv6_literal(tmp_path: Path) -> None:
    async def handle(writer: asyncio.StreamWriter, _: Asked) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    async def scenario() -> None:
        try:
            async with web_server(handle, host="::1") as web:
                url = f"http://[::1]:{web.port}/"
                file = await Bench(tmp_path, resolver=Resolver(["::1"])).fetcher.fetch(url)
                assert file.path.read_bytes() == b"abcde"
                assert web.asked[0].headers["host"] == f"[::1]:{web.port}"
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")

    asyncio.run(scenario())


def test_a_redirect_is_followed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with web_server(answer(body=MOVIE)) as goal:
            location = f"http://other.test:{goal.port}/b.mp4"
            async with web_server(answer(302, location=location)) as start:
                bench = Bench(tmp_path)
                file = await bench.fetcher.fetch(f"http://video.test:{start.port}/a")
                assert (file.size_bytes, file.filename) == (len(MOVIE), "b.mp4")
                assert bench.resolver.asked == ["video.test", "other.test"]
                assert goal.asked[0].headers["host"] == f"other.test:{goal.port}"

    asyncio.run(scenario())


def test_at_most_three_redirects(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with web_server(answer(307, location="/again")) as web:
            with pytest.raises(FetchError, match="more than 3 times"):
                await Bench(tmp_path).fetcher.fetch(f"http://video.test:{web.port}/")
            assert len(web.asked) == 4

    asyncio.run(scenario())


def test_an_announced_length_over_the_limit_is_not_downloaded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with web_server(answer(body=b"", content_length="2000000")) as web:
            with pytest.raises(PayloadTooLargeError) as caught:
                await Bench(tmp_path, max_bytes=1_000_000).fetcher.fetch(f"http://video.test:{web.port}/")
            assert caught.value.param == "video_url"

    asyncio.run(scenario())


def test_a_body_over_the_limit_is_stopped_while_it_comes(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def endless(writer: asyncio.StreamWriter, _: Asked) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        except ConnectionError:
            gone.set()

    async def scenario() -> None:
        bench = Bench(tmp_path, max_bytes=3_000_000)
        async with web_server(endless) as web:
            with pytest.raises(PayloadTooLargeError):
                await bench.fetcher.fetch(f"http://video.test:{web.port}/")
            await gone.wait()
        assert (bench.leftovers(), bench.spool.used_bytes) == ([], 0)

    asyncio.run(scenario())


async def stall(writer: asyncio.StreamWriter, _: Asked) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
    await writer.drain()
    await asyncio.Event().wait()


@pytest.mark.parametrize(("total", "idle"), [(0.2, 60.0), (60.0, 0.2)])
def test_a_server_that_stalls(tmp_path: Path, total: float, idle: float) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path, total_seconds=total, idle_seconds=idle)
        async with web_server(stall) as web:
            with pytest.raises(FetchError, match=r"in time|within 0\.2 seconds"):
                await bench.fetcher.fetch(f"http://video.test:{web.port}/")
        assert (bench.leftovers(), bench.spool.used_bytes) == ([], 0)

    asyncio.run(scenario())


def test_a_client_that_leaves_ends_the_fetch(tmp_path: Path) -> None:
    async def scenario() -> None:
        began = asyncio.Event()
        gone = asyncio.Event()

        async def handle(writer: asyncio.StreamWriter, _: Asked) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            try:
                while True:
                    writer.write(b"x" * 1024)
                    await writer.drain()
                    began.set()
                    await asyncio.sleep(0)
            except ConnectionError:
                gone.set()

        bench = Bench(tmp_path, max_bytes=1 << 40)
        async with web_server(handle) as web:
            task = asyncio.create_task(bench.fetcher.fetch(f"http://video.test:{web.port}/"))
            await began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone.wait()
        assert (bench.leftovers(), bench.spool.used_bytes) == ([], 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (raw_answer(404, b"nothing here"), "status 404"),
        (raw_answer(500), "status 500"),
        (raw_answer(206, b"x"), "status 206"),
        (raw_answer(304), "status 304"),
        (raw_answer(302), "without saying where"),
        (raw_answer(200, gzip.compress(b"x" * 1000, mtime=0), content_encoding="gzip"), "compressed"),
        (raw_answer(200, b"x", content_encoding="br"), "compressed"),
        (raw_answer(200, b"short", content_length="100"), "broke before the whole file"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "broke"),
        (b"", "broke"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000 + b"\r\n", "broke"),
    ],
    ids=[
        *("not found", "server error", "partial", "not modified", "redirect to nowhere", "gzip", "brotli"),
        *("cut off", "another protocol", "nothing", "endless headers"),
    ],
)
def test_odd_answers_become_fixed_texts(tmp_path: Path, reply: bytes, text: str) -> None:
    async def handle(writer: asyncio.StreamWriter, _: Asked) -> None:
        writer.write(reply)

    async def scenario() -> None:
        bench = Bench(tmp_path)
        async with web_server(handle) as web:
            with pytest.raises(FetchError, match=text) as caught:
                await bench.fetcher.fetch(f"http://video.test:{web.port}/")
            assert (caught.value.code, caught.value.param) == ("url_not_fetched", "video_url")
        assert (bench.leftovers(), bench.spool.used_bytes) == ([], 0)

    asyncio.run(scenario())


def test_nobody_listens(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with web_server(answer()) as web:
            port = web.port
        with pytest.raises(FetchError, match="could not be reached"):
            await Bench(tmp_path).fetcher.fetch(f"http://video.test:{port}/")

    asyncio.run(scenario())


def test_a_name_that_does_not_exist(tmp_path: Path) -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError

    spool = Spool(tmp_path, 1 << 40, 0)
    fetcher = UrlFetcher(spool=spool, limits=FetchLimits(max_bytes=10), guard=WebGuard(resolver=unknown))
    with pytest.raises(FetchError, match="could not be resolved"):
        asyncio.run(fetcher.fetch("http://nowhere.test/"))


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "video.test.pem")
    return context


def test_https_checks_the_name_and_not_the_address(tmp_path: Path) -> None:
    async def scenario() -> None:
        trust = ssl.create_default_context(cafile=str(CERTIFICATES / "authority.pem"))
        names: list[str | None] = []
        tls = server_tls()
        tls.sni_callback = lambda _socket, name, _context: names.append(name)
        async with web_server(answer(body=MOVIE), tls=tls) as web:
            bench = Bench(tmp_path, ssl_context=trust)
            file = await bench.fetcher.fetch(f"https://video.test:{web.port}/")
            assert (file.size_bytes, names) == (len(MOVIE), ["video.test"])
            for url in (f"https://other.test:{web.port}/", f"https://127.0.0.1:{web.port}/"):
                with pytest.raises(FetchError, match="did not prove its identity"):
                    await bench.fetcher.fetch(url)
            assert len(web.asked) == 1

    asyncio.run(scenario())


def test_https_trusts_public_authorities_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with web_server(answer(body=MOVIE), tls=server_tls()) as web:
            with pytest.raises(FetchError, match="did not prove its identity"):
                await Bench(tmp_path).fetcher.fetch(f"https://video.test:{web.port}/")
            assert web.asked == []

    asyncio.run(scenario())


def test_logs_hold_no_path_query_or_credentials(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        async with web_server(answer(404)) as web:
            for path in ("hidden-path?token=secret", "hidden-path"):
                with pytest.raises(FetchError):
                    await Bench(tmp_path).fetcher.fetch(f"http://video.test:{web.port}/{path}")
        with pytest.raises(FetchError):
            await Bench(tmp_path).fetcher.fetch(f"http://video.test:{web.port}/hidden-path?token=secret")

    asyncio.run(scenario())
    assert "secret" not in caplog.text
    assert "hidden-path" not in caplog.text
    assert "http://video.test failed: ConnectError" in caplog.text
