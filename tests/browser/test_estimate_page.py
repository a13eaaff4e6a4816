"""The estimate on the page follows the settings, and equals what the answer then tells."""

from __future__ import annotations

from ask_page import AskPage
from playwright.sync_api import expect


def test_the_estimate_follows_the_settings_and_is_what_happens(ask_page: AskPage) -> None:
    page = ask_page.page
    line = page.locator("#estimate")
    ask_page.choose_sample("red-circle")
    expect(line).to_contain_text("Estimate: 8 frames")
    page.click("#settings summary")
    page.fill("#nframes", "6")
    expect(line).to_contain_text("Estimate: 6 frames")
    ask_page.ask()
    ask_page.wait_until_done()
    tokens = line.locator("strong").nth(1).inner_text()
    expect(ask_page.latest.locator(".facts")).to_contain_text(tokens)

    page.fill("#nframes", "")
    page.fill("#video_start", "3")
    page.fill("#video_end", "2")
    expect(line.locator(".refusal")).to_contain_text("Would be refused:")
    page.click('[data-action="remove"]')
    expect(line).to_be_empty()
