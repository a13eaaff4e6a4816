"""Video decode by PyAV, which brings its own FFmpeg. Decodes what the wanted frames need and passes over the rest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import av.container
import av.error
import av.video.reformatter
import av.video.stream
import numpy as np
import torch
from av.video.reformatter import Interpolation

from qwen_vl_utils.display import DisplayTransform
from qwen_vl_utils.errors import BackendUnavailableError
from qwen_vl_utils.metadata import FrameTable, best_video_stream, decoded_frames, open_container
from qwen_vl_utils.readers.base import BackendName, FrameLoader

logger = logging.getLogger(__name__)

_MERGE_GAP_PACKETS = 12
"""A run of frames joins the one before it when fewer packets lie between: draining the decoder costs about as much."""

_WAITING_THREADS = 6
_WAITING_PIXELS = 12_500_000
"""Each thread has a picture of its own and often waits for the one that it refers to, or has got one to pass over: with
one thread a core, cores are idle. So there are some more, fewer for large pictures (1080p: 6, 4K: 1)."""

_SEEK_GAP_BYTES = 8 * 2**20
"""Below this, reading packets and dropping them is cheaper than a seek, and cannot miss."""

# Codecs in which the decoder's "non-reference" is exact: H.264 nal_ref_idc 0, MPEG B pictures. HEVC only with a single
# temporal layer (see _can_skip_nonref): a sub-layer non-reference picture may be a reference for a higher layer.
_NONREF_CODECS = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video"})


_HVCC_BYTES = 23


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """Packets ``first``..``last`` (decode order) to decode from a fresh start, for the frames ``wanted`` (indices)."""

    first: int
    last: int
    wanted: tuple[int, ...]


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

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, FrameLoader]]:
        """See ``OpenedVideo``."""
        if self._table.is_counted:
            yield from _frames_by_count(self._table, indices, self._convert, num_threads=self._num_threads)
            return
        session = _Session(self._table, num_threads=self._num_threads)
        try:
            for run in plan_runs(self._table, indices):
                for index, frame in session.decode(run):
                    yield index, self._convert.loader(frame)
        finally:
            session.close()


def plan_runs(table: FrameTable, indices: Sequence[int], *, extra_starts: int = 0) -> list[DecodeRun]:
    """The packets to decode for ``indices`` (ascending), as runs that each begin where decoding may start.

    The start of a frame is the last key packet that neither lies behind it in the file nor is shown after it: an open
    group's leading pictures thus start at the group before. ``extra_starts`` goes back that many key packets more.
    """
    needs: list[tuple[int, int, int]] = []
    for index in indices:
        position = int(table.decode_order[index])
        start = _start_for(table, position, int(table.pts[index]), extra_starts)
        needs.append((start, position, index))
    runs: list[DecodeRun] = []
    for start, position, index in sorted(needs):
        if runs and start <= runs[-1].last + _MERGE_GAP_PACKETS:
            before = runs[-1]
            runs[-1] = DecodeRun(before.first, max(before.last, position), (*before.wanted, index))
        else:
            runs.append(DecodeRun(start, position, (index,)))
    return runs


def _start_for(table: FrameTable, position: int, pts: int, extra_starts: int) -> int:
    candidate = int(np.searchsorted(table.key_decode_order, position, side="right")) - 1
    while candidate >= 0 and int(table.key_pts[candidate]) > pts:
        candidate -= 1
    candidate -= extra_starts
    # Packets before the first key packet are given to the decoder too: it knows best what to make of them.
    return int(table.key_decode_order[candidate]) if candidate > 0 else 0


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
        _set_threads(stream, num_threads)
        for ordinal, frame in enumerate(_decode_from(container, stream, first)):
            time = ordinal if table.is_counted else _time(frame)
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


class _Session:
    """One open file that is read forward through the runs; knows at which packet it is."""

    def __init__(self, table: FrameTable, *, num_threads: int) -> None:
        self._table = table
        self._num_threads = num_threads
        self._open()

    def _open(self) -> None:
        self._context = open_container(self._table.path)
        self._container = self._context.__enter__()
        self._stream = best_video_stream(self._container, self._table.path)
        _set_threads(self._stream, self._num_threads)
        self._packets = self._container.demux(self._stream)
        self._position = 0
        self._skips = can_skip_nonref(self._stream.codec_context)
        self._is_fresh = True

    def close(self) -> None:
        """Let go of the file."""
        self._context.__exit__(None, None, None)

    def decode(self, run: DecodeRun) -> Iterator[tuple[int, av.VideoFrame]]:
        """The wanted frames of ``run`` that decode, as soon as they do."""
        codec = self._stream.codec_context
        if not self._is_fresh:
            codec.flush_buffers()
        self._is_fresh = False
        self._move_to(run.first)
        wanted: dict[int, list[int]] = {}
        for index in run.wanted:
            wanted.setdefault(int(self._table.pts[index]), []).append(index)
        targets = frozenset(wanted)
        for packet in self._read(run.last):
            if self._skips:
                codec.skip_frame = "DEFAULT" if _time(packet) in targets else "NONREF"
            for frame in _decode(codec, packet):
                yield from ((index, frame) for index in _taken(wanted, frame))
        for frame in _decode(codec, None):
            yield from ((index, frame) for index in _taken(wanted, frame))

    def _read(self, last: int) -> Iterator[av.Packet]:
        while self._position <= last:
            try:
                packet = next(self._packets, None)
            except av.error.FFmpegError as cause:
                logger.debug("%s: reading ends early: %s", self._table.path.name, cause)
                return
            if packet is None or _is_flush_marker(packet):
                return
            self._position += 1
            yield packet

    def _move_to(self, first: int) -> None:
        if self._bytes_to(first) > _SEEK_GAP_BYTES and not self._seek(first):
            logger.debug("%s: seek missed, reading on from the start", self._table.path.name)
            self.close()
            self._open()
            self._is_fresh = False
        for _ in self._read(first - 1):
            pass

    def _bytes_to(self, first: int) -> float:
        share = (first - self._position) / max(1, self._table.num_packets)
        return share * self._table.probe.size_bytes

    def _seek(self, first: int) -> bool:
        """Jump to key packet ``first``; True when the file is now at a key packet that is known and not behind it."""
        keys = dict(zip(self._table.key_pts.tolist(), self._table.key_decode_order.tolist(), strict=True))
        goal = next((pts for pts, order in keys.items() if order == first), None)
        if goal is None:
            return False
        try:
            self._container.seek(goal, stream=self._stream, backward=True)
            self._packets = self._container.demux(self._stream)
            packet = next(self._packets, None)
        except av.error.FFmpegError:
            return False
        if packet is None or not packet.is_keyframe:
            return False
        time = _time(packet)
        position = keys.get(time) if time is not None else None
        if position is None or position > first:
            return False
        if position == first:
            self._packets = _chain(packet, self._packets)
        self._position = position + (position != first)
        return True


def _taken(wanted: dict[int, list[int]], frame: av.VideoFrame) -> list[int]:
    """The indices that ``frame`` is wanted for; each is given once."""
    time = _time(frame)
    return wanted.pop(time, []) if time is not None else []


def _chain(first: av.Packet, rest: Iterator[av.Packet]) -> Iterator[av.Packet]:
    yield first
    yield from rest


def _frames_by_count(
    table: FrameTable, indices: Sequence[int], convert: _Converter, *, num_threads: int
) -> Iterator[tuple[int, FrameLoader]]:
    """Frames of a stream without times: the i-th that leaves the decoder."""
    wanted = set(indices)
    with open_container(table.path) as container:
        stream = best_video_stream(container, table.path)
        _set_threads(stream, num_threads)
        for ordinal, frame in enumerate(decoded_frames(container, stream)):
            if ordinal in wanted:
                yield ordinal, convert.loader(frame)
                wanted.discard(ordinal)
            if not wanted:
                return


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


def can_skip_nonref(codec: av.VideoCodecContext) -> bool:
    """Whether pictures that nothing refers to can be told, and passed over without touching the others."""
    name = codec.codec.canonical_name
    if name not in _NONREF_CODECS:
        return False
    return name != "hevc" or _hevc_temporal_layers(codec.extradata) == 1


def _hevc_temporal_layers(extradata: bytes | None) -> int | None:
    """Field numTemporalLayers of an HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3.1); None when unknown."""
    if not extradata or len(extradata) < _HVCC_BYTES or extradata[0] != 1:
        return None
    return (extradata[21] >> 3) & 7 or None


def _set_threads(stream: av.video.stream.VideoStream, num_threads: int) -> None:
    stream.codec_context.thread_type = "AUTO"
    pixels = max(1, stream.codec_context.height * stream.codec_context.width)
    stream.codec_context.thread_count = num_threads + min(_WAITING_THREADS, _WAITING_PIXELS // pixels)


def _decode_from(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, first: int
) -> Iterator[av.VideoFrame]:
    if first > 0:
        packets = container.demux(stream)
        for _ in range(first):
            if next(packets, None) is None:
                return
    yield from decoded_frames(container, stream)


def _decode(codec: av.VideoCodecContext, packet: av.Packet | None) -> Iterator[av.VideoFrame]:
    """Frames that ``packet`` (None: the end) releases; a damaged packet releases none."""
    try:
        yield from codec.decode(packet)
    except av.error.EOFError:
        return
    except av.error.FFmpegError as cause:
        logger.debug("packet passed over: %s", cause)


def _time(item: av.Packet | av.VideoFrame) -> int | None:
    time: int | None = item.pts if item.pts is not None else item.dts
    return time


def _is_flush_marker(packet: av.Packet) -> bool:
    return packet.size == 0 and packet.pts is None and packet.dts is None
