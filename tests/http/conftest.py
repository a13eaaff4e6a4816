"""Clips that the HTTP tests send: real H.264 files, made by the demo model's generator, and broken ones."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from demo_model.generator import ClipSpec, Event, encode, render_frame

RED_CIRCLE_LEFT = ClipSpec(events=(Event("red", "circle", "moves left"),), duration_seconds=4.0)
TWO_EVENTS = ClipSpec(
    events=(Event("red", "circle", "moves left"), Event("blue", "square", "grows")),
    switch_seconds=5.0,
    duration_seconds=10.0,
)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good and bad files by name."""
    folder = tmp_path_factory.mktemp("clips")
    good = encode(RED_CIRCLE_LEFT, folder / "red_circle_left.mp4")
    files = {
        "one": good,
        "two": encode(TWO_EVENTS, folder / "two_events.mp4"),
        "truncated": folder / "truncated.mp4",
        "zero": folder / "zero.mp4",
        "text": folder / "text.mp4",
        "audio": folder / "audio_only.mp4",
        "one_frame": folder / "one_frame.mp4",
    }
    files["truncated"].write_bytes(good.read_bytes()[: good.stat().st_size // 3])
    files["zero"].write_bytes(b"")
    files["text"].write_text("This is not a video.\n" * 100)
    _audio_only(files["audio"])
    _one_frame(files["one_frame"])
    for kind in ("jpeg", "png", "webp"):
        files[kind] = folder / f"picture.{kind}"
        Image.fromarray(render_frame(RED_CIRCLE_LEFT, 1.0)).save(files[kind])
    return files


def _audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _one_frame(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        frame = av.VideoFrame.from_ndarray(render_frame(RED_CIRCLE_LEFT, 1.0, 240, 320), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
