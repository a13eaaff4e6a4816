"""Whose address counts: what a trusted proxy forwards is believed, what anybody else claims is not."""

from __future__ import annotations

import json

import pytest
from forwarded import PROXY, post
from support import Server

pytestmark = pytest.mark.usefixtures("one_minute")
BODY = json.dumps({"video_url": "ftp://example.com/a.mp4", "prompt": "x"}).encode()


def statuses(server: Server, source: str, *forwarded: str) -> list[int]:
    return [post(server, "/v1/plan", BODY, "application/json", source=source, forwarded=one)[0] for one in forwarded]


def test_a_stranger_cannot_choose_whom_it_is_counted_as(bounded: Server) -> None:
    assert statuses(bounded, "127.0.0.3", "8.8.8.1", "8.8.8.2", "8.8.8.3") == [400, 400, 429]


def test_behind_the_proxy_clients_are_counted_apart(bounded: Server) -> None:
    assert statuses(bounded, PROXY, "8.8.4.1", "8.8.4.2", "8.8.4.1", "8.8.4.2") == [400] * 4
    assert statuses(bounded, PROXY, "8.8.4.1") == [429]


def test_what_a_client_puts_before_the_proxy_s_word_is_nothing(bounded: Server) -> None:
    spoofed = [f"9.9.9.{number}, 8.8.5.1" for number in range(3)]
    assert statuses(bounded, PROXY, *spoofed) == [400, 400, 429]


def test_without_trusted_proxies_nobody_is_believed(keyed) -> None:
    assert statuses(keyed.server, "127.0.0.1", "8.8.8.8") == [401]
    assert "refused a request from 127.0.0.1" in keyed.server.log.read_text()
    assert "8.8.8.8" not in keyed.server.log.read_text()


def test_a_server_that_is_open_to_everybody_says_so(bounded: Server, keyed) -> None:
    assert "HOST=0.0.0.0 and no API_KEYS: everybody who reaches port" in bounded.log.read_text()
    assert "and no API_KEYS" not in keyed.server.log.read_text()
