"""The handles below the player set the part of the clip that is asked about, and follow the form's fields."""

from __future__ import annotations

import pytest
from ask_page import AskPage, OpenPage
from playwright.sync_api import Locator, expect


class Handles:
    """The two handles of the clip that is shown."""

    def __init__(self, ask_page: AskPage) -> None:
        self.start = ask_page.page.get_by_label("Start of the part")
        self.end = ask_page.page.get_by_label("End of the part")

    def move(self, handle: Locator, key: str, times: int) -> None:
        """Press a key on a handle."""
        for _ in range(times):
            handle.press(key)

    def place(self, handle: Locator, share: float | None = None) -> tuple[float, float]:
        """Where a handle's thumb is, or would be at a share of the clip."""
        x, y, width, height, thumb, value = handle.evaluate(_THUMB)
        share = value if share is None else share
        return x + thumb / 2 + share * (width - thumb), y + height / 2


_THUMB = """handle => {
  const { x, y, width, height } = handle.getBoundingClientRect();
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const thumb = parseFloat(getComputedStyle(handle).getPropertyValue("--thumb")) * rem;
  return [x, y, width, height, thumb, handle.value / handle.max];
}"""
_RIGHT = "box => box.getBoundingClientRect().right"
_BOTTOM = "slot => scrollY + slot.getBoundingClientRect().bottom"


@pytest.fixture
def handles(ask_page: AskPage) -> Handles:
    """A clip is chosen, and nothing below the handles has moved for them."""
    slot = ask_page.page.locator(".slot")
    bottom = slot.evaluate(_BOTTOM)
    ask_page.choose_sample("triangle-then-square")
    handles = Handles(ask_page)
    expect(handles.start).to_be_visible()
    assert slot.evaluate(_BOTTOM) == pytest.approx(bottom, abs=1)
    return handles


def test_handles_moved_by_keyboard_are_the_part_that_is_asked_about(ask_page: AskPage, handles: Handles) -> None:
    page = ask_page.page
    length = float(handles.end.input_value())
    handles.move(handles.start, "ArrowRight", 10)
    handles.move(handles.end, "ArrowLeft", 15)
    assert page.input_value("#video_start") == "1"
    assert float(page.input_value("#video_end")) == pytest.approx(length - 1.5)
    expect(handles.start).to_have_attribute("aria-valuetext", "0:01.0")
    ask_page.wait_until_seeked(length - 1.5)
    expect(page.locator("#estimate")).to_contain_text("Estimate: 10 frames")

    ask_page.ask(nframes=4)
    ask_page.wait_until_done()
    seconds = ask_page.frames.evaluate_all("frames => frames.map((frame) => Number(frame.dataset.seconds))")
    assert seconds[0] == pytest.approx(1, abs=0.06)
    assert seconds[-1] == pytest.approx(length - 1.5, abs=0.16)

    marks = page.locator(".clip-marks i")
    expect(marks).to_have_count(4)
    box = marks.nth(1).bounding_box()
    assert box
    page.mouse.click(box["x"] + 1, box["y"] + 2)
    ask_page.wait_until_seeked(seconds[1])
    expect(marks.nth(1)).to_have_class("is-current")
    expect(ask_page.frames.nth(1)).to_have_attribute("aria-current", "true")


def test_handles_follow_the_fields_and_never_cross(ask_page: AskPage, handles: Handles) -> None:
    page = ask_page.page
    expect(page.locator("#estimate")).to_contain_text("Estimate:")  # so the server has the clip
    length = handles.end.input_value()
    page.click("#settings summary")
    page.fill("#video_start", "1.5")
    page.fill("#video_end", "3")
    expect(handles.start).to_have_value("1.5")
    expect(handles.end).to_have_value("3")
    handles.start.press("End")
    expect(handles.start).to_have_value("2.9")
    expect(page.locator("#video_start")).to_have_value("2.9")
    handles.end.press("Home")
    expect(handles.end).to_have_value("3")

    ask_page.choose_sample("red-circle")  # another clip has its own part
    expect(page.locator("#video_start")).to_have_value("")
    ask_page.kept("triangle-then-square.mp4").locator(".kept-pick").click()
    expect(page.locator("#video_start")).to_have_value("2.9")
    expect(handles.end).to_have_value("3")

    page.get_by_role("button", name="Whole clip").click()
    expect(page.locator("#video_start")).to_have_value("")
    expect(page.locator("#video_end")).to_have_value("")
    expect(handles.end).to_have_value(length)
    expect(handles.start).to_be_focused()
    expect(page.get_by_role("button", name="Whole clip")).to_be_hidden()
    clip, time = (page.locator(name).evaluate(_RIGHT) for name in ("#clip", "#clip-end-time"))
    assert time == pytest.approx(clip, abs=1), "nothing is left free for what is hidden"


def test_handles_are_dragged_by_mouse(ask_page: AskPage, handles: Handles) -> None:
    mouse = ask_page.page.mouse
    for handle, share in ((handles.end, 0.3), (handles.start, 0.2), (handles.end, 0.8)):
        mouse.move(*handles.place(handle))
        mouse.down()
        mouse.move(*handles.place(handle, share), steps=5)
        mouse.up()
        _expect_part(ask_page, handle, share)
    mouse.move(*handles.place(handles.start))
    mouse.down()
    mouse.move(*handles.place(handles.start, 1.0), steps=5)  # over the other one
    mouse.up()
    before_end = float(handles.end.input_value()) - 0.1
    ask_page.wait_for(lambda: float(handles.start.input_value()) == pytest.approx(before_end))


def test_handles_are_dragged_by_a_finger_and_the_page_stays(open_page: OpenPage) -> None:
    ask_page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    ask_page.choose_sample("triangle-then-square")
    handles = Handles(ask_page)
    handles.start.scroll_into_view_if_needed()
    session = ask_page.page.context.new_cdp_session(ask_page.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    scrolled = ask_page.page.evaluate("scrollY")
    for handle, share in ((handles.start, 0.4), (handles.end, 0.7)):
        (x, y), (to_x, _) = handles.place(handle), handles.place(handle, share)
        touch("touchStart", (x, y))
        for step in range(1, 6):
            touch("touchMove", (x + (to_x - x) * step / 5, y + 4 * step))  # a finger does not go straight
        touch("touchEnd")
        _expect_part(ask_page, handle, share)
    assert ask_page.page.evaluate("scrollY") == scrolled


def _expect_part(ask_page: AskPage, handle: Locator, share: float) -> None:
    """A handle, its field, its label and the player are where it was dragged to."""
    seconds = share * float(handle.get_attribute("max") or "nan")
    ask_page.wait_for(lambda: float(handle.input_value()) == pytest.approx(seconds, abs=0.1))
    value = float(handle.input_value())
    is_start = handle.get_attribute("id") == "clip-start"
    assert float(ask_page.page.input_value("#video_start" if is_start else "#video_end")) == value
    expect(handle).to_have_attribute("aria-valuetext", f"0:{value:04.1f}")
    ask_page.wait_until_seeked(value)
