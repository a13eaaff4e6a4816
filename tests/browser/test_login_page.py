"""Signing in on the page: a wrong key, the right one, a question, and out again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from ask_page import OpenPage
from playwright.sync_api import expect
from support import Server, start_server
from test_accessibility import check

from tru_vlm.api.keys import hash_key, new_key

_KEY = new_key()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that asks for a key."""
    folder = tmp_path_factory.mktemp("keyed")
    running = start_server(
        folder, API_KEYS=json.dumps([{"name": "alice", "hash": hash_key(_KEY)}]), MAX_NEW_TOKENS="64"
    )
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize(
    "look",
    [{}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 780}, "is_mobile": True}],
    ids=["light", "dark", "phone"],
)
def test_signing_in_and_out(open_page: OpenPage, look: dict[str, Any]) -> None:
    ask_page = open_page(**look)
    ask_page.expect_status(401)
    page = ask_page.page
    expect(page).to_have_url(re.compile(r"/login"))
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    check(page, "sign in")
    assert not ask_page.scrolls_sideways()
    key.fill("tru-wrong")
    key.press("Enter")
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect(key).to_have_attribute("aria-invalid", "true")
    expect(key).to_have_value("")
    check(page, "wrong key")
    key.fill(_KEY)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_label("Your question")).to_be_visible()
    ask_page.choose_sample("red-circle")
    ask_page.ask()
    assert ask_page.wait_until_done()
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(re.compile(r"/login"))
    page.goto(ask_page.base)
    expect(key).to_be_visible()
