"""axe-core finds nothing serious on the page, in what states and clothes it may be."""

from __future__ import annotations

from typing import Any

import pytest
from ask_page import OpenPage
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from test_markdown_page import MARKDOWN, answer_with

_GRAVE = {"serious", "critical"}
_LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 780}, "has_touch": True, "is_mobile": True},
}


def check(page: Page, state: str) -> None:
    """Fail with what axe calls serious or worse."""
    violations = Axe().run(page).response["violations"]
    grave = [
        f"{state}: {violation['id']} ({violation['help']}): " + "; ".join(node["html"] for node in violation["nodes"])
        for violation in violations
        if violation["impact"] in _GRAVE
    ]
    assert not grave, "\n".join(grave)


@pytest.mark.parametrize("look", _LOOKS)
def test_axe_finds_nothing_serious(open_page: OpenPage, look: str) -> None:
    ask_page = open_page(**_LOOKS[look])
    page = ask_page.page
    check(page, "empty")
    ask_page.page.click("#ask-button")
    expect(page.locator("#error-video")).to_be_visible()
    check(page, "with an error")
    answer_with(ask_page, MARKDOWN)
    ask_page.choose_sample("red-circle")
    page.click("#settings summary")
    ask_page.ask()
    ask_page.wait_until_done()
    page.unroute_all()
    ask_page.ask(nframes=4)
    ask_page.wait_until_done()
    expect(ask_page.frames).to_have_count(4)
    check(page, "answered")
    page.click("#past summary")
    expect(page.locator(".past-chat").first).to_be_visible()
    check(page, "conversations")
