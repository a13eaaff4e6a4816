"""Answers in Markdown on the page: streamed, stored, hostile.  The words are given; all that shows them is real."""

from __future__ import annotations

import re

import pytest
from ask_page import STOP_AT_FIRST_WORD, AskPage, OpenPage
from playwright.sync_api import Route, expect

from tru_vlm.api.page.html import AnswerEvents, PageRenderer, sse_event
from tru_vlm.paths import STATIC_DIR, TEMPLATES_DIR
from tru_vlm.types import Answer, DeltaEvent, DoneEvent, StatusEvent, Timings, Usage

MARKDOWN = """## What happens

A **red circle** moves _left_; at <1.5 seconds> it `stops`. More is on [its page](https://example.com/circle).

1. 0:00 – 0:01 it moves
   - slowly
2. 0:01.5 it stands still

| Time | Event | Remark |
|-----:|:------|--------|
| 0:00 | starts | from the right edge of the picture |
| <1.5 seconds> | stops | in the middle, and it stays there until the end |

> It may move again.

```json
{"colour": "red", "shape": "circle", "moves": ["left", "left", "left", "left", "left", "left"]}
```
"""
_HOSTILE = (
    """<script>document.title = "owned"</script><img src=x onerror="document.title='owned'">
[a](javascript:document.title='owned') ![b](https://evil.example/c.png) <svg/onload="document.title='owned'">
<div hx-get="/logout" hx-trigger="load" id="ask" style="position:fixed;inset:0">d</div>
[e](data:text/html,<script>1</script>)

"""
    + "> " * 3000
    + "deep"
)
# Counts how often the answer had fewer letters after a change than before.
_COUNT_SHRINKING = """() => {
  let before = 0;
  window.numShrunk = 0;
  window.numChanges = 0;
  new MutationObserver(() => {
    const text = document.querySelector("#answers .answer-text")?.textContent.replace(/\\s/g, "") ?? "";
    window.numShrunk += text.length < before;
    window.numChanges += text.length > before;
    before = text.length;
  }).observe(document.querySelector("#answers"), { childList: true, subtree: true, characterData: true });
}"""


def answer_with(ask_page: AskPage, text: str, size: int = 5) -> None:
    """Have the next answers say ``text``, in pieces."""
    renderer = PageRenderer(TEMPLATES_DIR, STATIC_DIR)

    def fulfil(route: Route) -> None:
        token = route.request.url.split("/")[-2]
        chat = ask_page.answers.first.get_attribute("data-chat")
        events = AnswerEvents(renderer, token, address=f"?chat={chat}")
        answer = Answer("req-1", "m", text, "stop", Usage(30, 24, 3), None, Timings(time_to_first_token=0.1, total=0.2))
        pieces = [DeltaEvent("r", text[start : start + size]) for start in range(0, len(text), size)]
        body = b"".join(map(events.render, [StatusEvent("r", "generating"), *pieces, DoneEvent(answer)]))
        route.fulfill(body=body + sse_event("close", ""), content_type="text/event-stream")

    ask_page.page.route("**/ui/answers/*/events", fulfil)


def test_markdown_streams_in_without_being_taken_back_and_its_times_seek(ask_page: AskPage) -> None:
    answer_with(ask_page, MARKDOWN)
    ask_page.choose_sample("red-circle")
    ask_page.page.evaluate(_COUNT_SHRINKING)
    ask_page.ask()
    ask_page.wait_until_done()
    text = ask_page.latest.locator(".answer-text")
    expect(text.locator("h3")).to_have_text("What happens")
    expect(text.locator("strong")).to_have_text("red circle")
    expect(text.locator("ol > li")).to_have_count(2)
    expect(text.locator("ol ul > li")).to_have_text("slowly")
    expect(text.locator("tbody tr")).to_have_count(2)
    expect(text.locator("blockquote p")).to_have_text("It may move again.")
    expect(text.locator("pre code")).to_contain_text('{"colour": "red"')
    expect(text.get_by_role("link", name="its page")).to_have_attribute("rel", "noopener noreferrer nofollow")
    assert ask_page.page.evaluate("window.numShrunk") == 0
    assert ask_page.page.evaluate("window.numChanges") > 20
    text.locator("td .time").last.click()
    ask_page.wait_until_seeked(1.5)


def test_what_is_copied_is_the_markdown_also_of_what_was_stored_or_stopped(open_page: OpenPage) -> None:
    ask_page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page = ask_page.page
    answer_with(ask_page, MARKDOWN)
    ask_page.choose_sample("triangle-then-square")
    ask_page.ask()
    ask_page.wait_until_done()
    assert ask_page.copy(ask_page.latest) == MARKDOWN.strip()

    page.unroute_all()
    ask_page.ask()
    expect(ask_page.answers).to_have_count(2)
    ask_page.wait_until_done()
    said = ask_page.copy(ask_page.latest)
    assert re.search(r"<[\d.]+ seconds>", said), "as the model wrote it; shown is 0:05.0"
    page.reload()
    expect(ask_page.latest.locator(".answer-text")).not_to_be_empty()
    assert ask_page.copy(ask_page.latest) == said

    answer_with(ask_page, MARKDOWN)
    page.evaluate(STOP_AT_FIRST_WORD)
    ask_page.ask()
    expect(ask_page.latest).to_have_attribute("data-state", "stopped")
    assert MARKDOWN.startswith(ask_page.copy(ask_page.latest))


@pytest.mark.parametrize("size", [7, 5000])
def test_hostile_markdown_does_nothing(ask_page: AskPage, size: int) -> None:
    answer_with(ask_page, _HOSTILE, size)
    ask_page.choose_sample("red-circle")
    title = ask_page.page.title()
    ask_page.ask()
    assert "onerror" in ask_page.wait_until_done()  # the words are there; requests and errors are watched
    assert ask_page.page.title() == title
    text = ask_page.latest.locator(".answer-text")
    expect(text.locator("script, img, svg, iframe, form, [id=ask], [style], [hx-get], [onerror]")).to_have_count(0)
    hrefs = text.locator("a").evaluate_all("links => links.map(link => link.protocol)")
    assert set(hrefs) <= {"http:", "https:"}


@pytest.mark.parametrize("width", [360, 1280])
def test_wide_tables_scroll_in_themselves(open_page: OpenPage, width: int) -> None:
    ask_page = open_page(viewport={"width": width, "height": 780})
    answer_with(
        ask_page,
        MARKDOWN + "\n| " + " | ".join(["a longer heading"] * 12) + " |\n" + "|---" * 12 + "|\n" + "| x" * 12 + "|\n",
    )
    ask_page.choose_sample("red-circle")
    ask_page.ask()
    ask_page.wait_until_done()
    assert not ask_page.scrolls_sideways()
    table = ask_page.latest.locator(".wide").last
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
