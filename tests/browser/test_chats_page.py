"""Conversations on the page: a second turn, reload, the list, and a time in a stored answer."""

from __future__ import annotations

import itertools
import re

import requests
from ask_page import AskPage
from playwright.sync_api import Route, expect


def test_a_conversation_goes_on_after_a_reload_and_is_found_again(ask_page: AskPage) -> None:
    page = ask_page.page
    ask_page.choose_sample("triangle-then-square")
    ask_page.ask()
    first = ask_page.wait_until_done()
    ask_page.ask("When does the second event begin?")
    expect(ask_page.answers).to_have_count(2)
    ask_page.wait_until_done()
    expect(page).to_have_url(re.compile(r"\?chat=chat-[0-9a-f]{32}$"))
    chat_id = page.url.partition("?chat=")[2]

    page.reload()
    expect(ask_page.answers).to_have_count(2)
    assert ask_page.answers.last.locator(".answer-text").inner_text() == first
    ask_page.wait_for_player()
    ask_page.answers.last.locator(".time").first.click()
    seconds = float(ask_page.answers.last.locator(".time").first.get_attribute("data-seconds") or "nan")
    ask_page.wait_until_seeked(seconds)
    ask_page.ask("What happens in this video?")
    expect(ask_page.answers).to_have_count(3)
    ask_page.wait_until_done()
    turns = requests.get(f"{ask_page.base}/v1/chats/{chat_id}", timeout=30).json()["turns"]
    assert [turn["status"] for turn in turns] == ["done"] * 3
    for before, after in itertools.pairwise(turns):
        in_cache = before["answer"]["usage"]["total_tokens"] - 1
        assert after["answer"]["usage"]["cached_tokens"] == in_cache // 16 * 16

    page.goto(ask_page.base)
    page.click("#past summary")
    row = page.locator(f'.past-chat[data-chat="{chat_id}"]')
    expect(row.locator(".past-video")).to_have_text("triangle-then-square.mp4")
    expect(row.locator("time")).to_have_text(re.compile(r"^(just now|\d+ minutes? ago)$"))
    page.once("dialog", lambda dialog: dialog.accept("Shapes"))
    row.get_by_role("button", name="Rename").click()
    expect(row.locator("a").first).to_have_text("Shapes")
    row.locator("a").first.click()
    expect(ask_page.answers).to_have_count(3)
    page.click("#past summary")
    expect(row.locator("a").first).to_have_text("Shapes")
    page.once("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="Delete").click()
    expect(ask_page.answers).to_have_count(0)
    assert requests.get(f"{ask_page.base}/v1/chats/{chat_id}", timeout=30).status_code == 404


def test_a_panel_that_was_opened_before_the_scripts_ran_is_filled(ask_page: AskPage) -> None:
    page = ask_page.page
    ask_page.choose_sample("red-circle")
    ask_page.ask()
    ask_page.wait_until_done()

    def later(route: Route) -> None:
        page.click("#past summary")
        route.continue_()

    page.route("**/htmx-*.min.js*", later, times=1)
    page.goto(ask_page.base)
    expect(page.locator("#past-list a").first).to_be_visible()
