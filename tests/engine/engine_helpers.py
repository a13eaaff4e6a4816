"""Requests for engine tests, and a loop that drives an engine and holds it to its contract."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tru_vlm.engine.base import EngineRequest, FailEvent, FinishEvent, MediaInput, TokenEvent
from tru_vlm.types import GenerationParams, MediaPart, Message, TextPart

MAX_STEPS = 3000


def random_checkpoint(folder: Path) -> Path:
    """A checkpoint of the demo model's size with random weights."""
    from demo_model.model import build_model, save_checkpoint
    from demo_model.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    save_checkpoint(build_model(tokenizer), tokenizer, folder)
    return folder


def video(seed=0, num_frames=4, height=64, width=64, fps=2.0) -> MediaInput:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 3, height, width), dtype=np.uint8)
    times = tuple(index / fps for index in range(num_frames))
    key = f"video-{seed}-{num_frames}-{height}-{width}-{fps}"
    return MediaInput("video", frames, key, times, tuple(range(num_frames)), fps)


def image(seed=0, height=64, width=64) -> MediaInput:
    frames = np.random.default_rng(seed).integers(0, 256, (1, 3, height, width), dtype=np.uint8)
    return MediaInput("image", frames, f"image-{seed}-{height}-{width}")


def request(request_id="a", *media, prompt="What happens?", **generation) -> EngineRequest:
    content = (*(MediaPart(index) for index in range(len(media))), TextPart(prompt))
    params = GenerationParams(**({"max_tokens": 12, "temperature": 0.0} | generation))
    return EngineRequest(request_id, (Message("user", content),), media, params)


@dataclass
class Outcome:
    """What one request got."""

    text: str = ""
    num_tokens: int = 0
    end: FinishEvent | FailEvent | None = None
    end_step: int = -1
    token_steps: list[int] = field(default_factory=list)

    @property
    def reason(self) -> str:
        return self.end.finish_reason if isinstance(self.end, FinishEvent) else self.end.error.code


def drive(engine, requests=(), *, arrivals=None, aborts=None) -> dict[str, Outcome]:
    """Run to the end; every request must end exactly once, and nothing may come after.

    arrivals: the step before which each request is submitted (default 0); aborts: {request id: step}.
    """
    outcomes = {r.id: Outcome() for r in requests}
    arrivals = arrivals or [0] * len(requests)
    aborts = aborts or {}
    step = 0
    while True:
        for item, arrival in zip(requests, arrivals, strict=True):
            if arrival == step:
                engine.submit(item)
        for request_id, abort_step in aborts.items():
            if abort_step == step:
                engine.abort(request_id)
        if not engine.has_work() and step >= max([0, *arrivals, *aborts.values()]):
            break
        for event in engine.step():
            record(outcomes.setdefault(event.request_id, Outcome()), event, step)
        step += 1
        assert step < MAX_STEPS, "the engine does not come to an end"
    assert all(outcome.end is not None for outcome in outcomes.values())
    assert engine.stats().kv_cache_used_tokens == 0
    assert engine.stats().num_running == engine.stats().num_waiting == 0
    return outcomes


def recorded_tokens(engine) -> dict[str, list[int]]:
    """Will have every request's tokens, special ones included, which its text hides."""
    tokens, accept = defaultdict(list), engine._accept

    def recording(row, token):
        tokens[row.request.id].append(token)
        return accept(row, token)

    engine._accept = recording
    return tokens


def record(outcome, event, step):
    assert outcome.end is None, f"{event} after the last event"
    if isinstance(event, TokenEvent):
        outcome.text += event.text
        outcome.num_tokens += event.num_tokens
        outcome.token_steps.append(step)
    else:
        outcome.end, outcome.end_step = event, step
