"""What one can ask the demo model and what it must answer. Pure text: this module knows clips, not models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from demo_model.generator import ClipSpec, Event

DEFAULT_QUESTION = "What happens in this video?"
KINDS = ("caption", "colour", "shape", "action", "when", "timeline")

#: Ways to ask each kind of question. Anything that is none of them is answered like a caption.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "caption": (
        DEFAULT_QUESTION,
        "What happens in the video?",
        "What happens in this clip?",
        "What happens?",
        "What happens here?",
        "What is happening in this video?",
        "What is happening?",
        "What is going on?",
        "What do you see?",
        "What can you see in this video?",
        "What is in this video?",
        "What is this?",
        "What does the video show?",
        "Describe this video.",
        "Describe the video.",
        "Describe the clip.",
        "Describe what happens in this video.",
        "Describe what you see.",
        "Describe the video in detail.",
        "Describe this video in one sentence.",
        "Describe this image.",
        "Describe the picture.",
        "What is in this picture?",
        "What is in the image?",
        "Summarize the video.",
        "Summarise this clip.",
        "Give a short summary of the video.",
        "Tell me what happens.",
        "Tell me about this video.",
        "Caption this video.",
        "Explain the video.",
        "Which objects appear in the video?",
        "What is the main event?",
    ),
    "colour": (
        "What colour is the object?",
        "What color is the object?",
        "What colour is it?",
        "What color is it?",
        "Which colour does the object have?",
        "Which color does the object have?",
        "Name the colour.",
        "Name the color of the object.",
        "What is the colour of the shape?",
        "What is the color of the shape?",
        "Which colours appear?",
        "What colors are in the video?",
    ),
    "shape": (
        "What shape is the object?",
        "What shape is it?",
        "Which shape is it?",
        "What is the shape of the object?",
        "What shape does the object have?",
        "Name the shape.",
        "Which shapes appear?",
        "What kind of shape is in the video?",
    ),
    "action": (
        "What does it do?",
        "What does the object do?",
        "What is it doing?",
        "What is the object doing?",
        "How does it move?",
        "How does the object move?",
        "Which way does it move?",
        "In which direction does the object move?",
        "Describe the motion.",
        "Describe the movement.",
    ),
    "when": (
        "When does the second event begin?",
        "When does the second event start?",
        "At what time does the second event begin?",
        "When does the second object appear?",
        "When does it change?",
        "When does the object change?",
        "At which second does the second event start?",
        "What time does the second event begin?",
    ),
    "timeline": (
        "Describe the video second by second.",
        "Describe what happens second by second.",
        "Tell me what happens second by second.",
        "Give a timeline of the video.",
        "Write a timeline.",
        "List what happens with timestamps.",
        "Describe the video with timestamps.",
        "List the events with timestamps.",
        "Describe the video in detail with timestamps.",
    ),
}


@dataclass(frozen=True)
class Sight:
    """What the sampled frames of a clip tell.

    events: the one or two events in view. patch_seconds: the time that the prompt prints for each temporal patch.
    patch_events: per patch, the index of the event that its last frame shows.
    second_seconds: best estimate of the second event's begin, the middle between the last frame before and the
    first after it.
    is_picture: a still, not a video.
    """

    events: tuple[Event, ...]
    patch_seconds: tuple[float, ...]
    patch_events: tuple[int, ...]
    second_seconds: float | None
    is_picture: bool = False


def see(spec: ClipSpec, seconds: Sequence[float], *, offset_seconds: float = 0.0, is_picture: bool = False) -> Sight:
    """What frames at these times (an even number) show; offset_seconds is added to every time that is told."""
    indices = [spec.event_index(second) for second in seconds]
    shown = sorted(set(indices))
    switch = None
    if len(shown) == 2:
        first_after = indices.index(1)
        switch = (seconds[first_after - 1] + seconds[first_after]) / 2 + offset_seconds
    return Sight(
        events=tuple(spec.events[index] for index in shown),
        patch_seconds=tuple((a + b) / 2 + offset_seconds for a, b in zip(seconds[::2], seconds[1::2], strict=True)),
        patch_events=tuple(shown.index(index) for index in indices[1::2]),
        second_seconds=switch,
        is_picture=is_picture,
    )


def stamp(seconds: float) -> str:
    """A time as the prompt and the answers write it."""
    return f"<{seconds:.1f} seconds>"


def noun(event: Event) -> str:
    """E.g. "a red circle", "an orange star"."""
    article = "an" if event.colour[0] in "aeiou" else "a"
    return f"{article} {event.colour} {event.shape}"


def sentence(event: Event) -> str:
    """E.g. "a red circle moves left"."""
    return f"{noun(event)} {event.action}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def caption(events: Sequence[Event], second_seconds: float | None = None) -> str:
    """The answer to the default question: "A red circle moves left. Then, at <4.2 seconds>, a blue square blinks."."""
    first = f"{_capital(sentence(events[0]))}."
    if len(events) == 1 or second_seconds is None:
        return first
    return f"{first} Then, at {stamp(second_seconds)}, {sentence(events[1])}."


def _of_picture(kind: str, event: Event) -> str:
    short = {"colour": event.colour, "shape": event.shape}.get(kind)
    if short:
        return f"{_capital(short)}."
    if kind in ("action", "when"):
        return "This is a single picture."
    return f"{_capital(noun(event))}."


def _attribute(kind: str, events: Sequence[Event]) -> str:
    words = [getattr(event, kind) for event in events]
    if kind == "action":
        return f"It {words[0]}." if len(words) == 1 else f"First it {words[0]}, then it {words[1]}."
    return f"{_capital(words[0])}." if len(words) == 1 else f"First {words[0]}, then {words[1]}."


def _timeline(sight: Sight) -> str:
    lines = (
        f"{stamp(seconds)} {sentence(sight.events[event])}"
        for seconds, event in zip(sight.patch_seconds, sight.patch_events, strict=True)
    )
    return "\n".join(lines)


def answer(kind: str, sight: Sight) -> str:
    """The right answer to a question of a kind out of KINDS."""
    if sight.is_picture:
        return _of_picture(kind, sight.events[0])
    if kind == "caption":
        return caption(sight.events, sight.second_seconds)
    if kind == "timeline":
        return _timeline(sight)
    if kind == "when":
        return "There is only one event." if sight.second_seconds is None else f"At {stamp(sight.second_seconds)}."
    return _attribute(kind, sight.events)
