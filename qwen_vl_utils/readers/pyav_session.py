"""One file read forward through runs of packets. Owns what is decoded, what is passed over and from where."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import av.container
import av.error
import av.video.stream
import numpy as np

from qwen_vl_utils.metadata import FrameTable, best_video_stream, open_container

logger = logging.getLogger(__name__)

_SEEK_GAP_BYTES = 8 * 2**20
"""Below this, reading packets and dropping them is cheaper than a seek, and cannot miss."""

# Codecs in which the decoder's "non-reference" is exact: H.264 nal_ref_idc 0, MPEG B pictures. HEVC only with a single
# temporal layer (see can_skip_nonref): a sub-layer non-reference picture may be a reference for a higher layer.
_NONREF_CODECS = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video"})

_HVCC_BYTES = 23


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """Packets ``first``..``last`` (decode order) to decode from a fresh start, for the frames ``wanted`` (indices)."""

    first: int
    last: int
    wanted: tuple[int, ...]

    @property
    def num_packets(self) -> int:
        """How many packets are read for it."""
        return self.last - self.first + 1


def plan_runs(
    table: FrameTable, indices: Sequence[int], *, merge_gap: int = 0, extra_starts: int = 0
) -> list[DecodeRun]:
    """The packets to decode for ``indices`` (ascending), as runs that each begin where decoding may start.

    The start of a frame is the last key packet that neither lies behind it in the file nor is shown after it: an open
    group's leading pictures thus start at the group before. A run that begins at most ``merge_gap`` packets behind
    the one before it joins it. ``extra_starts`` goes back that many key packets more.
    """
    needs: list[tuple[int, int, int]] = []
    for index in indices:
        position = int(table.decode_order[index])
        start = _start_for(table, position, int(table.pts[index]), extra_starts)
        needs.append((start, position, index))
    runs: list[DecodeRun] = []
    for start, position, index in sorted(needs):
        if runs and start <= runs[-1].last + merge_gap:
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


class Session:
    """One open file that is read forward through runs; knows at which packet it is.

    Exact: a frame is known by its pts, and only a frame with that very pts is given. ``num_threads``: the decoder's.
    """

    def __init__(self, table: FrameTable, *, num_threads: int) -> None:
        self._table = table
        self._num_threads = num_threads
        self._open()

    def _open(self) -> None:
        self._context = open_container(self._table.path)
        self._container = self._context.__enter__()
        self._stream = best_video_stream(self._container, self._table.path)
        set_threads(self._stream, self._num_threads)
        self._packets = self._container.demux(self._stream)
        self._position = 0
        self._skips = can_skip_nonref(self._stream.codec_context)
        self._is_fresh = True

    def close(self) -> None:
        """Let go of the file."""
        self._context.__exit__(None, None, None)

    def decode(self, run: DecodeRun) -> Iterator[tuple[int, av.VideoFrame]]:
        """The wanted frames of ``run`` that decode, as (index, frame), as soon as they do."""
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
                codec.skip_frame = "DEFAULT" if time_of(packet) in targets else "NONREF"
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
        keys = self._table.key_decode_order
        place = int(np.searchsorted(keys, first))
        if place == len(keys) or int(keys[place]) != first:
            return False
        goal = int(self._table.key_pts[place])
        try:
            self._container.seek(goal, stream=self._stream, backward=True)
            self._packets = self._container.demux(self._stream)
            packet = next(self._packets, None)
        except av.error.FFmpegError:
            return False
        if packet is None or not packet.is_keyframe:
            return False
        positions = keys[self._table.key_pts == time_of(packet)]
        if len(positions) != 1 or int(positions[0]) > first:
            return False
        position = int(positions[0])
        if position == first:
            self._packets = _chain(packet, self._packets)
        self._position = position + (position != first)
        return True


def _taken(wanted: dict[int, list[int]], frame: av.VideoFrame) -> list[int]:
    """The indices that ``frame`` is wanted for; each is given once."""
    time = time_of(frame)
    return wanted.pop(time, []) if time is not None else []


def _chain(first: av.Packet, rest: Iterator[av.Packet]) -> Iterator[av.Packet]:
    yield first
    yield from rest


def can_skip_nonref(codec: av.VideoCodecContext) -> bool:
    """Whether pictures that nothing refers to can be told, and passed over without touching the others."""
    name = codec.codec.canonical_name
    if name not in _NONREF_CODECS:
        return False
    return name != "hevc" or hevc_temporal_layers(codec.extradata) == 1


def hevc_temporal_layers(extradata: bytes | None) -> int | None:
    """Field numTemporalLayers of an HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3.1); None when unknown."""
    if not extradata or len(extradata) < _HVCC_BYTES or extradata[0] != 1:
        return None
    return (extradata[21] >> 3) & 7 or None


def set_threads(stream: av.video.stream.VideoStream, num_threads: int) -> None:
    """Decode with this many threads, of whichever kind the codec has; before the first packet."""
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = num_threads


def _decode(codec: av.VideoCodecContext, packet: av.Packet | None) -> Iterator[av.VideoFrame]:
    """Frames that ``packet`` (None: the end) releases; a damaged packet releases none."""
    try:
        yield from codec.decode(packet)
    except av.error.EOFError:
        return
    except av.error.FFmpegError as cause:
        logger.debug("packet passed over: %s", cause)


def time_of(item: av.Packet | av.VideoFrame) -> int | None:
    """When it is shown, in the stream's time base: its pts, or its dts where it has none."""
    time: int | None = item.pts if item.pts is not None else item.dts
    return time


def _is_flush_marker(packet: av.Packet) -> bool:
    return packet.size == 0 and packet.pts is None and packet.dts is None
