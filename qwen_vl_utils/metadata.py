"""What a file holds, without decoding it: the probe (header) and the scan (every packet's time). Knows no sampling.

PyAV does both for every backend, so that a frame index means the same frame everywhere.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import av.codec.codec
import av.container
import av.error
import av.video.stream
import numpy as np
from av.stream import Discard
from numpy.typing import NDArray

from qwen_vl_utils.display import DisplayTransform, mp4_display_transform
from qwen_vl_utils.errors import (
    EmptyFileError,
    MissingFileError,
    NotAVideoError,
    NoVideoStreamError,
    TruncatedError,
    UnsupportedCodecError,
    VideoError,
)

logger = logging.getLogger(__name__)

FALLBACK_FPS = 25.0
"""Rate of a stream that tells none, as FFmpeg's raw demuxers assume."""

ACCEPTED_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,gif,apng,asf,asf_o,mxf,nut,ivf,"
    "h264,hevc,av1,obu,m4v,mjpeg,dv,dirac,vc1,wtv,rm,yuv4mpegpipe,swf,amv,vob,h263,h261,cavsvideo,avs2,avs3,nsv,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
"""Demuxers by content. Playlists (hls, dash, concat) and image sequences are left out: they open other files."""

# A codec is listed when the key flag of its packets can be trusted for a fresh start. GIF, APNG and screen codecs flag
# packets that only patch the picture before them.
_RANDOM_ACCESS_CODECS = frozenset(
    {
        *("h264", "hevc", "vvc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "h263", "flv1", "theora"),
        *("mjpeg", "prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "dvvideo", "v210", "cfhd"),
        *("wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "jpeg2000"),
    }
)

ACCEPTED_CODECS = _RANDOM_ACCESS_CODECS | {
    *("gif", "apng", "png", "webp", "bmp", "tiff", "mjpegb", "jpegls", "amv", "h261", "h263i", "h263p", "dirac"),
    *("cavs", "vp3", "vp5", "vp6", "vp6a", "vp6f", "vp7", "rv10", "rv20", "rv30", "rv40", "svq1", "svq3", "cinepak"),
    *("indeo3", "indeo4", "indeo5", "msvideo1", "msrle", "qtrle", "rpza", "smc", "8bps", "flashsv", "flashsv2"),
    *("tscc", "tscc2", "zmbv", "cscd", "g2m", "mss1", "mss2", "lagarith", "magicyuv", "hap", "dxv", "cllc", "speedhq"),
    *("r210", "v308", "v408", "v410", "asv1", "asv2", "prores_raw", "apv"),
}
"""Video codecs by FFmpeg's names: what cameras, phones, browsers, editors, screen recorders and old players write.

Left out: formats of single games, text art, test sources. They are many, little used, and little looked after."""

_AUDIO_CODECS = frozenset(
    {
        *("aac", "aac_latm", "ac3", "eac3", "dts", "truehd", "mp1", "mp2", "mp3", "opus", "vorbis", "speex", "flac"),
        *("alac", "amr_nb", "amr_wb", "wmav1", "wmav2", "wmapro", "nellymoser", "cook"),
        *("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_f32le", "pcm_u8", "pcm_alaw"),
        *("pcm_mulaw", "pcm_bluray", "pcm_dvd", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_swf"),
    }
)
"""FFmpeg decodes a little of each stream to know its parameters; without these it would read on for long."""

_VFR_SLACK_FRAMES = 1.5
"""A last frame without a duration shifts the mean rate by one frame over the whole file: that is no variable rate."""


@dataclass(frozen=True, slots=True)
class VideoProbe:
    """What the header says. Counts and times are the container's own claims; None where it makes none.

    height and width are as shown, after rotation. rotation_degrees: clockwise turn that was counted in. has_audio and
    num_video_streams tell what else is there; stream_index is FFmpeg's best video stream, the one that is read.
    """

    file: str
    size_bytes: int
    format_name: str
    codec: str
    pixel_format: str | None
    bit_depth: int | None
    height: int
    width: int
    rotation_degrees: int
    is_mirrored: bool
    duration_seconds: float | None
    average_fps: float | None
    num_frames: int | None
    stream_index: int
    num_video_streams: int
    num_streams: int
    has_audio: bool

    @property
    def has_video(self) -> bool:
        """True: a file without a video stream gives no probe but an error."""
        return True


@dataclass(frozen=True, eq=False)
class FrameTable:
    """Every frame of the chosen stream in presentation order, from its packets alone.

    pts: int64 (N,), in time_base units. decode_order: int64 (N,), place of each frame's packet among all packets of
    the stream. key_decode_order, key_pts: int64 (K,), packets from which decoding may start. num_packets counts
    packets that are not shown too (edit lists). height and width are as shown.
    """

    probe: VideoProbe
    path: Path
    time_base: Fraction
    pts: NDArray[np.int64]
    end_pts: int
    decode_order: NDArray[np.int64]
    key_pts: NDArray[np.int64]
    key_decode_order: NDArray[np.int64]
    num_packets: int
    transform: DisplayTransform
    is_counted: bool = False
    """The packets' times do not help: pts are 0..N-1 in the order in which frames leave the decoder."""

    @property
    def num_frames(self) -> int:
        """Frames that are shown."""
        return len(self.pts)

    @property
    def height(self) -> int:
        """Pixels, as shown."""
        return self.probe.height

    @property
    def width(self) -> int:
        """Pixels, as shown."""
        return self.probe.width

    @property
    def start_seconds(self) -> float:
        """Time of the first frame on the container's clock."""
        return self._seconds(int(self.pts[0]))

    @property
    def duration_seconds(self) -> float:
        """End of the last frame minus start of the first."""
        return self._seconds(self.end_pts) - self.start_seconds

    @property
    def average_fps(self) -> float:
        """Frames over duration, which is torchcodec's exact-scan rate, bit for bit; not the header's rate."""
        duration = self.duration_seconds
        if duration > 0:
            return self.num_frames / duration
        return self.probe.average_fps or 1.0

    def times(self) -> NDArray[np.float64]:
        """Seconds from the first frame, (N,): 0.0 for index 0."""
        seconds: NDArray[np.float64] = (self.pts - self.pts[0]).astype(np.float64)
        return seconds * self.time_base.numerator / self.time_base.denominator

    @property
    def is_variable_rate(self) -> bool:
        """Whether some frame is shown more than one and a half mean frames away from index / average_fps."""
        drift = np.abs(self.times() * self.average_fps - np.arange(self.num_frames))
        return bool(drift.max(initial=0.0) > _VFR_SLACK_FRAMES)

    def _seconds(self, pts: int) -> float:
        return pts * self.time_base.numerator / self.time_base.denominator


def check_file(source: str | Path) -> Path:
    """``source`` as an absolute path to a regular file with content.

    Absolute, so that no file name can be taken for a protocol ("concat:a|b"). Raises MissingFileError, EmptyFileError.
    """
    path = Path(source).absolute()
    try:
        if not path.is_file():
            raise MissingFileError("no such file, or not a regular one", file=path)
        if path.stat().st_size == 0:
            raise EmptyFileError("the file has zero bytes", file=path)
    except OSError as cause:
        if isinstance(cause, VideoError):
            raise
        raise MissingFileError("the file cannot be reached", file=path, cause=cause) from cause
    return path


@contextmanager
def open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """``path`` opened by PyAV with accepted demuxers and local files only. Raises NotAVideoError."""
    try:
        container = av.open(str(path), mode="r", options=_open_options(), metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as cause:
        raise NotAVideoError("no accepted video container is recognised", file=path, cause=cause) from cause
    try:
        yield container
    finally:
        container.close()


def _open_options() -> dict[str, str]:
    return {
        "format_whitelist": ACCEPTED_FORMATS,
        "codec_whitelist": _accepted_decoders(),
        "protocol_whitelist": "file",
    }


@lru_cache(maxsize=1)
def _accepted_decoders() -> str:
    """The decoders of accepted codecs that FFmpeg has here; one codec may have several."""
    names = {name for name in av.codecs_available if _canonical_name(name) in ACCEPTED_CODECS | _AUDIO_CODECS}
    return ",".join(sorted(names))


def _canonical_name(decoder: str) -> str | None:
    try:
        return str(av.Codec(decoder, "r").canonical_name)
    except av.codec.codec.UnknownCodecError:  # it only encodes
        return None


def best_video_stream(container: av.container.InputContainer, path: Path) -> av.video.stream.VideoStream:
    """FFmpeg's choice among the video streams, with its decoder; other streams are switched off.

    Raises NoVideoStreamError, UnsupportedCodecError.
    """
    stream = container.streams.best("video")
    if stream is None:
        if container.streams.video:
            raise UnsupportedCodecError("there is no decoder for the video stream", file=path)
        raise NoVideoStreamError("the container holds no video stream", file=path)
    assert isinstance(stream, av.video.stream.VideoStream)  # noqa: S101 - for the type checker: best("video")
    if stream.codec_context is None:
        raise UnsupportedCodecError("there is no decoder for the video stream", file=path)
    for one in container.streams.video:
        # Every one of them: another decoder library that opens the file would look into all.
        if one.codec_context is not None and one.codec_context.codec.canonical_name not in ACCEPTED_CODECS:
            name = one.codec_context.codec.canonical_name
            raise UnsupportedCodecError(f"video codec {name} is not accepted", file=path)
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream


def probe_video(source: str | Path) -> VideoProbe:
    """What the header of ``source`` says; reads the container, decodes no frame of the video for it.

    Raises: MissingFileError, EmptyFileError, NotAVideoError, NoVideoStreamError, UnsupportedCodecError,
    TruncatedError (a stream without a size: its data are not there).
    """
    path = check_file(source)
    with open_container(path) as container:
        stream = best_video_stream(container, path)
        return _probe(container, stream, path)[0]


def _probe(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, path: Path
) -> tuple[VideoProbe, DisplayTransform | None]:
    context = stream.codec_context
    if context.width <= 0 or context.height <= 0:
        raise TruncatedError("the video stream has no size: its data are missing", file=path, stage="probe")
    ordinal = [s.index for s in container.streams.video].index(stream.index)
    is_mp4 = "mp4" in container.format.name
    known = mp4_display_transform(path, ordinal) if is_mp4 else None
    turn = known or DisplayTransform()
    sides = (context.height, context.width)
    duration = _header_duration(container, stream)
    rate = _header_rate(stream)
    probe = VideoProbe(
        file=path.name,
        size_bytes=path.stat().st_size,
        format_name=container.format.name,
        codec=context.name,
        pixel_format=context.pix_fmt,
        bit_depth=_bit_depth(context),
        height=sides[1] if turn.swaps_sides else sides[0],
        width=sides[0] if turn.swaps_sides else sides[1],
        rotation_degrees=turn.rotation_degrees,
        is_mirrored=turn.is_mirrored,
        duration_seconds=duration,
        average_fps=rate,
        num_frames=_header_frames(stream, duration, rate),
        stream_index=stream.index,
        num_video_streams=len(container.streams.video),
        num_streams=len(container.streams),
        has_audio=bool(container.streams.audio),
    )
    return probe, known


def _header_duration(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # The container's clock counts in microseconds (AV_TIME_BASE).
    return container.duration / 1e6 if container.duration and container.duration > 0 else None


def _header_rate(stream: av.video.stream.VideoStream) -> float | None:
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def _header_frames(stream: av.video.stream.VideoStream, duration: float | None, rate: float | None) -> int | None:
    if stream.frames > 0:
        return int(stream.frames)
    if duration is None or rate is None:
        return None
    estimate = duration * rate
    return max(1, round(estimate)) if math.isfinite(estimate) else None


def _bit_depth(context: av.video.codeccontext.VideoCodecContext) -> int | None:
    if context.pix_fmt is None or context.format is None:
        return None
    return max((component.bits for component in context.format.components), default=None)


def scan_frames(source: str | Path) -> FrameTable:
    """Times and order of every frame of ``source``, from its packets: the file is read once, nothing is decoded.

    What counts as a frame equals torchcodec's exact scan: all packets of the best video stream but those that an edit
    list discards, ordered by pts (dts where there is none). Where packets carry no time, or none that tells the order
    of presentation, the frames are decoded and counted. Raises what ``probe_video`` raises, and TruncatedError when no
    frame is left.
    """
    path = check_file(source)
    with open_container(path) as container:
        stream = best_video_stream(container, path)
        probe, known = _probe(container, stream, path)
        packets = _PacketLog()
        cause = packets.read(container, stream)
        time_base = Fraction(stream.time_base or Fraction(1, 1_000_000))
        codec = stream.codec_context.codec.canonical_name
        reorders = bool(stream.codec_context.has_b_frames)
    transform = known if known is not None else _decoded_transform(path, probe)
    if len(packets.pts) > 0 and not (reorders and _hides_order(probe, codec, packets.pts)):
        return packets.table(path=path, probe=probe, time_base=time_base, codec=codec, transform=transform)
    if packets.num_packets == 0:
        raise TruncatedError("the header is there, but no frame is", file=path, stage="probe", cause=cause)
    return _counted_table(path, probe, transform, num_packets=packets.num_packets)


def _hides_order(probe: VideoProbe, codec: str, pts: array[int]) -> bool:
    """Whether the packets' times only count them, in the order in which they are decoded.

    AVI and ASF have no place for a time of presentation. FFmpeg works it out from the type of each picture, but not for
    these two codecs, whose B pictures may be referred to.
    """
    if probe.format_name not in ("avi", "asf") or codec not in ("h264", "hevc"):
        return False
    return bool(np.all(np.diff(np.array(pts, dtype=np.int64)) > 0))


def _counted_table(path: Path, probe: VideoProbe, transform: DisplayTransform, *, num_packets: int) -> FrameTable:
    """Table of a stream whose packets carry no time that helps (raw H.264, H.264 with B pictures in AVI).

    Its frames are decoded and counted.
    """
    with open_container(path) as container:
        stream = best_video_stream(container, path)
        count = sum(1 for _ in decoded_frames(container, stream))
    if count == 0:
        raise TruncatedError("no frame can be decoded", file=path, stage="probe")
    rate = Fraction(probe.average_fps or FALLBACK_FPS).limit_denominator(1001)
    order = np.arange(count, dtype=np.int64)
    none = np.array((), dtype=np.int64)
    return FrameTable(
        probe=_turned(probe, transform),
        path=path,
        time_base=1 / rate,
        pts=order,
        end_pts=count,
        decode_order=order,
        key_pts=none,
        key_decode_order=none,
        num_packets=num_packets,
        transform=transform,
        is_counted=True,
    )


def decoded_frames(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> Iterator[av.VideoFrame]:
    """Every frame that can be decoded, in output order; damaged packets are passed over."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        try:
            yield from stream.codec_context.decode(packet if packet.size else None)
        except av.error.EOFError:
            return
        except av.error.FFmpegError as cause:
            logger.debug("packet passed over: %s", cause)


def _decoded_transform(path: Path, probe: VideoProbe) -> DisplayTransform:
    """Orientation from the first decoded frame, for containers other than mp4 that can carry one."""
    if not any(name in probe.format_name for name in ("matroska", "mp4")):
        return DisplayTransform()
    with open_container(path) as container:
        first = next(decoded_frames(container, best_video_stream(container, path)), None)
        return DisplayTransform() if first is None else DisplayTransform.from_rotation(first.rotation)


def _turned(probe: VideoProbe, transform: DisplayTransform) -> VideoProbe:
    """``probe`` with ``transform`` counted in, when the header alone did not tell it."""
    if transform.is_identity or probe.rotation_degrees or probe.is_mirrored:
        return probe
    swap = transform.swaps_sides
    return replace(
        probe,
        height=probe.width if swap else probe.height,
        width=probe.height if swap else probe.width,
        rotation_degrees=transform.rotation_degrees,
        is_mirrored=transform.is_mirrored,
    )


class _PacketLog:
    """Flat arrays over the packets of one stream, in the order in which they lie in the file."""

    def __init__(self) -> None:
        self.pts = array("q")
        self.ends = array("q")
        self.order = array("q")
        self.key_pts = array("q")
        self.key_order = array("q")
        self.num_packets = 0
        self.changes_parameters = False

    def read(
        self, container: av.container.InputContainer, stream: av.video.stream.VideoStream
    ) -> av.error.FFmpegError | None:
        """Log every packet; a read error ends the log, as the end of the file does, and is returned."""
        try:
            for packet in container.demux(stream):
                if packet.size == 0 and packet.pts is None and packet.dts is None:
                    continue  # PyAV's flush marker
                self._add(packet)
        except av.error.FFmpegError as cause:
            # Its traceback leads to the caller's frame, which will hold it: a ring that keeps the caller's memory.
            return cause.with_traceback(None)
        return None

    def _add(self, packet: av.Packet) -> None:
        order = self.num_packets
        self.num_packets += 1
        time = packet.pts if packet.pts is not None else packet.dts
        if packet.is_keyframe and time is not None:
            self.key_pts.append(time)
            self.key_order.append(order)
            # New decoder parameters ride on one packet only: a start behind it would decode with the old ones.
            self.changes_parameters |= order > 0 and packet.has_sidedata("new_extradata")
        if packet.is_discard or time is None:
            return
        self.pts.append(time)
        self.ends.append(time + (packet.duration or 0))
        self.order.append(order)

    def table(
        self, *, path: Path, probe: VideoProbe, time_base: Fraction, codec: str, transform: DisplayTransform
    ) -> FrameTable:
        pts = np.array(self.pts, dtype=np.int64)
        shown = np.argsort(pts, kind="stable")
        trusted = codec in _RANDOM_ACCESS_CODECS and not self.changes_parameters
        return FrameTable(
            probe=_turned(probe, transform),
            path=path,
            time_base=time_base,
            pts=pts[shown],
            end_pts=max(self.ends),
            decode_order=np.array(self.order, dtype=np.int64)[shown],
            key_pts=np.array(self.key_pts if trusted else (), dtype=np.int64),
            key_decode_order=np.array(self.key_order if trusted else (), dtype=np.int64),
            num_packets=self.num_packets,
            transform=transform,
        )
