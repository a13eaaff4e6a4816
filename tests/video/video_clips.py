"""Small real files for these tests: clips encoded by PyAV, images written by Pillow."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

MEMORY_BYTES = 8 << 30
"""Address space of a decode process in these tests."""


@dataclass(frozen=True)
class Local:
    """A file as the service takes it."""

    path: Path
    size_bytes: int
    sha256: str


def local(path: Path) -> Local:
    content = path.read_bytes()
    return Local(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def local_bytes(directory: Path, content: bytes) -> Local:
    path = directory / hashlib.sha256(content).hexdigest()[:16]
    path.write_bytes(content)
    return local(path)


def write_clip(
    path: Path,
    *,
    num_frames: int = 50,
    fps: int = 25,
    width: int = 160,
    height: int = 96,
    codec: str = "libx264",
    container: str | None = None,
) -> Local:
    """A clip whose grey level grows with the frame number."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for number in range(num_frames):
            picture = np.full((height, width, 3), 20 + number * 200 // num_frames, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return local(path)


def write_sound(path: Path) -> Local:
    """An MP4 with sound only."""
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return local(path)


def image_bytes(kind: str, *, width: int = 200, height: int = 100) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(buffer, kind)
    return buffer.getvalue()
