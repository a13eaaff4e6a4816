"""Clips for the tests: each frame carries its number as a bar code, over a picture that moves.

The upper half of a frame is ``BITS`` bars, white for 1, most significant first: readable after any resize, rotation
undone, and lossy encoding. The lower half is a gradient with a moving block, so that pixels can be compared too.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from encoding import ordinary_scheduling

import qwen_vl_utils

BITS = 10


def available_backends() -> list[str]:
    """The decoders that load on this machine."""
    return [name for name, state in qwen_vl_utils.backend_status().items() if state == "available"]


@dataclass(frozen=True)
class Clip:
    """How to make one clip. ``times``: seconds of each frame, for a variable rate; turn, flip: display matrix.

    cut: (first, count) of the frames that an MP4's edit list leaves.
    """

    name: str
    codec: str = "libx264"
    num_frames: int = 40
    fps: Fraction = Fraction(25)
    height: int = 96
    width: int = 160
    pixel_format: str = "yuv420p"
    gop: int = 12
    bframes: int = 2
    turn: int = 0
    flip: bool = False
    times: tuple[float, ...] | None = None
    cut: tuple[int, int] | None = None
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)


def picture(number: int, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3) of frame ``number``."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 // width, y * 255 // height, (x + y + 5 * number) % 256], axis=-1).astype(np.uint8)
    top = height // 2
    for bit in range(BITS):
        value = 235 if number >> (BITS - 1 - bit) & 1 else 20
        image[:top, bit * width // BITS : (bit + 1) * width // BITS] = value
    left = (7 * number) % max(1, width - width // 8)
    image[-height // 4 :, left : left + width // 8] = (220, 40, 60)
    return image


def read_number(frame: torch.Tensor) -> int:
    """The number in a frame, (3, H, W)."""
    _, height, width = frame.shape
    band = frame[:, : height // 2].float().mean(dim=0)[height // 8 : 3 * height // 8]
    number = 0
    for bit in range(BITS):
        centre = (2 * bit + 1) * width // (2 * BITS)
        reach = max(1, width // (6 * BITS))
        number = number * 2 + int(band[:, centre - reach : centre + reach].mean() > 128)
    return number


def numbers(frames: torch.Tensor) -> list[int]:
    return [read_number(frame) for frame in frames]


def write_clip(folder: Path, clip: Clip) -> Path:
    """Encode ``clip`` into ``folder``."""
    path = folder / clip.name
    with ordinary_scheduling(), av.open(str(path), "w", options=clip.container_options) as container:
        stream = container.add_stream(clip.codec, rate=clip.fps, options=_options(clip))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, clip.pixel_format
        context = stream.codec_context
        context.gop_size = clip.gop
        context.max_b_frames = clip.bframes
        time_base = Fraction(1, 1000) if clip.times else 1 / clip.fps
        context.time_base = time_base
        if clip.turn or clip.flip:
            stream.set_display_rotation(clip.turn, hflip=clip.flip)
        for number in range(clip.num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, clip.height, clip.width), format="rgb24")
            frame.pts = round(clip.times[number] * 1000) if clip.times else number
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if clip.cut is not None:
        _cut_by_edit_list(path, *clip.cut, fps=clip.fps)
    return path


def write_turned(path: Path, plain: Path, *, turn: int, flip: bool) -> Path:
    """The same coded pictures as in ``plain``, to be shown turned: encoded again, they may differ."""
    with av.open(str(plain)) as given, av.open(str(path), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        stream.set_display_rotation(turn, hflip=flip)
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    return path


def _cut_by_edit_list(path: Path, first: int, count: int, *, fps: Fraction) -> None:
    """Change the one entry of the edit list (ISO/IEC 14496-12, 8.6.6); its media time begins at the first frame."""
    content = bytearray(path.read_bytes())
    movie_scale, media_scale = (
        struct.unpack_from(">I", content, content.index(box) + 16)[0] for box in (b"mvhd", b"mdhd")
    )
    entry = content.index(b"elst") + 12
    (media_time,) = struct.unpack_from(">i", content, entry + 4)
    struct.pack_into(
        ">Ii", content, entry, round(count * movie_scale / fps), round(media_time + first * media_scale / fps)
    )
    path.write_bytes(content)


def _options(clip: Clip) -> dict[str, str]:
    quick = {
        "libx264": {"preset": "veryfast", "crf": "18", "bf": str(clip.bframes)},
        "libx265": {
            "preset": "ultrafast",
            "crf": "18",
            "x265-params": f"log-level=error:bframes={clip.bframes}:pools=1:frame-threads=1",
        },
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
        "libvpx": {"deadline": "realtime", "cpu-used": "8", "b": "2M"},
        "libsvtav1": {"preset": "13", "crf": "20", "svtav1-params": "lp=1"},
        "mpeg4": {"b": "3M"},
        "mpeg2video": {"b": "3M"},
    }
    return {**quick.get(clip.codec, {}), **clip.options}


def write_audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_size_change(path: Path, first: tuple[int, int], second: tuple[int, int], each: int = 10) -> Path:
    """Two sizes, one behind the other, (height, width): raw H.264, or VP9 in a ``.webm``."""
    codec, options = "libx264", {"preset": "veryfast", "crf": "18", "bf": "0"}
    if path.suffix == ".webm":
        codec, options = "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}
        options["lag-in-frames"] = "0"  # one packet a frame
    packets: list[av.Packet] = []
    for start, (height, width) in ((0, first), (each, second)):
        encoder = av.CodecContext.create(codec, "w")
        encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
        encoder.time_base, encoder.options = Fraction(1, 25), options
        for number in range(start, start + each):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            frame.pts = number - start
            packets += encoder.encode(frame)
        packets += encoder.encode(None)
    if path.suffix != ".webm":
        path.write_bytes(b"".join(map(bytes, packets)))
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        (stream.height, stream.width), stream.pix_fmt = first, "yuv420p"
        for place, packet in enumerate(packets):
            copy = av.Packet(bytes(packet))
            copy.stream, copy.time_base, copy.is_keyframe = stream, Fraction(1, 25), packet.is_keyframe
            copy.pts = copy.dts = place
            container.mux(copy)
    return path


def write_shuffled(path: Path, codec: str, *, order: Sequence[int], damaged: int) -> Path:
    """Matroska at 25 frames per second whose frames lie, and are decoded, in ``order``; one of them is zeros."""
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt = 96, 160, pixel_format
    encoder.time_base, encoder.framerate, encoder.bit_rate = Fraction(1, 25), Fraction(25), 3_000_000
    encoder.gop_size, encoder.max_b_frames = 100, 0
    frames = [av.VideoFrame.from_ndarray(picture(number, 96, 160), format="rgb24") for number in order]
    packets = [packet for frame in [*frames, None] for packet in encoder.encode(frame)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, pixel_format
        for place, (number, packet) in enumerate(zip(order, packets, strict=True)):
            copy = av.Packet(bytes(packet.size) if number == damaged else bytes(packet))
            copy.stream, copy.time_base, copy.is_keyframe = stream, Fraction(1, 25), packet.is_keyframe
            copy.pts, copy.dts = number + len(order), place
            container.mux(copy)
    return path


VARIABLE_TIMES: Sequence[float] = tuple(
    [i * 0.1 for i in range(20)] + [2.0 + i / 30 for i in range(30)] + [3.0 + i * 0.2 for i in range(10)]
)
