"""Questions and answers of the demo model."""

import pytest

from demo_model.generator import ClipSpec, Event
from demo_model.questions import answer, caption, see

SPEC = ClipSpec(
    (Event("red", "circle", "moves left"), Event("orange", "star", "blinks")), duration_seconds=4.0, switch_seconds=2.1
)
SECONDS = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]


def test_the_begin_is_estimated_from_what_is_sampled() -> None:
    assert see(SPEC, SECONDS).second_seconds == 2.25
    assert see(SPEC, SECONDS, offset_seconds=10.0).second_seconds == 12.25
    assert see(SPEC, SECONDS[:4]).second_seconds is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("caption", "A red circle moves left. Then, at <2.2 seconds>, an orange star blinks."),
        ("colour", "First red, then orange."),
        ("shape", "First circle, then star."),
        ("action", "First it moves left, then it blinks."),
        ("when", "At <2.2 seconds>."),
    ],
)
def test_answers_about_two_events(kind: str, expected: str) -> None:
    assert answer(kind, see(SPEC, SECONDS)) == expected


def test_answers_about_one_event() -> None:
    sight = see(SPEC, SECONDS[:4])
    assert answer("caption", sight) == "A red circle moves left."
    assert answer("colour", sight) == "Red."
    assert answer("when", sight) == "There is only one event."


def test_the_timeline_has_a_line_per_temporal_patch() -> None:
    lines = answer("timeline", see(SPEC, SECONDS)).split("\n")
    assert lines[0] == "<0.2 seconds> a red circle moves left"
    assert lines[2:] == ["<2.2 seconds> an orange star blinks", "<3.2 seconds> an orange star blinks"]


def test_a_picture_is_only_named() -> None:
    assert answer("caption", see(SPEC, [1.0, 1.0], is_picture=True)) == "A red circle."


def test_caption_without_a_time_tells_the_first_event() -> None:
    assert caption(SPEC.events) == "A red circle moves left."
