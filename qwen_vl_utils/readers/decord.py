"""Video decode by decord. Only when named: it is unmaintained and can hang, so run it where it can be killed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from qwen_vl_utils.display import DisplayTransform
from qwen_vl_utils.errors import BackendUnavailableError
from qwen_vl_utils.metadata import FrameTable
from qwen_vl_utils.readers.base import BackendName, FrameLoader

logger = logging.getLogger(__name__)


class DecordReader:
    """See ``VideoReader``. decord 0.6.0 turns frames by the display matrix itself, without its mirroring."""

    name: BackendName = "decord"

    def __init__(self, *, device: str = "cpu") -> None:
        if device != "cpu":
            raise BackendUnavailableError(f"decord decodes on the cpu here, not on {device!r}")
        try:
            import decord
        except (ImportError, OSError, RuntimeError) as cause:
            raise BackendUnavailableError("decord does not import", cause=cause) from cause
        self._reader_class: Any = decord.VideoReader

    def open(self, table: FrameTable, *, num_threads: int) -> DecordVideo:
        """See ``VideoReader``."""
        reader = None if table.is_counted else self._reader_class(str(table.path), num_threads=num_threads)
        if reader is not None and len(reader) != table.num_frames:
            text = "%s: decord counts %d frames, its packets %d"
            logger.warning(text, table.path.name, len(reader), table.num_frames)
            reader = None
        return DecordVideo(table, reader)


class DecordVideo:
    """See ``OpenedVideo``. Without a reader (its count differs) it gives no frame."""

    def __init__(self, table: FrameTable, reader: Any) -> None:
        self._table = table
        self._reader = reader

    @property
    def average_fps(self) -> float:
        """See ``OpenedVideo``."""
        # decord tells the header's rate; the packets' is what every other decoder here tells.
        return self._table.average_fps

    def close(self) -> None:
        """Let go of the file."""
        self._reader = None

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, FrameLoader]]:
        """See ``OpenedVideo``."""
        if self._reader is None:
            return
        turned = DisplayTransform.from_rotation(-self._table.transform.rotation_degrees)
        transform = self._table.transform.after(turned)
        for index in indices:
            frame = self._frame(index)
            if frame is not None:
                yield index, partial(transform.apply, frame)

    def _frame(self, index: int) -> torch.Tensor | None:
        try:
            return torch.from_numpy(self._reader[index].asnumpy()).permute(2, 0, 1)
        except (RuntimeError, IndexError) as cause:  # decord.DECORDError is a RuntimeError
            logger.debug("frame %d cannot be decoded: %s", index, cause)
            return None
