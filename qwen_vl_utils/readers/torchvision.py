"""Video decode by torchvision.io.read_video, which exists up to torchvision 0.25. Only when named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import av.logging
import torch

from qwen_vl_utils.errors import BackendUnavailableError
from qwen_vl_utils.metadata import FrameTable
from qwen_vl_utils.readers.base import BackendName, FrameLoader

logger = logging.getLogger(__name__)


class TorchVisionReader:
    """See ``VideoReader``. Reads one short window of time per frame: whole files would fill the memory."""

    name: BackendName = "torchvision"

    def __init__(self, *, device: str = "cpu") -> None:
        if device != "cpu":
            raise BackendUnavailableError(f"torchvision decodes on the cpu, not on {device!r}")
        log_level = av.logging.get_level()
        try:
            from torchvision import io
        except (ImportError, OSError, RuntimeError) as cause:
            raise BackendUnavailableError("torchvision does not import", cause=cause) from cause
        finally:
            # torchvision turns PyAV's log on, in which a decoder's threads and Python's lock wait for each other.
            av.logging.set_level(log_level)
        if not hasattr(io, "read_video"):
            raise BackendUnavailableError("this torchvision has no io.read_video (it is there up to 0.25)")
        self._read_video: Callable[..., tuple[torch.Tensor, Any, Any]] = io.read_video

    def open(self, table: FrameTable, *, num_threads: int) -> TorchVisionVideo:  # noqa: ARG002 - it has no such knob
        """See ``VideoReader``."""
        return TorchVisionVideo(table, self._read_video)


class TorchVisionVideo:
    """See ``OpenedVideo``."""

    def __init__(self, table: FrameTable, read_video: Callable[..., tuple[torch.Tensor, Any, Any]]) -> None:
        self._table = table
        self._read_video = read_video

    @property
    def average_fps(self) -> float:
        """See ``OpenedVideo``."""
        return self._table.average_fps

    def close(self) -> None:
        """Nothing stays open between calls."""

    def frames(self, indices: Sequence[int]) -> Generator[tuple[int, FrameLoader]]:
        """See ``OpenedVideo``."""
        # read_video finds frames by their time, in the first video stream.
        if self._table.is_counted or self._table.probe.num_video_streams > 1:
            return
        for index in indices:
            frame = self._frame(index)
            if frame is not None:
                yield index, partial(self._table.transform.apply, frame)

    def _frame(self, index: int) -> torch.Tensor | None:
        """Frame ``index``, read together with the one before: alone, that one would be given for a missing one."""
        before = max(index - 1, 0)
        try:
            # Ticks of the stream's time base: seconds would be rounded on the way.
            frames, _, _ = self._read_video(
                str(self._table.path),
                start_pts=int(self._table.pts[before]),
                end_pts=int(self._table.pts[index]),
                pts_unit="pts",
                output_format="TCHW",
            )
        except (RuntimeError, ValueError, OSError) as cause:
            logger.debug("frame %d cannot be decoded: %s", index, cause)
            return None
        return frames[-1] if len(frames) == 1 + index - before else None
