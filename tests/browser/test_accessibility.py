"""axe-core finds nothing serious on the page, in what states and clothes it may be."""

from __future__ import annotations

from ask_page import OpenPage
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from test_markdown_page import MARKDOWN, answer_with

_GRAVE = {"serious", "critical"}
_DESKTOP, _PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 780}


def check(page: Page, state: str) -> None:
    """Fail with what axe calls serious or worse."""
    violations = Axe().run(page).response["violations"]
    grave = [
        f"{state}: {violation['id']} ({violation['help']}): " + "; ".join(node["html"] for node in violation["nodes"])
        for violation in violations
        if violation["impact"] in _GRAVE
    ]
    assert not grave, "\n".join(grave)


def check_looks(page: Page, state: str) -> None:
    """The same in the dark, and as narrow as a phone; what a dark phone shows is made of both."""
    check(page, state)
    page.emulate_media(color_scheme="dark")
    check(page, f"{state}, dark")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(_PHONE)
    check(page, f"{state}, phone")
    page.set_viewport_size(_DESKTOP)


def test_axe_finds_nothing_serious(open_page: OpenPage) -> None:
    ask_page = open_page()
    page = ask_page.page
    check_looks(page, "empty")
    ask_page.page.click("#ask-button")
    expect(page.locator("#error-video")).to_be_visible()
    check_looks(page, "with an error")
    answer_with(ask_page, MARKDOWN)
    ask_page.choose_sample("red-circle")
    page.click("#settings summary")
    ask_page.ask()
    ask_page.wait_until_done()
    page.unroute_all()
    ask_page.ask(nframes=4)
    expect(ask_page.answers).to_have_count(2)
    ask_page.wait_until_done()
    expect(ask_page.frames).to_have_count(4)
    check_looks(page, "answered")
    page.click("#past summary")
    expect(page.locator(".past-chat").first).to_be_visible()
    check_looks(page, "conversations")
