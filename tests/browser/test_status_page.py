"""The server's state on the page: workers, what is answered, and that it keeps up."""

from __future__ import annotations

import re

from ask_page import AskPage, OpenPage
from playwright.sync_api import Route, expect
from support import Server
from test_accessibility import check
from watching import Brake


def test_the_panel_tells_of_the_server_and_keeps_up(open_page: OpenPage, server: Server) -> None:
    ask_page = open_page()
    page = ask_page.page
    page.click("#server summary")
    status = page.locator("#server-status")
    expect(status).to_contain_text("The bundled demo model")
    expect(status).to_contain_text(re.compile(r"1 of 1 ready, hf on cpu"))
    expect(status.locator("dd").nth(1)).to_have_text("0")
    check(page, "server")
    ask_page.choose_sample("red-circle")
    with Brake(server):
        ask_page.ask()
        expect(status.locator("dd").nth(1)).to_have_text("1")
    ask_page.wait_until_done()
    expect(status.locator("dd").nth(1)).to_have_text("0")
    page.locator("#server summary").focus()
    page.keyboard.press("Escape")
    expect(status).to_be_empty()
    page.click("#past summary")
    page.click("#jobs summary")
    expect(page.locator("#past")).not_to_have_attribute("open", "")


def test_a_panel_that_is_closed_before_it_is_filled_stays_empty(ask_page: AskPage) -> None:
    page = ask_page.page

    def later(route: Route) -> None:
        page.click("#server summary")
        expect(page.locator("#server")).not_to_have_attribute("open", "")
        route.continue_()

    page.route("**/ui/status", later, times=1)
    with page.expect_event("requestfinished", lambda request: request.url.endswith("/ui/status")):
        page.click("#server summary")
    page.evaluate("() => fetch('v1/health')")  # behind what may still be done with the answer
    expect(page.locator("#server-status")).to_be_empty()
