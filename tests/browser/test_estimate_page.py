"""The estimate on the page follows the settings, and equals what the answer then tells."""

from __future__ import annotations

from ask_page import LARGE, SLOW, AskPage, OpenPage, clip_bytes, padded
from playwright.sync_api import expect

_GAP = """() => {
  const [form, below] = ["ask", "background"].map((id) => document.getElementById(id).getBoundingClientRect());
  return below.top - form.bottom;
}"""


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


def test_on_a_phone_the_line_has_a_place_only_with_a_video_and_moves_nothing_when_it_comes(open_page: OpenPage) -> None:
    ask_page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = ask_page.page

    def gap() -> float:
        """Between the form and what is below the line."""
        return float(page.evaluate(_GAP))

    assert gap() < 30
    ask_page.throttle_uploads(SLOW)
    ask_page.choose_file("large.mp4", padded(clip_bytes("red-circle"), LARGE))
    expect(page.locator("#estimate")).to_contain_text("once the server has the video")
    before = gap()
    ask_page.throttle_uploads(-1)
    expect(page.locator("#estimate")).to_contain_text("Estimate: 8 frames")
    assert gap() == before
