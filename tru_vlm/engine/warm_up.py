"""The first question of an engine's life: made-up frames through every stage.  It knows the engine's interface only."""

from __future__ import annotations

import numpy as np

from tru_vlm.engine.base import Engine, EngineRequest, FailEvent, MediaInput
from tru_vlm.errors import ContextLengthError, InternalError
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.types import GenerationParams, MediaPart, Message, TextPart

_ID = "warm-up"
_SIDE_IN_TOKENS = 8
_NUM_PATCHES = 2
_NUM_ANSWER_TOKENS = 4


def answer_once(engine: Engine, profile: ModelProfile) -> None:
    """Answer one question about made-up frames; what that leaves behind is the engine's to forget.

    A cache that is too small for the question is none of its concern: no question with frames fits then.

    Raises:
        InternalError: the engine cannot answer; the log says why.
    """
    try:
        engine.submit(_question(profile))
    except ContextLengthError:
        return
    while engine.has_work():
        for event in engine.step():
            if isinstance(event, FailEvent):
                raise InternalError(f"The model loads, and answers nothing: {event.error.message}")


def _question(profile: ModelProfile) -> EngineRequest:
    num_frames = _NUM_PATCHES * profile.temporal_patch_size
    side = _SIDE_IN_TOKENS * profile.pixel_factor
    frames = MediaInput(
        kind="video",
        frames=np.zeros((num_frames, 3, side, side), dtype=np.uint8),
        content_key=_ID,
        timestamps_seconds=tuple(map(float, range(num_frames))),
        frames_indices=tuple(range(num_frames)),
        source_fps=1.0,
    )
    # Sampled, and not to end before the last token: so every later stage has run too.
    generation = GenerationParams(max_tokens=_NUM_ANSWER_TOKENS, temperature=1.0, seed=0, ignore_eos=True)
    messages = (Message("user", (MediaPart(0), TextPart("What happens?"))),)
    return EngineRequest(_ID, messages, (frames,), generation, cache_salt=_ID)
