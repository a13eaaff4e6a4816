"""A real headless Chromium on a real server.  ``TRU_CHROMIUM`` names the browser; else it is looked for on PATH."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from ask_page import ANSWER_MS, AskPage, OpenPage
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright
from support import Server, require

_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_FLAGS += ["--disable-component-update", "--disable-sync"]
_PROFILE: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
EXPECT_MS = 60_000  # an upper bound: a busy machine is slow


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("TRU_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


# Playwright keeps an event loop in this thread while it is open, which would break other tests' asyncio.run:
# so it lives no longer than the tests of one file, which one worker runs in a row (--dist loadfile).
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a file's tests."""
    executable = _chromium()
    expect.set_options(timeout=EXPECT_MS)
    require(executable, "Chromium (apt-get install chromium, or set TRU_CHROMIUM)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """A profile for a file's tests: a fresh one takes longer to open the page than most tests need for the rest."""
    with _new_profile(browser) as context:
        yield context


def _new_profile(browser: Browser, **options: Any) -> BrowserContext:
    context = browser.new_context(**_PROFILE | options)
    context.set_default_timeout(ANSWER_MS)
    return context


@pytest.fixture
def open_page(browser: Browser, profile: BrowserContext, server: Server) -> Iterator[OpenPage]:
    """Opens the page, with options in a profile of its own; at the end of the test, it must have behaved."""
    opened: list[AskPage] = []

    def open_(base: str = server.base, **options: Any) -> AskPage:
        context = _new_profile(browser, **options) if options else profile
        page = AskPage(context.new_page(), base)
        opened.append(page)
        return page

    yield open_
    for page in opened:
        if page.page.context is profile:
            page.page.evaluate("localStorage.clear()")
            page.page.close()
        else:
            page.page.context.close()
    profile.clear_cookies()
    for page in opened:
        assert page.watch.faults == [], page.watch.faults


@pytest.fixture
def ask_page(open_page: OpenPage) -> AskPage:
    """The page on a desktop."""
    return open_page()
