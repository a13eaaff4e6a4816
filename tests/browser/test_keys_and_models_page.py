"""A server with keys and with several models: signing in and out, and which model answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from ask_page import SAMPLES, AskPage, OpenPage
from playwright.sync_api import expect
from support import Server, start_server
from test_accessibility import check_looks

from tru_vlm.api.keys import hash_key, new_key

_KEY = new_key()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that asks for a key; two models and an alias, the second one answers where none is chosen."""
    running = start_server(
        tmp_path_factory.mktemp("keyed"),
        API_KEYS=json.dumps([{"name": "alice", "hash": hash_key(_KEY)}]),
        MODELS=json.dumps({"large": {}, "small": {"kv_cache_tokens": 8192}}),
        MODEL_ALIASES=json.dumps({"chat": {"small": 1, "large": 3}}),
        DEFAULT_MODEL="small",
        MAX_NEW_TOKENS="64",
    )
    try:
        yield running
    finally:
        running.stop()


def _sign_in(ask_page: AskPage) -> None:
    ask_page.page.get_by_label("API key").fill(_KEY)
    ask_page.page.get_by_role("button", name="Sign in").click()
    expect(ask_page.page.get_by_label("Your question")).to_be_visible()


def test_signing_in_and_out(open_page: OpenPage) -> None:
    ask_page = open_page()
    ask_page.expect_status(401)
    page = ask_page.page
    expect(page).to_have_url(re.compile(r"/login"))
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    check_looks(page, "sign in")
    key.fill("tru-wrong")
    key.press("Enter")
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect(key).to_have_attribute("aria-invalid", "true")
    expect(key).to_have_value("")
    check_looks(page, "wrong key")
    page.set_viewport_size({"width": 360, "height": 780})
    assert not ask_page.scrolls_sideways()
    _sign_in(ask_page)
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(re.compile(r"/login"))
    page.goto(ask_page.base)
    expect(key).to_be_visible()


def test_a_model_is_chosen_and_said(open_page: OpenPage) -> None:
    ask_page = open_page()
    _sign_in(ask_page)
    select = ask_page.page.get_by_label("Model", exact=True)
    expect(select).to_have_value("small")
    assert select.locator("option").all_inner_texts() == ["large", "small", "chat (small or large)"]
    ask_page.choose_sample(SAMPLES[0]["name"])
    for number, (chosen, answers) in enumerate((("large", ["large"]), ("chat", ["large", "small"])), 1):
        select.select_option(chosen)
        ask_page.ask()
        expect(ask_page.answers).to_have_count(number)
        ask_page.wait_until_done()
        assert any(f"answered by {name}" in ask_page.latest.inner_text() for name in answers)
    assert not ask_page.scrolls_sideways()
