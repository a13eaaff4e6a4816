"""Video decode by PyAV, which brings its own FFmpeg. Decodes what the wanted frames need and passes over the rest."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import av
import av.container
import av.video.reformatter
import av.video.stream
import torch
from av.video.reformatter import Interpolation

from qwen_vl_utils.display import DisplayTransform
from qwen_vl_utils.errors import BackendUnavailableError
from qwen_vl_utils.metadata import FrameTable, best_video_stream, decoded_frames, open_container
from qwen_vl_utils.readers.base import BackendName, FrameLoader
from qwen_vl_utils.readers.pyav_parallel import decode_runs, divides_well
from qwen_vl_utils.readers.pyav_session import Session, plan_runs, set_threads, time_of

_MERGE_GAP_PACKETS = 12
"""A run of frames joins the one before it when fewer packets lie between: draining many threads costs about as much."""

_WAITING_THREADS = 6
_WAITING_PIXELS = 12_500_000
"""Each thread of a decoder has a picture of its own, and often waits for the one that it refers to, or has got one to
pass over: with one thread a core, cores are idle. So there are some more, fewer for large pictures (6 at 1080p)."""


class PyAVReader:
    """See ``VideoReader``."""

    name: BackendName = "pyav"

    def __init__(self, *, device: str = "cpu") -> None:
        if device != "cpu":
            raise BackendUnavailableError(f"pyav decodes on the cpu, not on {device!r}; torchcodec takes a device")

    def open(self, table: FrameTable, *, num_threads: int) -> PyAVVideo:
        """See ``VideoReader``."""
        return PyAVVideo(table, num_threads=num_threads)


class PyAVVideo:
    """See ``OpenedVideo``. Exact: a frame is known by its pts, and only a frame with that very pts is given."""

    def __init__(self, table: FrameTable, *, num_threads: int) -> None:
        self._table = table
        self._num_threads = num_threads
        self._convert = _Converter(table.transform)

    @property
    def average_fps(self) -> float:
        """See ``OpenedVideo``."""
        return self._table.average_fps

    def close(self) -> None:
        """Nothing stays open between calls."""

    def frames(self, indices: Sequence[int]) -> Generator[tuple[int, FrameLoader]]:
        """See ``OpenedVideo``."""
        with closing(self._decoded(indices)) as decoded:
            for index, frame in decoded:
                yield index, self._convert.loader(frame)

    def _decoded(self, indices: Sequence[int]) -> Generator[tuple[int, av.VideoFrame]]:
        """By several decoders where the file has key frames enough, else by one with several threads."""
        if self._table.is_counted:
            return _frames_by_count(self._table, indices, num_threads=self._num_threads)
        runs = plan_runs(self._table, indices)
        if divides_well(runs, self._num_threads):
            return decode_runs(self._table, runs, num_threads=self._num_threads)
        return _frames_in_order(self._table, indices, num_threads=self._num_threads)


def _frames_in_order(
    table: FrameTable, indices: Sequence[int], *, num_threads: int
) -> Generator[tuple[int, av.VideoFrame]]:
    session = Session(table, num_threads=_with_waiting_threads(table, num_threads))
    try:
        for run in plan_runs(table, indices, merge_gap=_MERGE_GAP_PACKETS):
            yield from session.decode(run)
    finally:
        session.close()


def _frames_by_count(
    table: FrameTable, indices: Sequence[int], *, num_threads: int
) -> Generator[tuple[int, av.VideoFrame]]:
    """Frames of a stream without times: the i-th that leaves the decoder."""
    wanted = set(indices)
    with open_container(table.path) as container:
        stream = best_video_stream(container, table.path)
        set_threads(stream, _with_waiting_threads(table, num_threads))
        for ordinal, frame in enumerate(decoded_frames(container, stream)):
            if ordinal in wanted:
                yield ordinal, frame
                wanted.discard(ordinal)
            if not wanted:
                return


def _with_waiting_threads(table: FrameTable, num_threads: int) -> int:
    return num_threads + min(_WAITING_THREADS, _WAITING_PIXELS // max(1, table.height * table.width))


def nearest_frames(
    table: FrameTable, indices: Sequence[int], *, num_threads: int
) -> Iterator[tuple[int, int, FrameLoader]]:
    """For frames that no decoder gave: the nearest decodable one, as (index, its pts, loader).

    Nothing is skipped here, and one more group is decoded ahead. The next frame at or after the missing one is taken
    (what torchcodec does in the middle of a file), the last one before it when none follows.
    """
    waiting = sorted(indices)
    first = plan_runs(table, waiting[:1], extra_starts=1)[0].first if not table.is_counted else 0
    done = 0
    for found in _nearest_from(table, waiting, first, num_threads=num_threads):
        done += 1
        yield found
    if done < len(waiting) and first > 0:
        yield from _nearest_from(table, waiting[done:], 0, num_threads=num_threads)


def _nearest_from(
    table: FrameTable, indices: Sequence[int], first: int, *, num_threads: int
) -> Iterator[tuple[int, int, FrameLoader]]:
    convert = _Converter(table.transform)
    waiting = list(indices)
    before: tuple[int, av.VideoFrame] | None = None
    with open_container(table.path) as container:
        stream = best_video_stream(container, table.path)
        set_threads(stream, _with_waiting_threads(table, num_threads))
        for ordinal, frame in enumerate(_decode_from(container, stream, first)):
            time = ordinal if table.is_counted else time_of(frame)
            if time is None:
                continue
            while waiting and int(table.pts[waiting[0]]) <= time:
                yield waiting.pop(0), time, convert.loader(frame)
            if not waiting:
                return
            if before is None or time >= before[0]:  # damaged streams give times that run back
                before = (time, frame)
    if before is not None:
        for index in waiting:
            yield index, before[0], convert.loader(before[1])


class _Converter:
    """Decoded frame to RGB, upright. One swscale context for all frames of a video."""

    def __init__(self, transform: DisplayTransform) -> None:
        self._transform = transform
        self._reformatter = av.video.reformatter.VideoReformatter()

    def loader(self, frame: av.VideoFrame) -> FrameLoader:
        return lambda: self._rgb(frame)

    def _rgb(self, frame: av.VideoFrame) -> torch.Tensor:
        # Bicubic concerns the chroma planes: it equals torchcodec to the bit (bilinear differs at odd sizes).
        rgb = self._reformatter.reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        return self._transform.apply(torch.from_numpy(rgb.to_ndarray()).permute(2, 0, 1))


def _decode_from(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, first: int
) -> Iterator[av.VideoFrame]:
    if first > 0:
        packets = container.demux(stream)
        for _ in range(first):
            if next(packets, None) is None:
                return
    yield from decoded_frames(container, stream)
