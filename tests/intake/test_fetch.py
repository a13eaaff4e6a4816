"""Fetching: what is fetched, what is refused, and that nothing else is ever connected to.  Real sockets, loopback."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from cancelling import at_every_wait, until
from web_server import Asked, answer, raw_answer, web_server

from tru_vlm.errors import FetchError, PayloadTooLargeError
from tru_vlm.intake import web_guard
from tru_vlm.intake.addresses import is_allowed_address
from tru_vlm.intake.fetch import FetchLimits, UrlFetcher
from tru_vlm.intake.spool import Spool, SpooledFile
from tru_vlm.intake.url_cache import UrlCache
from tru_vlm.intake.web_guard import WebGuard, is_listed_host

CERTIFICATES = Path(__file__).parent / "certificates"
MOVIE = b"movie" * 50_000


class Resolver:
    """Answers from a table and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers) or [["127.0.0.1"]]
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


class Bench:
    """A fetcher with a spool of its own."""

    def __init__(
        self,
        directory: Path,
        *,
        resolver: Resolver | None = None,
        allow_private: bool = True,
        max_bytes: int = 1 << 20,
        total_seconds: float = 60.0,
        idle_seconds: float = 60.0,
        allowed_hosts: frozenset[str] = frozenset(),
        ssl_context: ssl.SSLContext | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.directory = directory
        self.resolver = resolver or Resolver()
        self.spool = Spool(directory, 1 << 40, 0)
        self.cache = UrlCache(spool=self.spool, max_bytes=cache_bytes) if cache_bytes else None
        self.fetcher = UrlFetcher(
            spool=self.spool,
            limits=FetchLimits(max_bytes=max_bytes, total_seconds=total_seconds, idle_seconds=idle_seconds),
            guard=WebGuard(
                allow_private=allow_private,
                allowed_hosts=allowed_hosts,
                resolver=self.resolver,
                ssl_context=ssl_context,
            ),
            cache=self.cache,
        )

    def leftovers(self) -> list[Path]:
        return [path for path in self.directory.rglob("*") if path.is_file() and path.name != ".lock"]


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


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://video.test/a",
        "gopher://video.test/",
        "rtsp://video.test/",
        "data:video/mp4;base64,AAAA",
        "/etc/passwd",
        "video.test/a",
        "",
        "http://",
        "http:///a",
        "http://user@video.test/a",
        "http://user:secret@video.test/a",
        "http://video.test:22/",
        "http://video.test:6/",
        "http://video.test:99999/",
        "http://video.test:x/",
        "http://video.test/\r\nX-Header: 1",
        "http://video.test/" + "a" * 9000,
        "http://[::1",
        "http://\x00/",
        " http://video.test/",
    ],
)
def test_urls_that_are_refused_before_anything_is_resolved(tmp_path: Path, url: str) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(FetchError) as caught:
        asyncio.run(bench.fetcher.fetch(url, param="video_url"))
    assert (caught.value.code, caught.value.param, caught.value.status) == ("url_not_allowed", "video_url", 400)
    assert bench.resolver.asked == []
    assert "secret" not in caught.value.message


REFUSED = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]
REFUSED += ["2002:7f00:1::", "fe80::1", "224.0.0.1", "0.0.0.0", "fd00::1"]


@pytest.mark.parametrize("address", REFUSED)
def test_a_name_that_leads_inside_is_refused(tmp_path: Path, address: str) -> None:
    async def scenario() -> None:
        async with web_server(answer(body=MOVIE)) as web:
            bench = Bench(tmp_path, resolver=Resolver([address]), allow_private=False)
            with pytest.raises(FetchError, match="address that this server does not go to") as caught:
                await bench.fetcher.fetch(f"http://video.test:{web.port}/")
            assert caught.value.code == "url_not_allowed"
            assert address not in caught.value.message
            assert web.asked == []

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "localhost", "[::1]", "0177.0.0.1"])
def test_every_spelling_of_loopback_is_refused_with_the_real_resolver(tmp_path: Path, host: str) -> None:
    async def scenario() -> None:
        spool = Spool(tmp_path, 1 << 40, 0)
        async with web_server(answer(body=MOVIE)) as web:
            fetcher = UrlFetcher(spool=spool, limits=FetchLimits(max_bytes=10), guard=WebGuard())
            with pytest.raises(FetchError):
                await fetcher.fetch(f"http://{host}:{web.port}/")
            assert web.asked == []

    asyncio.run(scenario())


def test_the_connection_goes_to_the_address_that_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that gives another address at each question (rebinding) is asked only once."""
    pretend_public(monkeypatch, "127.0.0.1")

    async def scenario() -> None:
        resolver = Resolver(["10.9.9.9", "127.0.0.1"], ["127.0.0.2"])
        async with web_server(answer(body=MOVIE)) as web, web_server(answer(body=b"inside"), host="127.0.0.2") as inner:
            file = await Bench(tmp_path, resolver=resolver, allow_private=False).fetcher.fetch(
                f"http://video.test:{web.port}/"
            )
            assert file.path.read_bytes() == MOVIE
            assert (len(resolver.asked), inner.asked) == (1, [])

    asyncio.run(scenario())


def pretend_public(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let one loopback address stand for a public one; all others are judged as they are."""
    monkeypatch.setattr(
        web_guard,
        "is_allowed_address",
        lambda text, *, allow_private: text == address or is_allowed_address(text, allow_private=allow_private),
    )


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


def test_a_redirect_to_the_inside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_public(monkeypatch, "127.0.0.1")

    async def scenario() -> None:
        async with web_server(answer(body=b"inside"), host="127.0.0.2") as inner:
            for location in (f"http://127.0.0.2:{inner.port}/", f"//metadata.test:{inner.port}/latest"):
                async with web_server(answer(302, location=location)) as outer:
                    resolver = Resolver(["127.0.0.1"], ["127.0.0.2"])
                    bench = Bench(tmp_path, resolver=resolver, allow_private=False)
                    with pytest.raises(FetchError, match="address"):
                        await bench.fetcher.fetch(f"http://video.test:{outer.port}/")
            assert inner.asked == []

    asyncio.run(scenario())


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://a:b@c.test/", "http://c.test:25/", "", "http://[/"])
def test_a_redirect_passes_the_same_gate_as_a_url(tmp_path: Path, location: str) -> None:
    async def scenario() -> None:
        async with web_server(answer(301, location=location)) as web:
            bench = Bench(tmp_path)
            with pytest.raises(FetchError):
                await bench.fetcher.fetch(f"http://video.test:{web.port}/")
            assert len(bench.resolver.asked) == 1

    asyncio.run(scenario())


def test_at_most_three_redirects(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with web_server(answer(307, location="/again")) as web:
            with pytest.raises(FetchError, match="more than 3 times"):
                await Bench(tmp_path).fetcher.fetch(f"http://video.test:{web.port}/")
            assert len(web.asked) == 4

    asyncio.run(scenario())


def test_hosts_can_be_limited_to_a_list(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with web_server(answer(302, location="http://elsewhere.test/")) as web:
            bench = Bench(tmp_path, allowed_hosts=frozenset({"*.example.test"}))
            for host in ("a.example.test", "elsewhere.test", "example.test"):
                with pytest.raises(FetchError, match="host that this server does not go to"):
                    await bench.fetcher.fetch(f"http://{host}:{web.port}/")
            assert bench.resolver.asked == ["a.example.test"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("host", "is_listed"),
    [("a.com", True), ("A.COM.", True), ("x.a.com", False), ("b.org", False), ("x.b.org", True), ("y.x.b.org", True)],
)
def test_host_patterns(host: str, is_listed: bool) -> None:
    assert is_listed_host(host, frozenset({"a.com", "*.b.org"})) is is_listed


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


def test_proxy_variables_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with web_server(answer(body=b"proxy")) as proxy, web_server(answer(body=MOVIE)) as web:
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            await Bench(tmp_path).fetcher.fetch(f"http://video.test:{web.port}/")
            assert (len(proxy.asked), len(web.asked)) == (0, 1)

    asyncio.run(scenario())


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
