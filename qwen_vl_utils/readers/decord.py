"""Video decode by decord. Only when named: it is unmaintained and can hang, so run it where it can be killed.

decord 0.6.0 seeks to wrong frames in open groups of pictures, HEVC, AVI and files without key pictures, and tells
nobody. So its files are read from the first frame to the last wanted one: right, and slow for a sparse sample.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from qwen_vl_utils.display import DisplayTransform
from qwen_vl_utils.errors import BackendUnavailableError
from qwen_vl_utils.metadata import FrameTable
from qwen_vl_utils.readers.base import BackendName, FrameLoader

logger = logging.getLogger(__name__)

_REWOUND_EXACTLY = ("mp4", "matroska", "avi", "flv")
"""Demuxers with an index or a plain start. decord counts the frames first and then goes back to the beginning, which
it misses in streams without an index (MPEG-TS: the first group of pictures is lost)."""

_SAME_TIME_SECONDS = 2e-3
"""Above the rounding of decord's single-precision seconds in a video of four hours, below any frame's duration."""

_NO_STAND_INS = 1e-6
"""Share of a file's frames for which decord may give a neighbour in place of one that does not decode: none."""


class DecordReader:
    """See ``VideoReader``."""

    name: BackendName = "decord"

    def __init__(self, *, device: str = "cpu") -> None:
        if device != "cpu":
            raise BackendUnavailableError(f"decord decodes on the cpu here, not on {device!r}")
        try:
            import decord
        except (ImportError, OSError, RuntimeError) as cause:
            raise BackendUnavailableError("decord does not import", cause=cause) from cause
        self._reader_class: Any = decord.VideoReader
        # Its own two have no common base but Exception; the others are raised by its Python side.
        own = (decord.DECORDError, decord.DECORDLimitReachedError)
        self._failures = (*own, RuntimeError, AssertionError, StopIteration)

    def open(self, table: FrameTable, *, num_threads: int) -> DecordVideo:
        """See ``VideoReader``."""
        return DecordVideo(table, self._reader(table, num_threads), self._failures)

    def _reader(self, table: FrameTable, num_threads: int) -> Any:
        """A reader for which an index means the frame that ``table`` means; None where decord has none."""
        if table.is_counted or not any(name in table.probe.format_name for name in _REWOUND_EXACTLY):
            return None
        try:
            reader = self._reader_class(str(table.path), num_threads=num_threads, fault_tol=_NO_STAND_INS)
        except self._failures as cause:
            logger.warning("%s: decord cannot open it: %s", table.path.name, cause)
            return None
        if len(reader) != table.num_frames:
            text = "%s: decord counts %d frames, its packets %d"
            logger.warning(text, table.path.name, len(reader), table.num_frames)
            return None
        seconds = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        if np.abs(seconds - table.times()).max() > _SAME_TIME_SECONDS:
            # FFmpeg 4 and 8 read other times from the same packets (AVI with B pictures): other frames, too.
            logger.warning("%s: decord's times are not its packets'", table.path.name)
            return None
        return reader


class DecordVideo:
    """See ``OpenedVideo``. Without a reader (it could not open the file) it gives no frame."""

    def __init__(self, table: FrameTable, reader: Any, failures: tuple[type[Exception], ...]) -> None:
        self._table = table
        self._reader = reader
        self._failures = failures

    @property
    def average_fps(self) -> float:
        """See ``OpenedVideo``."""
        # decord tells the header's rate; the packets' is what every other decoder here tells.
        return self._table.average_fps

    def close(self) -> None:
        """Let go of the file."""
        self._reader = None

    def frames(self, indices: Sequence[int]) -> Generator[tuple[int, FrameLoader]]:
        """See ``OpenedVideo``."""
        if self._reader is None:
            return
        transform = self._table.transform.after(_applied(self._table))
        wanted = frozenset(indices)
        for index in range(indices[-1] + 1):
            try:
                frame = self._reader.next()
            except self._failures as cause:
                logger.debug("frame %d cannot be decoded: %s", index, cause)
                return
            if index in wanted:
                yield index, partial(_load, frame, transform)


def _load(frame: Any, transform: DisplayTransform) -> torch.Tensor:
    return transform.apply(torch.from_numpy(frame.asnumpy()).permute(2, 0, 1))


def _applied(table: FrameTable) -> DisplayTransform:
    """The turn that decord made already: MP4's, by the angle of the matrix's first row, a mirroring left out."""
    if "mp4" not in table.probe.format_name:  # its FFmpeg knows no other container's
        return DisplayTransform()
    turns = {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}  # clockwise
    return DisplayTransform.from_rotation(-turns[table.transform.a, table.transform.b])
