"""The page, end to end: real Chromium, real server, the bundled demo model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ask_page import ANSWER_MS, LARGE, SAMPLES, SLOW, STOP_AT_FIRST_WORD, AskPage, OpenPage, clip_bytes, padded
from playwright.sync_api import expect

from demo_model.generator import ClipSpec, Event, encode
from demo_model.questions import caption

_TIME = re.compile(r"(\d+):(\d\d\.\d)")
_LONG_QUESTION = "Describe the video second by second."


def test_says_what_it_is_and_stays_at_home(ask_page: AskPage) -> None:
    page = ask_page.page
    expect(page).to_have_title(re.compile("TRU V2"))
    expect(page.locator(".model")).to_contain_text("demo model")
    expect(page.locator(".notice").first).to_contain_text("MODEL_PATH")
    expect(page.get_by_label("Your question")).to_be_visible()
    expect(page.locator(".empty")).to_be_visible()
    policy = page.request.get(ask_page.base).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample["name"])
def test_sample_is_answered_correctly(ask_page: AskPage, sample: dict[str, Any]) -> None:
    ask_page.choose_sample(sample["name"])
    ask_page.ask()
    text = ask_page.wait_until_done()

    events = [Event(**event) for event in sample["events"]]
    expected = caption(events, sample["switch_seconds"])
    assert _without_time(text) == re.sub(r"<[\d.]+ seconds>", "TIME", expected)
    if sample["switch_seconds"] is not None:
        assert _first_time(text) == pytest.approx(sample["switch_seconds"], abs=0.5)
    expect(ask_page.latest.locator(".facts")).to_contain_text("visual tokens")


def test_strip_shows_the_sampled_frames(ask_page: AskPage) -> None:
    ask_page.choose_sample("red-circle")
    ask_page.ask(nframes=6)
    ask_page.wait_until_done()
    expect(ask_page.frames).to_have_count(6)
    expect(ask_page.latest.locator(".facts")).to_contain_text("6 frames")
    for index in range(6):
        image = ask_page.frames.nth(index).locator("img")
        image.scroll_into_view_if_needed()
        ask_page.wait_until("image => image.complete && image.naturalWidth > 0", image.element_handle())


def test_times_seek_the_player(ask_page: AskPage) -> None:
    ask_page.choose_sample("triangle-then-square")
    ask_page.ask()
    text = ask_page.wait_until_done()
    ask_page.latest.locator(".time").first.click()
    ask_page.wait_until_seeked(_first_time(text))

    frame = ask_page.frames.last
    frame.click()
    ask_page.wait_until_seeked(float(frame.get_attribute("data-seconds") or "nan"))
    expect(frame).to_have_attribute("aria-current", "true")
    frame.press("ArrowLeft")
    before = ask_page.frames.nth(-2)
    expect(before).to_be_focused()
    ask_page.wait_until_seeked(float(before.get_attribute("data-seconds") or "nan"))


def test_time_of_an_earlier_answer_brings_its_clip_back(ask_page: AskPage) -> None:
    ask_page.choose_sample("triangle-then-square")
    ask_page.ask()
    seconds = _first_time(ask_page.wait_until_done())
    ask_page.choose_sample("red-circle")
    ask_page.ask("What colour is the object?")
    ask_page.wait_until_done()
    expect(ask_page.answers).to_have_count(2)

    ask_page.answers.last.locator(".time").first.click()
    expect(ask_page.page.locator("#media-name")).to_have_text("triangle-then-square.mp4")
    ask_page.wait_for_player()
    ask_page.wait_until_seeked(seconds)
    token = ask_page.answers.last.get_attribute("data-token") or ""
    expect(ask_page.page.locator(".strip:visible")).to_have_attribute("data-token", token)


def test_stop_keeps_the_text_and_frees_the_server(ask_page: AskPage, tmp_path: Path) -> None:
    clip = ClipSpec(events=(Event("red", "circle", "moves left"),), duration_seconds=20.0, fps=10.0)
    ask_page.choose_file("long.mp4", encode(clip, tmp_path / "long.mp4").read_bytes())
    # At the first word, in the page itself: the demo model may have ended before a click from here arrives.
    ask_page.page.evaluate(STOP_AT_FIRST_WORD)
    ask_page.ask(_LONG_QUESTION)

    expect(ask_page.latest).to_have_attribute("data-state", "stopped", timeout=ANSWER_MS)
    ask_page.wait_for(lambda: ask_page.num_open_requests() == 0)
    text = ask_page.text()
    assert text
    expect(ask_page.latest.locator(".answer-end")).to_contain_text("Stopped")
    ask_page.page.evaluate("() => fetch('v1/health')")  # behind whatever was still on its way
    assert ask_page.text() == text
    expect(ask_page.page.locator("#ask-button")).to_have_attribute("aria-disabled", "false")


def test_text_file_is_refused_beside_the_file(ask_page: AskPage) -> None:
    ask_page.expect_status(415)
    ask_page.choose_file("notes.mp4", b"These are only words.\n" * 100)
    ask_page.ask()
    slot = ask_page.page.locator("#error-video")
    expect(slot).to_be_visible()
    row = ask_page.upload_row("notes.mp4").locator(".row-facts")
    expect(row).to_contain_text("not a video")
    expect(slot).not_to_contain_text(row.inner_text())  # said once
    expect(ask_page.page.locator("#video")).to_have_attribute("aria-invalid", "true")
    expect(ask_page.page.locator("#no-preview")).to_have_text("The server does not take this file.")
    expect(ask_page.page.locator("#estimate")).to_contain_text("There is no estimate")
    expect(ask_page.answers).to_have_count(0)

    ask_page.choose_sample("red-circle")
    expect(slot).to_be_hidden()
    ask_page.ask()
    assert ask_page.wait_until_done()


def test_what_is_missing_is_said_before_anything_is_sent(ask_page: AskPage) -> None:
    posts: list[str] = []
    ask_page.page.on("request", lambda request: posts.append(request.url) if "/ui/ask" in request.url else None)
    ask_page.page.click("#ask-button")
    expect(ask_page.page.locator("#error-video")).to_contain_text("Choose a video")
    ask_page.choose_sample("red-circle")
    ask_page.page.fill("#prompt", "  ")
    ask_page.page.click("#ask-button")
    expect(ask_page.page.locator("#error-prompt")).to_be_visible()
    ask_page.ask(fps=999)
    expect(ask_page.page.locator("#error-fps")).to_be_visible()
    expect(ask_page.page.locator("#fps")).to_be_focused()
    assert posts == []


def test_fault_that_only_the_server_sees_is_shown_beside_its_field(ask_page: AskPage) -> None:
    ask_page.expect_status(400)
    ask_page.choose_sample("red-circle")
    ask_page.ask(fps=2, nframes=4)
    expect(ask_page.page.locator(".field-error:visible, .form-error:visible")).to_contain_text("not both")
    estimate = ask_page.page.locator("#estimate .refusal")
    expect(estimate).to_contain_text("not both")
    expect(estimate).to_be_hidden()  # it has been said
    ask_page.page.fill("#nframes", "5")
    expect(estimate).to_be_visible()


def test_question_waits_for_its_file(ask_page: AskPage) -> None:
    ask_page.throttle_uploads(SLOW)
    ask_page.choose_file("clip.mp4", padded(clip_bytes("red-circle"), LARGE))
    ask_page.ask()
    stage = ask_page.page.locator("#pending .stage-label")
    expect(stage).to_contain_text(re.compile(r"Uploading .* of 5\.7 MB, [1-9]\d? %"))
    assert 0 < float(ask_page.page.locator("#pending progress").evaluate("bar => bar.value")) <= 1
    ask_page.throttle_uploads(-1)
    assert ask_page.wait_until_done()
    expect(ask_page.page.locator("#pending")).to_be_empty()


def test_question_can_be_taken_back_while_its_file_goes_on(ask_page: AskPage) -> None:
    ask_page.throttle_uploads(SLOW)
    ask_page.choose_file("taken back.mp4", padded(clip_bytes("red-circle"), LARGE + 1))
    ask_page.ask()
    expect(ask_page.page.locator("#pending .stage-label")).to_contain_text("Uploading")
    ask_page.page.keyboard.press("Escape")
    expect(ask_page.page.locator("#form-error")).to_contain_text("taken back")
    expect(ask_page.page.locator("#pending")).to_be_empty()
    ask_page.throttle_uploads(-1)
    expect(ask_page.kept("taken back.mp4")).to_be_visible(timeout=ANSWER_MS)
    expect(ask_page.answers).to_have_count(0)


def test_settings_are_sent(ask_page: AskPage) -> None:
    ask_page.choose_sample("red-circle")
    ask_page.ask(max_tokens=3)
    ask_page.wait_until_done()
    expect(ask_page.latest.locator(".note")).to_contain_text("Cut off at 3 tokens")


def test_link_that_cannot_be_fetched_is_explained(ask_page: AskPage) -> None:
    ask_page.expect_status(400)
    ask_page.page.get_by_label("Or paste a link").fill("ftp://example.com/clip.mp4")
    ask_page.ask()
    expect(ask_page.page.locator("#error-video_url, .failure").locator("visible=true")).not_to_be_empty()
    expect(ask_page.page.get_by_label("Or paste a link")).to_have_attribute("aria-invalid", "true")


def test_picture_can_be_asked_about(ask_page: AskPage) -> None:
    poster = ask_page.page.request.get(f"{ask_page.base}/static/samples/red-circle.jpg").body()
    ask_page.choose_file("picture.jpg", poster, "image/jpeg")
    expect(ask_page.page.locator("#picture")).to_be_visible()
    ask_page.ask("What is in this picture?")
    assert "red circle" in ask_page.wait_until_done().lower()


def test_file_can_be_dropped_anywhere(ask_page: AskPage) -> None:
    page = ask_page.page
    transfer = page.evaluate_handle(
        """bytes => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "dropped.mp4", { type: "video/mp4" }));
          return transfer;
        }""",
        list(clip_bytes("red-circle")),
    )
    page.dispatch_event("footer", "dragenter", {"dataTransfer": transfer})
    expect(page.locator("#drop-veil")).to_be_visible()
    page.dispatch_event("footer", "drop", {"dataTransfer": transfer})
    expect(page.locator("#drop-veil")).to_be_hidden()
    expect(page.locator("#media-name")).to_have_text("dropped.mp4")
    ask_page.wait_for_player()


def test_everything_works_by_keyboard(ask_page: AskPage) -> None:
    page = ask_page.page
    _tab_to(ask_page, '.sample[data-name="triangle-then-square.mp4"]')
    page.keyboard.press("Enter")
    ask_page.wait_for_player()
    _tab_to(ask_page, "#prompt")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("When does the second event begin?")
    _tab_to(ask_page, "#settings summary")
    page.keyboard.press("Enter")
    _tab_to(ask_page, "#max_tokens")
    page.keyboard.type("64")
    page.keyboard.press("Control+Enter")
    seconds = _first_time(ask_page.wait_until_done())
    _tab_to(ask_page, ".answer .time")
    page.keyboard.press("Enter")
    ask_page.wait_until_seeked(seconds)


def test_history_copy_and_ask_again(open_page: OpenPage) -> None:
    ask_page = open_page(permissions=["clipboard-read", "clipboard-write"])
    ask_page.choose_sample("red-circle")
    ask_page.ask()
    first = ask_page.wait_until_done()
    ask_page.ask("What colour is the object?")
    expect(ask_page.answers).to_have_count(2)
    ask_page.wait_until_done()

    earlier = ask_page.answers.last
    assert ask_page.copy(earlier) == first
    expect(earlier.get_by_role("button", name="Copy")).to_be_visible()
    earlier.get_by_role("button", name="Ask again").click()
    expect(ask_page.answers).to_have_count(3)
    assert ask_page.wait_until_done() == first


def test_words_of_the_user_stay_words(ask_page: AskPage) -> None:
    question = '<img src=x onerror="alert(1)"><b>What</b> happens & why?'
    ask_page.choose_sample("red-circle")
    ask_page.ask(question)
    ask_page.wait_until_done()
    expect(ask_page.latest.locator(".question")).to_have_text(question)


def test_lost_connection_is_said_and_the_page_goes_on(ask_page: AskPage) -> None:
    ask_page.watch.expected += ["ERR_FAILED", "[object Event]"]
    ask_page.page.route("**/ui/answers/**", lambda route: route.abort())
    ask_page.choose_sample("red-circle")
    ask_page.ask()
    expect(ask_page.latest.locator(".failure")).to_contain_text("connection to the server was lost")
    ask_page.page.unroute("**/ui/answers/**")
    ask_page.latest.get_by_role("button", name="Ask again").click()
    assert ask_page.wait_until_done()


@pytest.mark.parametrize("width", [360, 390])
def test_phone_never_scrolls_sideways(open_page: OpenPage, width: int) -> None:
    ask_page = open_page(viewport={"width": width, "height": 780}, has_touch=True, is_mobile=True)
    assert not ask_page.scrolls_sideways()
    ask_page.choose_sample("triangle-then-square")
    ask_page.ask()
    ask_page.wait_until_done()
    assert not ask_page.scrolls_sideways()
    expect(ask_page.latest).to_be_in_viewport()


def test_dark_mode_is_dark(open_page: OpenPage) -> None:
    ask_page = open_page()
    assert _background_level(ask_page) > 200
    ask_page.page.emulate_media(color_scheme="dark")
    assert _background_level(ask_page) < 60


def _background_level(ask_page: AskPage) -> float:
    colour = ask_page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(number) for number in re.findall(r"\d+", colour)[:3]]
    return sum(channels) / 3


def _tab_to(ask_page: AskPage, selector: str, most: int = 60) -> None:
    """Press Tab until an element that matches has the focus."""
    for _ in range(most):
        ask_page.page.keyboard.press("Tab")
        if ask_page.page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"{selector} is not reached by Tab")


def _without_time(text: str) -> str:
    return _TIME.sub("TIME", text)


def _first_time(text: str) -> float:
    match = _TIME.search(text)
    assert match, f"no time in {text!r}"
    return int(match[1]) * 60 + float(match[2])
