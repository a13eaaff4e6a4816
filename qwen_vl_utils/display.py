"""How stored frames are turned to be shown: the display matrix. Owns orientation; knows no decoder.

Sources: ISO/IEC 14496-12 (mvhd and tkhd matrices), FFmpeg ``libavutil/display.h`` (sign of the angle).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

_MAX_MOOV_BYTES = 64 * 2**20
_FIXED_POINT = 65536.0


@dataclass(frozen=True, slots=True)
class DisplayTransform:
    """One of the eight ways to place a picture: row vector (x, y) times ((a, b), (c, d)), entries in -1, 0, 1."""

    a: int = 1
    b: int = 0
    c: int = 0
    d: int = 1

    @classmethod
    def from_matrix(cls, a: float, b: float, c: float, d: float) -> DisplayTransform:
        """The nearest of the eight; identity for a degenerate matrix."""
        if abs(a * d) >= abs(b * c):
            return cls(_sign(a), 0, 0, _sign(d)) if a and d else cls()
        return cls(0, _sign(b), _sign(c), 0)

    @classmethod
    def from_rotation(cls, degrees_counter_clockwise: float) -> DisplayTransform:
        """FFmpeg's ``av_display_rotation_get``: the angle by which to turn counter-clockwise, to the nearest 90."""
        turns = round(degrees_counter_clockwise / 90) % 4
        return (cls(1, 0, 0, 1), cls(0, -1, 1, 0), cls(-1, 0, 0, -1), cls(0, 1, -1, 0))[turns]

    @property
    def swaps_sides(self) -> bool:
        """Whether height and width change places."""
        return self.a == 0

    @property
    def is_identity(self) -> bool:
        """Whether nothing is to be done."""
        return self == DisplayTransform()

    @property
    def rotation_degrees(self) -> int:
        """Clockwise turn in 0, 90, 180, 270 that remains when a mirroring is taken out (mirrored left-right first)."""
        turns = {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}
        sign = -1 if self.is_mirrored else 1
        return turns[(sign * self.a, sign * self.b)]

    @property
    def is_mirrored(self) -> bool:
        """Whether it is more than a rotation."""
        return self.a * self.d - self.b * self.c < 0

    def after(self, applied: DisplayTransform) -> DisplayTransform:
        """What is left to do on a picture to which ``applied`` was done already (transpose is the inverse)."""
        p = (applied.a, applied.c, applied.b, applied.d)
        return DisplayTransform(
            p[0] * self.a + p[1] * self.c,
            p[0] * self.b + p[1] * self.d,
            p[2] * self.a + p[3] * self.c,
            p[2] * self.b + p[3] * self.d,
        )

    def apply(self, frame: torch.Tensor) -> torch.Tensor:
        """``frame`` (3, H, W) turned; a view where torch can make one."""
        if self.is_identity:
            return frame
        mirror_x, mirror_y = (self.c, self.b) if self.swaps_sides else (self.a, self.d)
        turned = frame.transpose(1, 2) if self.swaps_sides else frame
        dims = [dim for dim, sign in ((2, mirror_x), (1, mirror_y)) if sign < 0]
        return turned.flip(dims) if dims else turned


def _sign(value: float) -> int:
    return -1 if value < 0 else 1


def mp4_display_transform(path: Path, video_ordinal: int) -> DisplayTransform | None:
    """Transform of the ``video_ordinal``-th video track of an ISO media file (mp4, mov, 3gp).

    Read from the container itself, because PyAV shows the matrix on decoded frames only, and there without its
    mirroring. None where the file holds no readable track header; never raises for a malformed one.
    """
    try:
        with path.open("rb") as file:
            return _find_transform(file, path.stat().st_size, video_ordinal)
    except (OSError, struct.error, ValueError):
        return None


def _find_transform(file: BinaryIO, size: int, video_ordinal: int) -> DisplayTransform | None:
    for kind, start, end in _file_boxes(file, size):
        if kind != b"moov" or end - start > _MAX_MOOV_BYTES:
            continue
        file.seek(start)
        moov = memoryview(file.read(end - start))
        tracks = [m for m in (_track_matrix(t) for k, t in _boxes(moov) if k == b"trak") if m is not None]
        if video_ordinal >= len(tracks):
            return None
        movie = next((_matrix(body, _MVHD_MATRIX) for k, body in _boxes(moov) if k == b"mvhd"), _IDENTITY)
        return DisplayTransform.from_matrix(*_multiply(tracks[video_ordinal], movie))
    return None


_Matrix = tuple[float, float, float, float]
_IDENTITY: _Matrix = (1.0, 0.0, 0.0, 1.0)
# Offsets of the matrix behind the version byte: version 0 has 32-bit times, version 1 has 64-bit ones.
_MVHD_MATRIX = (36, 48)
_TKHD_MATRIX = (40, 52)


def _track_matrix(trak: memoryview) -> _Matrix | None:
    """The matrix of a video track, None for any other track."""
    boxes = dict(_boxes(trak))
    handler = dict(_boxes(boxes.get(b"mdia", memoryview(b"")))).get(b"hdlr")
    if handler is None or bytes(handler[8:12]) != b"vide" or b"tkhd" not in boxes:
        return None
    return _matrix(boxes[b"tkhd"], _TKHD_MATRIX)


def _matrix(body: memoryview, offsets: tuple[int, int]) -> _Matrix:
    offset = offsets[1 if body[0] == 1 else 0]
    a, b, _, c, d = struct.unpack_from(">5i", body, offset)
    return a / _FIXED_POINT, b / _FIXED_POINT, c / _FIXED_POINT, d / _FIXED_POINT


def _multiply(first: _Matrix, second: _Matrix) -> _Matrix:
    (a, b, c, d), (e, f, g, h) = first, second
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    position = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        header = 8
        if size == 1:
            size, header = struct.unpack_from(">Q", data, position + 8)[0], 16
        elif size == 0:
            size = len(data) - position
        if size < header:
            return
        yield kind, data[position + header : position + size]
        position += size


def _file_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Top-level boxes as (kind, first byte of the body, byte behind the body)."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if length == 1:
            length, header = struct.unpack(">Q", file.read(8))[0], 16
        elif length == 0:
            length = size - position
        if length < header:
            return
        yield kind, position + header, min(position + length, size)
        position += length
