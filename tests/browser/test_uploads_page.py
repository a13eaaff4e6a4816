"""Files on their way to the server: several at once, cancelled, broken off, and after a reload."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from ask_page import ANSWER_MS, LARGE, SLOW, AskPage, OpenPage, clip_bytes, padded
from cut_line import CutLine
from playwright.sync_api import Request, expect
from support import Server


class Pieces:
    """The requests that bring pieces: the address of the upload, and where each of them began."""

    def __init__(self, ask_page: AskPage) -> None:
        self.address = ""
        self.offsets: list[int] = []
        ask_page.page.on("request", self._note)

    def _note(self, request: Request) -> None:
        if request.method == "PATCH":
            self.address = request.url
            self.offsets.append(int(request.headers["upload-offset"]))

    def arrived(self) -> int:
        """Bytes that the server has written down; it does so a megabyte at a time."""
        answer = requests.get(self.address, timeout=30) if self.address else None
        return int(answer.json()["offset"]) if answer is not None else 0


@pytest.fixture
def line(server: Server) -> Iterator[CutLine]:
    """A way to the server that breaks where a test says."""
    with CutLine(server.base) as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running
        running.cut()
        running.shutdown()


def test_several_files_at_once_and_one_is_refused(ask_page: AskPage) -> None:
    page = ask_page.page
    ask_page.expect_status(415)
    ask_page.throttle_uploads(SLOW)
    files = [("one of two.mp4", padded(clip_bytes("red-circle"), LARGE))]
    files += [("two of two.mp4", padded(clip_bytes("yellow-star"), LARGE)), ("words.mp4", b"Only words. " * 99)]
    page.set_input_files("#video", [{"name": name, "mimeType": "video/mp4", "buffer": data} for name, data in files])
    facts = ask_page.upload_row("one of two.mp4").locator(".row-facts")
    expect(facts).to_have_text(re.compile(r"^\d+ % of 5\.7 MB · \d.* KB/s · \d+ (s|min) left$"))
    assert 0 < float(ask_page.upload_row("one of two.mp4").locator("progress").evaluate("bar => bar.value")) <= 1
    expect(ask_page.upload_row("words.mp4").locator(".row-facts")).to_contain_text("waiting")
    expect(page.locator("#media-name")).to_have_text("one of two.mp4")

    ask_page.throttle_uploads(-1)
    refused = ask_page.upload_row("words.mp4")
    expect(refused.locator(".row-facts")).to_contain_text("not a video", timeout=ANSWER_MS)
    expect(page.locator("#shelf-news")).to_contain_text("words.mp4 was refused")
    refused.get_by_role("button", name="Dismiss words.mp4").click()
    expect(page.locator(".upload-row")).to_have_count(0, timeout=ANSWER_MS)
    for name in ("one of two.mp4", "two of two.mp4"):
        expect(ask_page.kept(name)).to_be_visible()
    expect(ask_page.kept("one of two.mp4").locator(".kept-pick")).to_have_attribute("aria-pressed", "true")


def test_a_file_that_breaks_off_goes_on_where_it_was(open_page: OpenPage, line: CutLine) -> None:
    ask_page = open_page(base=line.base)
    pieces = Pieces(ask_page)
    ask_page.watch.expected += ["Failed to load resource"]
    line.stall_after(LARGE // 2)
    ask_page.choose_file("again.mp4", padded(clip_bytes("red-circle"), LARGE + 3))
    ask_page.wait_for(lambda: line.has_stalled.is_set() and pieces.arrived() > 0)
    line.cut()
    expect(ask_page.kept("again.mp4")).to_be_visible(timeout=ANSWER_MS)
    assert pieces.offsets[0] == 0
    assert 0 < pieces.offsets[1] < LARGE


def test_what_has_broken_off_for_good_waits_for_retry(open_page: OpenPage, line: CutLine) -> None:
    ask_page = open_page(base=line.base)
    pieces = Pieces(ask_page)
    ask_page.watch.expected += ["Failed to load resource"]
    ask_page.page.evaluate("Object.defineProperty(navigator, 'onLine', { value: false })")  # so it does not try again
    line.stall_after(LARGE // 2)
    ask_page.choose_file("cut off.mp4", padded(clip_bytes("red-circle"), LARGE + 4))
    ask_page.wait_for(lambda: line.has_stalled.is_set() and pieces.arrived() > 0)
    line.cut()
    row = ask_page.upload_row("cut off.mp4")
    expect(row.locator(".row-facts")).to_have_text(re.compile(r"^Broken off at \d+ %; Retry goes on from there$"))
    expect(row.get_by_role("button", name="Retry")).to_be_visible()
    ask_page.ask()
    expect(ask_page.page.locator("#error-video")).to_contain_text("broke off")
    row.get_by_role("button", name="Retry").click()
    expect(ask_page.kept("cut off.mp4")).to_be_visible(timeout=ANSWER_MS)
    assert 0 < pieces.offsets[-1] < LARGE
    ask_page.ask()
    assert "red circle" in ask_page.wait_until_done().lower()


def test_a_file_goes_on_after_a_reload(open_page: OpenPage, line: CutLine, tmp_path: Path) -> None:
    ask_page = open_page(base=line.base)
    pieces = Pieces(ask_page)
    path = tmp_path / "reloaded.mp4"
    path.write_bytes(padded(clip_bytes("red-circle"), LARGE + 1))
    line.stall_after(LARGE // 2)
    ask_page.page.set_input_files("#video", path)
    ask_page.wait_for(lambda: line.has_stalled.is_set() and pieces.arrived() > 0)
    ask_page.page.reload()
    line.cut()
    ask_page.page.set_input_files("#video", path)
    expect(ask_page.kept("reloaded.mp4")).to_be_visible(timeout=ANSWER_MS)
    assert pieces.offsets[-1] > 0


def test_a_cancelled_file_is_forgotten(open_page: OpenPage, line: CutLine) -> None:
    ask_page = open_page(base=line.base)
    pieces = Pieces(ask_page)
    line.stall_after(LARGE // 2)
    ask_page.choose_file("cancelled.mp4", padded(clip_bytes("red-circle"), LARGE + 2))
    ask_page.wait_for(lambda: line.has_stalled.is_set() and pieces.arrived() > 0)
    ask_page.expect_status(409)  # the piece that is given up is told so, if it still listens
    ask_page.upload_row("cancelled.mp4").get_by_role("button", name="Cancel cancelled.mp4").click()
    expect(ask_page.upload_row("cancelled.mp4")).to_have_count(0)
    expect(ask_page.page.locator("#media")).to_have_attribute("data-state", "empty")
    ask_page.wait_for(lambda: requests.get(pieces.address, timeout=30).status_code == 404)


def test_an_empty_file_is_not_even_sent(ask_page: AskPage) -> None:
    pieces = Pieces(ask_page)
    ask_page.choose_file("nothing.mp4", b"")
    expect(ask_page.page.locator("#media")).to_have_attribute("data-state", "empty")
    expect(ask_page.upload_row("nothing.mp4").locator(".row-facts")).to_have_text("The file is empty.")
    assert pieces.offsets == []
