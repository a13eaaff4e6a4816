"""Video decode by torchcodec, which needs FFmpeg's shared libraries on the machine; on CUDA when asked."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwen_vl_utils.display import DisplayTransform
from qwen_vl_utils.errors import BackendUnavailableError
from qwen_vl_utils.metadata import FrameTable
from qwen_vl_utils.readers.base import BackendName, FrameLoader

if TYPE_CHECKING:
    from torchcodec.decoders import VideoDecoder

logger = logging.getLogger(__name__)

# torchcodec raises bare RuntimeError, ValueError and IndexError from its C++ side.
_FAILURES = (RuntimeError, ValueError, IndexError)

_SAME_TIME_SECONDS = 5e-4
"""Above any rounding of seconds, below any frame's duration."""

_CONTAINERS_WITHOUT_INDEX = frozenset({"mpegts", "mpeg"})
"""There torchcodec's seeks miss: it gives later frames or, of HEVC, grey pictures with the right time."""


class TorchCodecReader:
    """See ``VideoReader``. Frames are taken one at a time, so that only one is ever held at full size."""

    name: BackendName = "torchcodec"

    def __init__(self, *, device: str = "cpu") -> None:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as cause:
            raise BackendUnavailableError("torchcodec does not load", cause=cause) from cause
        self._decoder_class = VideoDecoder
        self._device = device

    def open(self, table: FrameTable, *, num_threads: int) -> TorchCodecVideo:
        """See ``VideoReader``."""
        return TorchCodecVideo(table, self._decoder(table, num_threads))

    def _decoder(self, table: FrameTable, num_threads: int) -> VideoDecoder | None:
        """A decoder that counts the frames that ``table`` counts; None otherwise: an index would mean another frame."""
        if table.is_counted or table.probe.format_name in _CONTAINERS_WITHOUT_INDEX:
            return None
        try:
            decoder = self._decoder_class(
                str(table.path),
                stream_index=table.probe.stream_index,
                num_ffmpeg_threads=num_threads,
                device=self._device,
                seek_mode="exact",
            )
        except _FAILURES as cause:
            logger.warning("%s: torchcodec cannot open it: %s", table.path.name, cause)
            return None
        if len(decoder) != table.num_frames:
            text = "%s: torchcodec counts %d frames, its packets %d"
            logger.warning(text, table.path.name, len(decoder), table.num_frames)
            return None
        begin = decoder.metadata.begin_stream_seconds or 0.0
        if abs(begin - table.start_seconds) > _SAME_TIME_SECONDS:
            # FFmpeg 5 and 8 read other times from the same packets (AVI with B pictures): other frames, too.
            logger.warning(
                "%s: torchcodec begins at %.3f s, its packets at %.3f s", table.path.name, begin, table.start_seconds
            )
            return None
        return decoder


class TorchCodecVideo:
    """See ``OpenedVideo``. Without a decoder (it could not open the file) it gives no frame."""

    def __init__(self, table: FrameTable, decoder: VideoDecoder | None) -> None:
        self._table = table
        self._decoder = decoder

    @property
    def average_fps(self) -> float:
        """See ``OpenedVideo``."""
        rate = self._decoder.metadata.average_fps if self._decoder is not None else None
        return float(rate) if rate else self._table.average_fps

    def close(self) -> None:
        """Let go of the file."""
        self._decoder = None

    def frames(self, indices: Sequence[int]) -> Generator[tuple[int, FrameLoader]]:
        """See ``OpenedVideo``."""
        decoder = self._decoder
        if decoder is None:
            return
        transform = self._table.transform.after(_applied(decoder.metadata))
        for index in indices:
            frame = _frame(decoder, index, seconds=float(int(self._table.pts[index]) * self._table.time_base))
            if frame is not None:
                yield index, _Loader(frame, transform)


def check_device(device: str, clip: Path) -> None:
    """Decode the first frame of ``clip`` (H.264, 8 bits) on ``device``, a CUDA device.

    Making a reader loads the library only: a process that will fork must not wake CUDA, and this does.
    Raises BackendUnavailableError with the reason.
    """
    from torchcodec.decoders import VideoDecoder

    if not torch.cuda.is_available():
        raise BackendUnavailableError("PyTorch sees no CUDA device")
    try:
        decoder = VideoDecoder(str(clip), device=device)
        decoder.get_frame_at(0)
    except _FAILURES as cause:
        raise BackendUnavailableError("this torchcodec does not decode on CUDA", cause=cause) from cause
    if decoder.cpu_fallback:
        raise BackendUnavailableError("torchcodec decodes on the CPU instead", cause=str(decoder.cpu_fallback))


def _frame(decoder: VideoDecoder, index: int, *, seconds: float) -> torch.Tensor | None:
    """Frame ``index`` if it is the one shown at ``seconds`` on the container's clock."""
    try:
        frame = decoder.get_frame_at(index)
    except _FAILURES as cause:
        logger.debug("frame %d cannot be decoded: %s", index, cause)
        return None
    # At a gap, and where a seek lands elsewhere, torchcodec gives another frame.
    data: torch.Tensor = frame.data
    return data if abs(frame.pts_seconds - seconds) < _SAME_TIME_SECONDS else None


class _Loader:
    """Turns a decoded frame; a class rather than a closure so that a loop variable cannot be captured late."""

    def __init__(self, frame: torch.Tensor, transform: DisplayTransform) -> None:
        self._frame = frame
        self._transform = transform

    def __call__(self) -> torch.Tensor:
        return self._transform.apply(self._frame.cpu())


def _applied(metadata: Any) -> DisplayTransform:
    """The turn that torchcodec made already: the display matrix reduced to a rotation, a mirroring left out."""
    rotation = getattr(metadata, "rotation", None)
    return DisplayTransform.from_rotation(rotation) if rotation else DisplayTransform()
