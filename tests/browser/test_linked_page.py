"""A link on the page is fetched as soon as it is whole: it can be seen and estimated before it is asked about."""

from __future__ import annotations

from ask_page import SAMPLES_DIR, AskPage
from playwright.sync_api import expect
from support import free_port
from watching import HoldingHost, TricklingHost

_LINK = "Or paste a link"
_SRC = "image => image.src"


def _give(ask_page: AskPage, link: str) -> None:
    """Type a link, and go on to something else."""
    ask_page.page.get_by_label(_LINK).fill(link)
    ask_page.page.get_by_label("Your question").focus()


def test_a_link_is_fetched_shown_and_estimated_before_it_is_asked_about(ask_page: AskPage) -> None:
    page = ask_page.page
    with HoldingHost(SAMPLES_DIR / "red-circle.mp4") as host:
        _give(ask_page, host.url)
        expect(page.locator("#linked-note")).to_have_text("The server is fetching it…")
        expect(page.locator("#estimate")).to_contain_text("once the server has the video")
        host.may_send.set()
        ask_page.wait_for_player()
    expect(page.locator("#media-name")).to_have_text("clip.mp4")
    expect(page.locator("#estimate")).to_contain_text("Estimate: 8 frames")
    expect(page.get_by_label("Start of the part")).to_be_visible()
    expect(ask_page.kept("clip.mp4").locator(".kept-pick")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Your question")).to_be_focused()
    ask_page.ask()  # the host is gone: it is not fetched again
    assert "red circle" in ask_page.wait_until_done().lower()


def test_a_link_that_cannot_be_fetched_is_said_at_once_and_nobody_is_disturbed(ask_page: AskPage) -> None:
    ask_page.expect_status(400)
    page = ask_page.page
    _give(ask_page, f"http://127.0.0.1:{free_port()}/clip.mp4")
    expect(page.locator("#linked-note")).to_have_text("The server could not fetch it.")
    expect(page.locator("#error-video_url")).to_contain_text("could not be")
    expect(page.get_by_label(_LINK)).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Your question")).to_be_focused()
    ask_page.choose_sample("red-circle")
    expect(page.locator("#error-video_url")).to_be_empty()


def test_a_link_that_is_given_up_is_not_fetched_on(ask_page: AskPage) -> None:
    ask_page.watch.expected += ["ERR_ABORTED"]
    with TricklingHost() as host:
        _give(ask_page, host.url)
        ask_page.wait_for(host.was_asked.is_set)
        ask_page.choose_sample("red-circle")
        ask_page.wait_for(host.was_left.is_set)
    expect(ask_page.page.locator("#estimate")).to_contain_text("Estimate: 8 frames")


def test_a_question_about_a_link_does_not_wait_for_it(ask_page: AskPage) -> None:
    ask_page.watch.expected += ["ERR_ABORTED"]
    frame = ask_page.page.locator("#linked-frame")
    with HoldingHost(SAMPLES_DIR / "red-circle.mp4") as host:
        _give(ask_page, host.url)
        ask_page.wait_for(host.was_asked.is_set)
        ask_page.ask()
        expect(ask_page.page.locator("#pending .answer")).to_be_visible()
        host.may_send.set()
        assert "red circle" in ask_page.wait_until_done().lower()
        ask_page.frames.nth(2).click()
        expect(frame).to_be_visible()
        assert frame.evaluate(_SRC) == ask_page.frames.nth(2).locator("img").evaluate(_SRC)
        assert host.num_asked == 2, "once for the stage, which was given up, and once for the question"


def test_a_link_that_is_asked_about_from_its_field_is_fetched_by_the_question_alone(ask_page: AskPage) -> None:
    page = ask_page.page
    with HoldingHost(SAMPLES_DIR / "red-circle.mp4") as host:
        page.get_by_label("Your question").fill("What happens in this video?")
        page.get_by_label(_LINK).fill(host.url)
        page.keyboard.press("Control+Enter")  # the field goes, and with its focus it reports a change
        expect(page.get_by_label(_LINK)).to_be_hidden()
        ask_page.wait_for(host.was_asked.is_set)
        host.may_send.set()
        assert "red circle" in ask_page.wait_until_done().lower()
        assert host.num_asked == 1
    expect(ask_page.frames.first).to_be_visible()
