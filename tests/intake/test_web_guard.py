"""Where a fetch may go: what is refused, and that nothing else is ever connected to.  Real sockets, loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fetch_bench import MOVIE, Bench, Resolver, pretend_public
from web_server import answer, web_server

from tru_vlm.errors import FetchError
from tru_vlm.intake.fetch import FetchLimits, UrlFetcher
from tru_vlm.intake.spool import Spool
from tru_vlm.intake.web_guard import WebGuard, is_listed_host


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


def test_proxy_variables_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with web_server(answer(body=b"proxy")) as proxy, web_server(answer(body=MOVIE)) as web:
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            await Bench(tmp_path).fetcher.fetch(f"http://video.test:{web.port}/")
            assert (len(proxy.asked), len(web.asked)) == (0, 1)

    asyncio.run(scenario())
