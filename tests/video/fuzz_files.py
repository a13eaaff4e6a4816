"""Damaged files for the fuzz run: small real ones, and mutations that a seed and a number alone decide."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from encoding import ordinary_scheduling
from video_clips import image_bytes

HEAD_BYTES = 1024
INTERESTING = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
"""Values at which arithmetic on counts, sizes and times goes wrong, where it does."""


@dataclass(frozen=True)
class Recipe:
    """How a small whole file is made."""

    codec: str
    container: str
    pixel_format: str = "yuv420p"
    options: Mapping[str, str] | None = None
    container_options: Mapping[str, str] | None = None


# Without rate control these two encoders give the same bytes each time.
X264 = {"preset": "ultrafast", "qp": "20", "bf": "2"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=error:pools=none:frame-threads=1:qp=20"}

RECIPES = {
    "h264.mp4": Recipe("libx264", "mp4", options=X264),
    "front.mov": Recipe("mpeg4", "mov", container_options={"movflags": "faststart"}),
    "fragments.mp4": Recipe("libx264", "mp4", options=X264, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "av1.mp4": Recipe("libsvtav1", "mp4", options={"preset": "13", "svtav1-params": "lp=1"}),
    "hevc.mkv": Recipe("libx265", "matroska", options=X265),
    "vp9.webm": Recipe("libvpx-vp9", "webm", options={"deadline": "realtime", "cpu-used": "8"}),
    "live.webm": Recipe("libvpx", "webm", container_options={"live": "1"}),
    "mpeg4.avi": Recipe("mpeg4", "avi"),
    "mjpeg.avi": Recipe("mjpeg", "avi", "yuvj420p"),
    "h264.ts": Recipe("libx264", "mpegts", options=X264),
    "mpeg2.mpg": Recipe("mpeg2video", "mpeg"),
    "h264.flv": Recipe("libx264", "flv", options=X264),
    "vp8.ogv": Recipe("libvpx", "ogg"),
    "mpeg4.3gp": Recipe("mpeg4", "3gp"),
    "prores.mov": Recipe("prores_ks", "mov", "yuv422p10le"),
    "gif.gif": Recipe("gif", "gif", "rgb8"),
}
IMAGES = {"still.jpg": "JPEG", "still.png": "PNG", "still.webp": "WEBP"}
SIDE = 64
NUM_FRAMES = 16


def whole_files(folder: Path) -> dict[str, bytes]:
    """The files that mutations start from, by name; the same bytes each time on one machine."""
    files = {name: _clip(folder / name, recipe) for name, recipe in RECIPES.items()}
    return files | {name: image_bytes(kind, width=SIDE, height=SIDE) for name, kind in IMAGES.items()}


def _clip(path: Path, recipe: Recipe) -> bytes:
    # bitexact: no random identifiers, no versions.
    options = {"fflags": "+bitexact", **(recipe.container_options or {})}
    with ordinary_scheduling(), av.open(str(path), "w", format=recipe.container, options=options) as output:
        stream = output.add_stream(recipe.codec, rate=25, options=dict(recipe.options or {}))
        stream.width = stream.height = SIDE
        stream.pix_fmt = recipe.pixel_format
        stream.codec_context.gop_size = 6
        for number in range(NUM_FRAMES):
            y, x = np.mgrid[0:SIDE, 0:SIDE]
            picture = np.stack([x * 4, y * 4, (x + y + 16 * number) % 256], axis=-1).astype(np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return path.read_bytes()


@dataclass(frozen=True)
class Mutant:
    """A damaged file and how it came about."""

    content: bytes
    story: str


def mutant(files: Mapping[str, bytes], seed: int, number: int) -> Mutant:
    """Mutation ``number`` of run ``seed``: nothing else decides it."""
    rng = random.Random(f"{seed}/{number}")
    name = sorted(files)[number % len(files)]
    content = bytearray(files[name])
    steps = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        change = rng.choice(CHANGES)
        steps.append(change.__name__.strip("_"))
        if change is _splice:
            content = _splice(content, bytearray(files[rng.choice(sorted(files))]), rng)
        else:
            content = change(content, rng)
    return Mutant(bytes(content), f"{name}: {', '.join(steps)}")


Change = Callable[[bytearray, random.Random], bytearray]


def _flip_bits(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 2, 8, 64))):
        if content:
            content[_place(content, rng)] ^= 1 << rng.randrange(8)
    return content


def _set_word(content: bytearray, rng: random.Random) -> bytearray:
    place = _place(content, rng)
    form = rng.choice((">I", "<I", ">H", "B", ">Q"))
    value = rng.choice(INTERESTING) % (1 << 8 * struct.calcsize(form))
    content[place : place + struct.calcsize(form)] = struct.pack(form, value)
    return content


def _delete(content: bytearray, rng: random.Random) -> bytearray:
    begin, end = _chunk(content, rng)
    del content[begin:end]
    return content


def _duplicate(content: bytearray, rng: random.Random) -> bytearray:
    begin, end = _chunk(content, rng)
    content[end:end] = content[begin:end] * rng.choice((1, 1, 2, 50))
    return content


def _insert(content: bytearray, rng: random.Random) -> bytearray:
    place = _place(content, rng)
    content[place:place] = rng.randbytes(rng.choice((1, 4, 100, 5000)))
    return content


def _blank(content: bytearray, rng: random.Random) -> bytearray:
    begin, end = _chunk(content, rng)
    content[begin:end] = bytes([rng.choice((0, 0xFF))]) * (end - begin)
    return content


def _truncate(content: bytearray, rng: random.Random) -> bytearray:
    del content[_place(content, rng) :]
    return content


def _splice(content: bytearray, other: bytearray, rng: random.Random) -> bytearray:
    return content[: _place(content, rng)] + other[_place(other, rng) :]


def _resize_field(content: bytearray, rng: random.Random) -> bytearray:
    """Change the size of a box, element, chunk or segment, whatever the container has."""
    fields = list(_size_fields(content))
    if not fields:
        return _set_word(content, rng)
    field = rng.choice(fields)
    size = int.from_bytes(content[field.place : field.place + field.width], field.order)
    value = rng.choice((*INTERESTING, size + 1, size - 1, size * 2, size // 2, size + 8, len(content)))
    mark = size & field.mask
    value = value & ((1 << 8 * field.width) - 1) & ~field.mask | mark
    content[field.place : field.place + field.width] = value.to_bytes(field.width, field.order)
    return content


def _set_box_word(content: bytearray, rng: random.Random) -> bytearray:
    """Change a word in a small box or element: counts, times and scales live there."""
    fields = [field for field in _size_fields(content) if field.num_bytes < HEAD_BYTES]
    if not fields:
        return _set_word(content, rng)
    field = rng.choice(fields)
    place = field.place + field.width + 4 * rng.randrange(field.num_bytes // 4 + 1)
    content[place : place + 4] = rng.choice(INTERESTING).to_bytes(4, "big")
    return content


def _rewrite_png(content: bytearray, rng: random.Random) -> bytearray:
    """Change a chunk of a PNG and make its check sum right again: a wrong one is refused at once."""
    chunks = list(_png_chunks(content)) if content.startswith(b"\x89PNG") else []
    if not chunks:
        return _set_word(content, rng)
    place, size = rng.choice(chunks)
    for _ in range(rng.choice((1, 2, 4))):
        if size:
            content[place + 8 + rng.randrange(size)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    checksum = zlib.crc32(content[place + 4 : place + 8 + size])
    content[place + 8 + size : place + 12 + size] = checksum.to_bytes(4, "big")
    return content


CHANGES: tuple[Callable[..., bytearray], ...] = (
    *(_flip_bits, _set_word, _delete, _duplicate, _insert, _blank, _truncate, _splice),
    *(_resize_field, _resize_field, _set_box_word, _set_box_word, _set_box_word, _rewrite_png),
)


def _place(content: bytearray, rng: random.Random) -> int:
    """A byte, as often in the head, where the tables are, as anywhere."""
    reach = min(len(content), HEAD_BYTES) if rng.random() < 0.5 else len(content)
    return rng.randrange(reach) if reach else 0


def _chunk(content: bytearray, rng: random.Random) -> tuple[int, int]:
    begin = _place(content, rng)
    return begin, begin + rng.choice((1, 4, 16, 188, 1000))


@dataclass(frozen=True)
class SizeField:
    """Where a size stands; ``mask`` are bits that say how wide it is; ``num_bytes`` is the size that it tells."""

    place: int
    width: int
    order: str
    num_bytes: int
    mask: int = 0


def _size_fields(content: bytearray) -> Iterator[SizeField]:
    if content[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        yield from _boxes(content, 0, len(content))
    elif content.startswith(b"\x1a\x45\xdf\xa3"):
        yield from _elements(content, 0, len(content))
    elif content.startswith(b"RIFF"):
        yield from _riff(content, 0, len(content))
    elif content.startswith(b"FLV"):
        yield from _flv_tags(content)
    elif content.startswith(b"\x89PNG"):
        for place, size in _png_chunks(content):
            yield SizeField(place, 4, "big", size)
    elif content.startswith(b"\xff\xd8"):
        yield from _jpeg_segments(content)


PARENT_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"mvex", b"moof", b"traf", b"udta"}


def _boxes(content: bytearray, place: int, end: int) -> Iterator[SizeField]:
    """ISO 14496-12."""
    while place + 8 <= end:
        size = int.from_bytes(content[place : place + 4], "big")
        yield SizeField(place, 4, "big", size)
        if size < 8:
            return
        if bytes(content[place + 4 : place + 8]) in PARENT_BOXES:
            yield from _boxes(content, place + 8, min(end, place + size))
        place += size


PARENT_ELEMENTS = {0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675, 0x1549A966, 0x114D9B74, 0x1C53BB6B, 0xA0, 0x1A45DFA3}


def _elements(content: bytearray, place: int, end: int) -> Iterator[SizeField]:
    """Matroska's EBML (RFC 8794)."""
    while place + 2 <= end:
        id_width = _vint_width(content[place])
        size_place = place + id_width
        if size_place >= end or not content[place]:
            return
        width = _vint_width(content[size_place])
        marker = 1 << 7 * width
        raw = int.from_bytes(content[size_place : size_place + width], "big")
        size = raw & (marker - 1)
        yield SizeField(size_place, width, "big", size, marker)
        body = size_place + width
        identity = int.from_bytes(content[place : place + id_width], "big")
        stop = end if size == marker - 1 else min(end, body + size)
        if identity in PARENT_ELEMENTS:
            yield from _elements(content, body, stop)
        place = stop


def _vint_width(first: int) -> int:
    return max(1, 9 - first.bit_length())


def _riff(content: bytearray, place: int, end: int) -> Iterator[SizeField]:
    """AVI, WebP."""
    while place + 8 <= end:
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        yield SizeField(place + 4, 4, "little", size)
        if bytes(content[place : place + 4]) in (b"RIFF", b"LIST"):
            yield from _riff(content, place + 12, min(end, place + 8 + size))
        place += 8 + size + size % 2


def _flv_tags(content: bytearray) -> Iterator[SizeField]:
    place = 13
    while place + 11 <= len(content):
        size = int.from_bytes(content[place + 1 : place + 4], "big")
        yield SizeField(place + 1, 3, "big", size)
        place += 15 + size


def _png_chunks(content: bytearray) -> Iterator[tuple[int, int]]:
    place = 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        if place + 12 + size > len(content):
            return
        yield place, size
        place += 12 + size


def _jpeg_segments(content: bytearray) -> Iterator[SizeField]:
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != 0xDA:
        size = int.from_bytes(content[place + 2 : place + 4], "big")
        yield SizeField(place + 2, 2, "big", size)
        place += 2 + max(2, size)
