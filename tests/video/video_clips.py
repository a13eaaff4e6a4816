"""Small real files for these tests: clips encoded by PyAV, images written by Pillow."""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tru_vlm.plans import SamplingPlan
from tru_vlm.types import VideoInfo
from tru_vlm.video.media import VideoAllowance

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
    num_streams: int = 1,
) -> Local:
    """A clip whose grey level grows with the frame number."""
    with av.open(str(path), "w", format=container) as output:
        streams = [output.add_stream(codec, rate=fps) for _ in range(num_streams)]
        for stream in streams:
            stream.width, stream.height = width, height
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for number in range(num_frames):
            picture = np.full((height, width, 3), 20 + number * 200 // num_frames, np.uint8)
            for stream in streams:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            output.mux(stream.encode(None))
    return local(path)


def write_variable_rate(path: Path) -> tuple[Local, list[float]]:
    """A clip whose last frame's duration FFmpeg versions tell differently; and the time of each frame in seconds."""
    times = [i / 10 for i in range(20)] + [2 + i / 30 for i in range(30)] + [3 + i / 5 for i in range(10)]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, seconds in enumerate(times):
            picture = np.full((96, 160, 3), 20 + number * 200 // len(times), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return local(path), times


def write_growing(path: Path, *, first: int, then: int) -> Local:
    """WebM of four VP8 frames: two of ``first`` x ``first`` pixels, which the header tells, and two larger ones."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libvpx", rate=25)
        stream.width = stream.height = first
        stream.pix_fmt = "yuv420p"
        packets: list[av.Packet] = []
        for side in (first, then):
            encoder = av.CodecContext.create("libvpx", "w")
            encoder.width = encoder.height = side
            encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 25)
            picture = av.VideoFrame.from_ndarray(np.full((side, side, 3), 90, np.uint8), format="rgb24")
            for number in range(2):
                picture.pts = number
                packets += encoder.encode(picture)
            packets += encoder.encode(None)
        for place, packet in enumerate(packets):
            copy = av.Packet(bytes(packet))
            copy.stream, copy.time_base, copy.is_keyframe = stream, Fraction(1, 25), packet.is_keyframe
            copy.pts = copy.dts = place
            output.mux(copy)
    return local(path)


def write_long_clip(path: Path, piece: Local, *, seconds: int) -> Local:
    """The packets of ``piece`` again and again, with later times: hours in a second."""
    with av.open(str(piece.path)) as source, av.open(str(path), "w") as output:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size]
        target = output.add_stream_from_template(stream)
        length = stream.duration
        for turn in range(round(seconds / (length * stream.time_base))):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts = packet.pts + turn * length, packet.dts + turn * length
                copy.duration, copy.time_base, copy.stream = packet.duration, stream.time_base, target
                copy.is_keyframe = packet.is_keyframe
                output.mux(copy)
    return local(path)


def promise_one_second(file: Local) -> Local:
    """Overwrite the durations in the headers of an MP4; its frames' times stay."""
    content = bytearray(file.path.read_bytes())
    for name, scale_offset, duration_offset in ((b"mvhd", 16, 20), (b"mdhd", 16, 20)):
        place = content.index(name)
        content[place + duration_offset : place + duration_offset + 4] = content[
            place + scale_offset : place + scale_offset + 4
        ]
    file.path.write_bytes(content)
    return local(file.path)


def write_liar(path: Path, *, seconds: float, num_frames: int, fps: int = 25) -> Local:
    """A Matroska clip whose header tells another length, ``seconds``, than its frames have."""
    content = write_clip(path, num_frames=num_frames, fps=fps, container="matroska").path.read_bytes()
    # Segment\Info\Duration: id 0x4489, 8 bytes of float, in milliseconds (RFC 9559, 5.1.2.10).
    place = content.index(b"\x44\x89\x88") + 3
    path.write_bytes(content[:place] + struct.pack(">d", seconds * 1000) + content[place + 8 :])
    return local(path)


def holds(allowance: VideoAllowance, frames: SamplingPlan | VideoInfo) -> bool:
    """Whether frames keep to what they were allowed."""
    num_pairs = -(-frames.num_frames // 2)
    return frames.video_tokens + num_pairs * allowance.timestamp_tokens <= allowance.tokens


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
