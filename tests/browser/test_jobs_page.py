"""Jobs on the page: a long video, many questions, the list, cancel and resume, and all of it after a reload."""

from __future__ import annotations

import re

import pytest
from ask_page import ANSWER_MS, AskPage, OpenPage, clip_bytes
from playwright.sync_api import Locator, expect
from support import Server
from test_accessibility import check
from watching import Brake

_HAS_FOCUS = "() => document.querySelector('#job-slot .job').contains(document.activeElement)"


def _card(ask_page: AskPage) -> Locator:
    return ask_page.page.locator("#job-slot .job")


def _start(ask_page: AskPage, **fields: str) -> None:
    page = ask_page.page
    if not page.locator("#background").evaluate("details => details.open"):
        page.click("#background summary")
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    page.get_by_role("button", name="Start").click()


def _state(ask_page: AskPage, text: str) -> None:
    expect(_card(ask_page).locator(".job-state")).to_contain_text(text, timeout=ANSWER_MS)


def test_a_long_video_gets_a_timeline_and_an_answer_and_is_there_after_a_reload(ask_page: AskPage) -> None:
    page = ask_page.page
    ask_page.choose_sample("triangle-then-square")
    _start(ask_page, prompt="What happens in this video?", span_seconds="4")
    _state(ask_page, "Succeeded, 3 of 3 answered")
    expect(page).to_have_url(re.compile(r"\?job=job_[0-9a-f]+$"))
    entries = _card(ask_page).locator(".timeline > li")
    expect(entries).to_have_count(2)
    expect(entries.first).to_contain_text("triangle")
    expect(_card(ask_page).locator(".answer-text")).not_to_be_empty()
    entries.last.locator(".time").first.click()
    ask_page.wait_until_seeked(4.0)

    page.reload()
    _state(ask_page, "Succeeded")
    expect(entries).to_have_count(2)
    expect(page.locator("#media-name")).not_to_be_empty()
    page.click("#jobs summary")
    row = page.locator("#job-rows li").first
    expect(row).to_contain_text("Succeeded, 3 of 3 answered")
    expect(row.locator(".past-video")).to_have_text("triangle-then-square.mp4")
    check(page, "jobs")
    page.click("#jobs summary")
    expect(row).to_have_count(0)
    page.once("dialog", lambda dialog: dialog.accept())
    _card(ask_page).get_by_role("button", name="Delete").click()
    expect(_card(ask_page)).to_have_count(0)


def test_a_job_is_cancelled_and_resumed_from_a_page_that_came_later(open_page: OpenPage, server: Server) -> None:
    ask_page = open_page()
    ask_page.choose_sample("red-circle")
    ask_page.page.click("#background summary")
    ask_page.page.get_by_label("Ask several questions about it").check()
    with Brake(server):
        _start(ask_page, questions="What colour is the object?\n\nWhat happens in this video?\n")
        _state(ask_page, "0 of 2 answered")
        expect(_card(ask_page).locator(".job-questions > li")).to_have_count(2)
        other = open_page()
        other.page.goto(ask_page.page.url)
        other.page.click("#jobs summary")
        row = other.page.locator("#job-rows li").first
        expect(row.get_by_role("progressbar")).to_be_visible()
        _card(other).get_by_role("button", name="Cancel").focus()
        other.page.keyboard.press("Enter")
        _state(other, "Cancelled")
        expect(_card(other).get_by_role("button", name="Resume")).to_be_focused()
        _state(ask_page, "Cancelled")
        expect(row).to_contain_text("Cancelled")
        other.page.keyboard.press("Enter")
        expect(_card(other).get_by_role("button", name="Cancel")).to_be_focused()
    _state(other, "Succeeded, 2 of 2 answered")
    other.wait_until(_HAS_FOCUS)  # the keyboard's place is on the card, whatever buttons it has now
    expect(_card(other).locator(".job-questions > li").first).to_contain_text("red", ignore_case=True)
    expect(row).to_contain_text("Succeeded")


def test_what_is_missing_is_said(ask_page: AskPage) -> None:
    ask_page.expect_status(400)
    error = ask_page.page.locator("#error-job")
    _start(ask_page)
    expect(error).to_contain_text("Choose a video")
    ask_page.choose_sample("red-circle")
    _start(ask_page, prompt=" ")
    expect(error).to_contain_text("Type the question")
    _start(ask_page, prompt="What happens?", span_seconds="0.2")
    expect(error).to_contain_text("span_seconds")
    ask_page.page.get_by_label("Ask several questions about it").check()
    _start(ask_page)
    expect(error).to_contain_text("at least one question")


@pytest.mark.parametrize("width", [360])
def test_phone_shows_a_job(open_page: OpenPage, width: int) -> None:
    ask_page = open_page(viewport={"width": width, "height": 780}, has_touch=True, is_mobile=True)
    ask_page.choose_file("clip.mp4", clip_bytes("red-circle"))
    _start(ask_page, prompt="What happens?", span_seconds="2")
    _state(ask_page, "Succeeded")
    assert not ask_page.scrolls_sideways()
    check(ask_page.page, "a job on a phone")
