"""The page's HTML: what models and clients wrote is only ever text, and events survive their format."""

from __future__ import annotations

import dataclasses
import re

import pytest

from tru_vlm.api.page.events import sse_event
from tru_vlm.api.page.html import (
    FORM_FIELDS,
    AnswerEvents,
    PageRenderer,
    clock,
    form_field,
    format_bytes,
    load_samples,
    page_context,
)
from tru_vlm.api.page.library import ShownLibrary, ShownVideo
from tru_vlm.api.page.spans import ago, until
from tru_vlm.chats.records import Chat
from tru_vlm.errors import InvalidRequestError
from tru_vlm.paths import STATIC_DIR, TEMPLATES_DIR
from tru_vlm.settings import load_settings
from tru_vlm.types import (
    Answer,
    DeltaEvent,
    DoneEvent,
    ErrorEvent,
    RequestEvent,
    StatusEvent,
    Timings,
    Usage,
    VideoEvent,
    VideoInfo,
)

_VIDEO = VideoInfo(
    kind="video",
    num_frames=2,
    height=96,
    width=128,
    source_height=240,
    source_width=320,
    video_tokens=24,
    decoder="pyav",
    sample_fps=2.0,
    frame_timestamps=(0.0, 4.25),
    notes=("Frames were reduced <a lot>.",),
    frames_url="/v1/frames/abc/{index}.jpg",
)


@pytest.fixture(scope="module")
def renderer() -> PageRenderer:
    return PageRenderer(TEMPLATES_DIR, STATIC_DIR)


@pytest.fixture
def events(renderer: PageRenderer) -> AnswerEvents:
    return AnswerEvents(renderer, "token")


def _answer(text: str) -> Answer:
    return Answer("req-1", "m", text, "length", Usage(30, 24, 3), _VIDEO, Timings(time_to_first_token=0.4, total=12.3))


def test_markup_of_a_model_stays_text(events: AnswerEvents) -> None:
    sent = events.render(DeltaEvent("r", '<script>alert(1)</script> & "quotes"\r\n\u2028end')).decode()
    assert "<script>" not in sent
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in sent


def test_time_in_a_delta_becomes_a_link_once_it_is_whole(renderer: PageRenderer) -> None:
    events = AnswerEvents(renderer, "token", address="?chat=chat-1")
    assert b"<p>It is at</p>" in events.render(DeltaEvent("r", "It is at <4."))
    sent = events.render(DeltaEvent("r", "25 seconds> it")).decode()
    assert 'data-seconds="4.250" href="?chat=chat-1#t=4.25"' in sent


def test_what_is_held_back_comes_before_the_end(events: AnswerEvents) -> None:
    assert events.render(DeltaEvent("r", "12")) == b""
    sent = events.render(DoneEvent(_answer("12")))
    assert sent.startswith(b'event: delta\ndata: <div class="block" id="text-token-0" data-source="12"><p>12</p>')
    assert b"\n\nevent: done\n" in sent


def test_a_block_is_patched_in_its_place_until_another_follows(events: AnswerEvents) -> None:
    assert "oob" not in events.render(DeltaEvent("r", "One ")).decode()
    second = events.render(DeltaEvent("r", "two\n\nthree ")).decode()
    assert re.findall(r'id="text-token-(\d)"( hx-swap-oob="morph")?', second) == [
        ("0", ' hx-swap-oob="morph"'),
        ("1", ""),
    ]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (StatusEvent("r", "waiting", 2), "Waiting for the model, 2 ahead"),
        (StatusEvent("r", "generating"), 'data-stage="generating"'),
        (VideoEvent("r", _VIDEO), 'src="v1/frames/abc/1.jpg"'),
        (VideoEvent("r", _VIDEO), "0:04.2"),
        (VideoEvent("r", _VIDEO), "reduced &lt;a lot&gt;."),
        (VideoEvent("r", dataclasses.replace(_VIDEO, kind="image", frame_timestamps=(), num_frames=1)), "1 frame<"),
        (DoneEvent(_answer("x")), "Cut off at 3 tokens"),
        (DoneEvent(_answer("x")), "total 12 s"),
        (ErrorEvent("r", InvalidRequestError("<b>no</b>", param="video_params.fps").info()), "&lt;b&gt;no"),
        (ErrorEvent("r", InvalidRequestError("no", param="video_params.fps").info()), 'data-field="fps"'),
    ],
)
def test_events(events: AnswerEvents, event: RequestEvent, expected: str) -> None:
    assert expected in events.render(event).decode()


def test_no_event_is_called_error(events: AnswerEvents) -> None:
    """To an EventSource, an event of that name is a lost connection."""
    sent = events.render(ErrorEvent("r", InvalidRequestError("no").info()))
    assert sent.startswith(b"event: failed\n")


def test_question_is_escaped(renderer: PageRenderer) -> None:
    assert "<b>why" not in renderer.answer("token", "<b>why</b>", Chat("c", "public", 1, None, ("v",), 0, 0.0, 0.0))


def test_every_line_end_is_kept_inside_the_event() -> None:
    assert sse_event("x", "a\rb\r\nc\n") == b"event: x\ndata: a\ndata: b\ndata: c\ndata: \n\n"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00.0"), (4.25, "0:04.2"), (59.96, "1:00.0"), (3723.4, "1:02:03")]
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(("num_bytes", "shown"), [(900, "900 bytes"), (2 << 30, "2 GB"), (1 << 40, "1024 GB")])
def test_bytes(num_bytes: int, shown: str) -> None:
    assert format_bytes(num_bytes) == shown


def test_field_of_an_error() -> None:
    assert form_field(InvalidRequestError("x", param="generation_params.max_tokens").info()) == "max_tokens"
    assert form_field(InvalidRequestError("x", param="top_k").info()) is None
    assert form_field(InvalidRequestError("x").info()) is None


@pytest.mark.parametrize("is_demo", [True, False])
def test_page(renderer: PageRenderer, is_demo: bool) -> None:
    settings = load_settings(env_file=None)
    page = renderer.page(
        page_context(
            settings,
            models=["a <model>"],
            aliases={},
            default_model="a <model>",
            is_demo=is_demo,
            samples=load_samples(STATIC_DIR),
            has_keys=False,
        ),
        ShownLibrary([]),
    )
    assert ("a &lt;model&gt;" in page) is not is_demo
    assert ("MODEL_PATH" in page) is is_demo
    for field in FORM_FIELDS - {"model"}:
        assert f'id="{field}"' in page
        assert f'id="error-{field}"' in page
    for forbidden in ("<script>", "onclick=", "style=", "http://", "//cdn"):
        assert forbidden not in page.replace("http://www.w3.org/2000/svg", "")


def test_with_several_models_one_can_be_chosen(renderer: PageRenderer) -> None:
    given = {"aliases": {"c>d": ("a", "b")}, "is_demo": True, "samples": (), "has_keys": False}
    page = renderer.page(
        page_context(load_settings(env_file=None), models=["a", "b", "c>d"], default_model="b", **given),
        ShownLibrary([]),
    )
    assert 'name="model"' in page
    assert 'id="error-model"' in page
    assert re.findall(r"<option .*</option>", page) == [
        '<option value="a">a</option>',
        '<option value="b" selected>b</option>',
        '<option value="c&gt;d">c&gt;d (a or b)</option>',
    ]
    assert "Answered by" not in page
    one = renderer.page(
        page_context(load_settings(env_file=None), models=["a"], default_model="a", **given), ShownLibrary([])
    )
    assert "<select" not in one
    assert "Answered by" in one


@pytest.mark.parametrize("shows_model", [True, False])
def test_the_last_line_tells_the_model_where_there_are_several(renderer: PageRenderer, *, shows_model: bool) -> None:
    answer = Answer("req-1", "chat", "x", "stop", Usage(30, 24, 3), None, Timings(), variant="a <b>")
    html = AnswerEvents(renderer, "token", shows_model=shows_model).render(DoneEvent(answer)).decode()
    assert ("answered by a &lt;b&gt;" in html) is shows_model


def test_rows_of_kept_videos_are_escaped(renderer: PageRenderer) -> None:
    address = "v1/videos/1"
    video = ShownVideo(
        "1", "video", '<b>"a"</b>', f"{address}/content", f"{address}/thumbnail", 2 << 20, 320, 240, 4.2, until(7e5)
    )
    html = renderer.library(ShownLibrary([video], words='"><i>&', next_cursor="3"))
    assert "<b>" not in html
    assert "<i>" not in html
    assert "query=%22%3E%3Ci%3E%26&amp;cursor=3" in html
    assert "0:04.2 · 320 × 240 · 2 MB · expires in 8 days" in html
    assert "autofocus" not in html
    assert "autofocus" in renderer.library(ShownLibrary([video], is_first=False))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(604800, "7 days"), (86400, "1 day"), (40000, "11 hours"), (100, "2 minutes"), (-5, "less than a minute")],
)
def test_until(seconds: float, shown: str) -> None:
    assert until(seconds) == f"expires in {shown}"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "just now"), (59, "just now"), (60, "1 minute ago"), (7199, "1 hour ago"), (90_000_000, "1041 days ago")],
)
def test_ago(seconds: float, shown: str) -> None:
    assert ago(seconds) == shown


def test_samples_are_small_and_have_posters() -> None:
    samples = load_samples(STATIC_DIR)
    assert len(samples) >= 3
    for sample in samples:
        clip = STATIC_DIR / sample.video_url.removeprefix("static/")
        assert clip.stat().st_size < 60_000
        assert (STATIC_DIR / sample.poster_url.removeprefix("static/")).is_file()
