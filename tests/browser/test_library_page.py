"""The list of kept videos on the page: pictures, search, more of it, a question about one, and deletion."""

from __future__ import annotations

import requests
from ask_page import AskPage, OpenPage, clip_bytes, padded
from playwright.sync_api import Locator, expect
from support import Server

_NUM_VIDEOS = 22


def _keep(base: str, name: str, content: bytes) -> str:
    answer = requests.post(f"{base}/v1/videos", files={"video": (name, content)}, timeout=60)
    return str(answer.json()["id"])


def _rows(ask_page: AskPage) -> Locator:
    return ask_page.page.locator(".kept")


def test_an_empty_library_says_what_comes_there(open_page: OpenPage, server: Server) -> None:
    for video in requests.get(f"{server.base}/v1/videos", timeout=30).json()["data"]:
        requests.delete(f"{server.base}/v1/videos/{video['id']}", timeout=30)
    ask_page = open_page()
    expect(_rows(ask_page)).to_have_count(0)
    expect(ask_page.page.locator(".shelf-empty")).to_contain_text("kept here")
    ask_page.choose_sample("red-circle")
    expect(ask_page.kept("red-circle.mp4")).to_be_visible()
    expect(ask_page.page.locator(".shelf-empty")).to_have_count(0)


def test_a_kept_video_is_picked_asked_about_and_deleted(open_page: OpenPage, server: Server) -> None:
    video_id = _keep(server.base, "a star <b>.mp4", clip_bytes("yellow-star"))
    ask_page = open_page()
    row = ask_page.page.locator(f'.kept[data-video-id="{video_id}"]')
    expect(row.locator(".row-name")).to_have_text("a star <b>.mp4")
    expect(row.locator(".row-facts")).to_have_text("0:04.0 · 320 × 240 · 13.9 KB · expires in 7 days")
    ask_page.wait_until("image => image.complete && image.naturalWidth > 0", row.locator("img").element_handle())

    row.locator(".kept-pick").focus()
    ask_page.page.keyboard.press("Enter")
    expect(row.locator(".kept-pick")).to_have_attribute("aria-pressed", "true")
    ask_page.wait_for_player()
    ask_page.ask()
    assert "yellow star" in ask_page.wait_until_done().lower()

    ask_page.page.once("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="Delete a star <b>.mp4").click()
    expect(row).to_have_count(0)
    expect(ask_page.page.locator("#media")).to_have_attribute("data-state", "empty")
    assert requests.get(f"{server.base}/v1/videos/{video_id}", timeout=30).status_code == 404
    ask_page.page.click("#past summary")
    expect(ask_page.page.locator(".past-facts").first).to_contain_text("Its video is not kept any more")


def test_many_videos_come_in_pages_and_are_searched(open_page: OpenPage, server: Server) -> None:
    ids = [_keep(server.base, f"Kept {i:02d}.mp4", padded(clip_bytes("red-circle"), i)) for i in range(_NUM_VIDEOS)]
    ask_page = open_page()
    page = ask_page.page
    expect(_rows(ask_page)).to_have_count(20)
    expect(_rows(ask_page).first.locator(".row-name")).to_have_text("Kept 21.mp4")
    page.get_by_role("button", name="Show more").click()
    expect(ask_page.kept("Kept 00.mp4")).to_be_visible()
    expect(page.locator(f"#kept-{ids[1]}")).to_be_focused()

    search = page.get_by_label("Search your videos")
    search.fill("kept 1")
    expect(_rows(ask_page)).to_have_count(10)
    search.fill("no such name")
    expect(page.locator(".shelf-empty")).to_have_text("No video has “no such name” in its name.")
    search.fill("")
    expect(_rows(ask_page)).to_have_count(20)


def test_phone_has_the_library_below_its_drop_zone(open_page: OpenPage, server: Server) -> None:
    _keep(server.base, "A name that is longer than any phone is wide, and then some more.mp4", clip_bytes("red-circle"))
    ask_page = open_page(viewport={"width": 360, "height": 780}, has_touch=True, is_mobile=True)
    expect(_rows(ask_page).first).to_be_visible()
    assert not ask_page.scrolls_sideways()
    _rows(ask_page).first.locator(".kept-pick").tap()
    ask_page.wait_for_player()
    assert not ask_page.scrolls_sideways()
