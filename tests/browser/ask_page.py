"""Drives the page as a person would, and watches what goes wrong behind it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

from playwright.sync_api import CDPSession, ConsoleMessage, Locator, Page, Request, expect
from support import ROOT

ANSWER_MS = 180_000  # a bound for a busy machine; an answer takes a second
SLOW = 50_000  # bytes per second
LARGE = 6_000_000  # on a slow line, longer on its way than all that is expected meanwhile may take; the test frees it
SAMPLES_DIR = ROOT / "static" / "samples"
SAMPLES = json.loads((SAMPLES_DIR / "samples.json").read_text())
# An observer is called between two events of a stream, however late the page's next frame is.
STOP_AT_FIRST_WORD = """() => {
  const observer = new MutationObserver(() => {
    const card = document.querySelector('#answers .answer[data-state="running"]');
    if (!card?.querySelector(".answer-text").textContent) return;
    observer.disconnect();
    card.querySelector("#stop").click();
  });
  observer.observe(document.querySelector("#answers"), {childList: true, subtree: true, characterData: true});
}"""

# The button says it for a moment only, which a busy machine may let pass before anybody looks.
_NOTE_COPIED = """button => {
  window.hasSaidCopied = false;
  const observer = new MutationObserver(() => {
    window.hasSaidCopied ||= button.textContent === "Copied";
  });
  observer.observe(button, {childList: true, characterData: true, subtree: true});
}"""


@dataclass
class Watch:
    """What a page must not do: log errors, break its content policy, or ask another host."""

    origin: str
    faults: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def console(self, message: ConsoleMessage) -> None:
        """An error that nobody expected is a fault."""
        if message.type == "error" and not any(text in message.text for text in self.expected):
            self.faults.append(f"console: {message.text}")

    def request(self, request: Request) -> None:
        """So is a request to another host."""
        if not request.url.startswith((f"{self.origin}/", f"blob:{self.origin}/", "data:")):
            self.faults.append(f"request to {request.url}")


class AskPage:
    """The page in a browser."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.watch = Watch(base)
        self._session: CDPSession | None = None
        page.on("console", self.watch.console)
        page.on("pageerror", lambda error: self.watch.faults.append(f"script: {error}"))
        page.on("request", self.watch.request)
        page.goto(base)

    def expect_status(self, status: int) -> None:
        """The browser will log this status as an error; that is what the test is about."""
        self.watch.expected += [f"status of {status}", f"Status Error Code {status}"]

    @property
    def answers(self) -> Locator:
        """The cards, newest first."""
        return self.page.locator("#answers .answer")

    @property
    def latest(self) -> Locator:
        """The newest card."""
        return self.answers.first

    @property
    def frames(self) -> Locator:
        """The buttons of the strip that is shown."""
        return self.page.locator(".strip:visible .frame")

    def choose_sample(self, name: str) -> None:
        """Click a sample and wait until it can be played."""
        self.page.wait_for_load_state()  # behind a link or a form: before its scripts ran, a click would be lost
        self.page.locator(f'.sample[data-name="{name}.mp4"]').click()
        self.wait_for_player()

    def choose_file(self, name: str, content: bytes, mime_type: str = "video/mp4") -> None:
        """Choose a file that holds ``content``."""
        self.page.set_input_files("#video", {"name": name, "mimeType": mime_type, "buffer": content})

    def kept(self, name: str) -> Locator:
        """The row of a video that the server keeps."""
        return self.page.locator(f'.kept[data-name="{name}"]')

    def upload_row(self, name: str) -> Locator:
        """The row of a file on its way."""
        return self.page.locator(".upload-row", has_text=name)

    def throttle_uploads(self, bytes_per_second: int) -> None:
        """Make the way to the server slow; -1 frees it again."""
        if self._session is None:  # one for both: a session does not free what another one has made slow
            self._session = self.page.context.new_cdp_session(self.page)
            self._session.send("Network.enable")
        conditions = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_second}
        self._session.send("Network.emulateNetworkConditions", conditions)

    def wait_for_player(self) -> None:
        """Wait until the preview has its first frame."""
        self.wait_until("() => document.getElementById('player').readyState >= 2")

    def ask(self, question: str = "What happens in this video?", **settings: float) -> None:
        """Type a question, fill in settings, press the button."""
        if settings and not self.page.locator("#settings").evaluate("details => details.open"):
            self.page.click("#settings summary")
        for name, value in settings.items():
            self.page.fill(f"#{name}", str(value))
        self.page.fill("#prompt", question)
        self.page.click("#ask-button")

    def wait_until_done(self) -> str:
        """Wait for the end of the newest answer; its text."""
        expect(self.latest).to_have_attribute("data-state", "done", timeout=ANSWER_MS)
        return self.text()

    def text(self) -> str:
        """What the newest answer says so far."""
        return self.latest.locator(".answer-text").inner_text()

    def copy(self, card: Locator) -> str:
        """Press a card's button, and read what has been copied when the button has said so."""
        self.page.evaluate("navigator.clipboard.writeText('')")
        button = card.get_by_role("button", name="Copy")
        button.evaluate(_NOTE_COPIED)
        button.click()
        self.wait_until("() => window.hasSaidCopied")
        return str(self.page.evaluate("navigator.clipboard.readText()"))

    def player_seconds(self) -> float:
        """Where the preview stands."""
        return float(self.page.evaluate("document.getElementById('player').currentTime"))

    def wait_until_seeked(self, seconds: float) -> None:
        """Wait until the preview stands at a time."""
        script = "t => Math.abs(document.getElementById('player').currentTime - t) < 0.06"
        self.wait_until(script, seconds)

    def wait_until(self, script: str, argument: object = None) -> None:
        """Wait until a function in the page is true (Playwright's own may use eval, which the page forbids)."""
        self.wait_for(lambda: self.page.evaluate(script, argument))

    def wait_for(self, condition: Callable[[], object], seconds: float = ANSWER_MS / 1000) -> None:
        """Wait until something is true, in the page or behind it."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it never became true"
            self.page.wait_for_timeout(20)

    def scrolls_sideways(self) -> bool:
        """Whether the page is wider than its window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def num_open_requests(self) -> int:
        """How many requests the server works on."""
        with urllib.request.urlopen(f"{self.base}/v1/health/detailed", timeout=60) as response:
            return int(json.load(response)["queue"]["num_open"])


OpenPage = Callable[..., AskPage]
"""Opens the page in a fresh browser profile; takes its address and what Playwright's ``new_context`` takes."""


def clip_bytes(name: str) -> bytes:
    """A sample clip's file."""
    return (SAMPLES_DIR / f"{name}.mp4").read_bytes()


def padded(clip: bytes, num_bytes: int) -> bytes:
    """The same clip as a larger file: MP4 skips a box named ``free``."""
    return clip + (num_bytes + 8).to_bytes(4, "big") + b"free" + bytes(num_bytes)
