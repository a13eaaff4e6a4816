"""The server's state on the page: workers, what is answered, and that it keeps up."""

from __future__ import annotations

import re

from ask_page import OpenPage
from playwright.sync_api import expect
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
