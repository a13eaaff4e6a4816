"""Addresses of the page: a copied time, a kept video, a conversation, and the list of many conversations."""

from __future__ import annotations

import re

import requests
from ask_page import AskPage, OpenPage, clip_bytes
from playwright.sync_api import expect


def test_a_copied_time_opens_its_conversation_there_with_the_frames_that_were_seen(open_page: OpenPage) -> None:
    ask_page = open_page()
    ask_page.choose_sample("triangle-then-square")
    ask_page.ask(nframes=6)
    ask_page.wait_until_done()
    time = ask_page.latest.locator(".time").first
    seconds = float(time.get_attribute("data-seconds") or "nan")
    link = str(time.evaluate("link => link.href"))
    assert re.search(r"\?chat=chat-[0-9a-f]{32}#t=[\d.]+$", link)
    seen = ask_page.frames.evaluate_all("frames => frames.map(frame => frame.dataset.seconds)")
    time.click()
    expect(ask_page.page).to_have_url(link)

    other = open_page()
    other.page.goto(link)
    other.wait_until_seeked(seconds)
    expect(other.frames).to_have_count(6)
    assert other.frames.evaluate_all("frames => frames.map(frame => frame.dataset.seconds)") == seen
    other.wait_until(
        "image => image.complete && image.naturalWidth > 0", other.frames.first.locator("img").element_handle()
    )
    expect(other.page).to_have_url(link)
    other.page.evaluate("location.hash = '#t=0.5'")
    other.wait_until_seeked(0.5)


def test_a_kept_video_has_an_address_and_can_be_asked_about(open_page: OpenPage) -> None:
    ask_page = open_page()
    files = {"video": ("shapes.mp4", clip_bytes("red-circle"))}
    video_id = requests.post(f"{ask_page.base}/v1/videos", files=files, timeout=60).json()["id"]
    ask_page.page.goto(f"{ask_page.base}/?video={video_id}#t=1.5")
    expect(ask_page.page.locator("#media-name")).not_to_be_empty()
    ask_page.wait_until_seeked(1.5)
    ask_page.ask()
    assert "red circle" in ask_page.wait_until_done().lower()
    expect(ask_page.page).to_have_url(re.compile(r"\?chat=chat-[0-9a-f]{32}$"))
    ask_page.page.get_by_role("button", name="Remove").click()
    expect(ask_page.page).to_have_url(f"{ask_page.base}/")


def test_an_address_of_nothing_opens_the_empty_page(open_page: OpenPage) -> None:
    ask_page = open_page()
    for query in ("?video=0000", "?chat=chat-none#t=3", "#t=3", "?video=%3Cscript%3E#t=x"):
        ask_page.page.goto(f"{ask_page.base}/{query}")
        expect(ask_page.page.locator("#media")).to_have_attribute("data-state", "empty")


def test_many_conversations_come_in_pages(ask_page: AskPage) -> None:
    base = ask_page.base
    files = {"video": ("shapes.mp4", clip_bytes("red-circle"))}
    video_id = requests.post(f"{base}/v1/videos", files=files, timeout=60).json()["id"]
    ids = [
        requests.post(f"{base}/v1/chats", json={"video_id": video_id, "title": f"Number {i}"}, timeout=60).json()["id"]
        for i in range(22)
    ]
    try:
        ask_page.page.click("#past summary")
        rows = ask_page.page.locator(".past-chat")
        expect(rows).to_have_count(20)
        expect(rows.first.locator("a").first).to_have_text("Number 21")
        more = ask_page.page.get_by_role("button", name="Show more")
        more.click()
        expect(ask_page.page.locator(f'.past-chat[data-chat="{ids[0]}"]')).to_be_visible()
        with ask_page.page.expect_download() as download:
            rows.first.get_by_role("link", name="Export").click()
        assert download.value.suggested_filename == f"{ids[-1]}.md"
    finally:
        for chat_id in ids:
            requests.delete(f"{base}/v1/chats/{chat_id}", timeout=60)
