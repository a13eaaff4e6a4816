"""The module tells from a file's first bytes what it is; it never looks at names and never decodes.

Only formats listed here reach a decoder.  Playlists (HLS, DASH, concat, SDP) are refused before FFmpeg sees them:
they reach out to the network and to other files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tru_vlm.errors import UnsupportedMediaError
from tru_vlm.types import MediaKind

HEAD_BYTES = 8192
"""As many bytes as :func:`sniff_media_type` looks at."""

ACCEPTED = "videos: MP4, MOV, 3GP, MKV, WebM, AVI, MPEG-TS, MPEG-PS, FLV, OGV, GIF; images: JPEG, PNG, WebP"
"""What is accepted, as error texts say it."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """What a file is.

    Attributes:
        kind: "video" or "image".
        name: the format, for people: "MP4", "PNG".
        demuxer: the only FFmpeg demuxer that may read it.
    """

    kind: MediaKind
    name: str
    demuxer: str


_JPEG = MediaType("image", "JPEG", "jpeg_pipe")
_PNG = MediaType("image", "PNG", "png_pipe")
_WEBP = MediaType("image", "WebP", "webp_pipe")
_GIF = MediaType("video", "GIF", "gif")
_MP4 = MediaType("video", "MP4", "mov")
_MOV = MediaType("video", "MOV", "mov")
_3GP = MediaType("video", "3GP", "mov")
_MATROSKA = MediaType("video", "MKV", "matroska")
_WEBM = MediaType("video", "WebM", "matroska")
_AVI = MediaType("video", "AVI", "avi")
_MPEG_TS = MediaType("video", "MPEG-TS", "mpegts")
_MPEG_PS = MediaType("video", "MPEG-PS", "mpeg")
_FLV = MediaType("video", "FLV", "flv")
_OGG = MediaType("video", "OGV", "ogg")

CONTENT_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WebP": "image/webp",
    "GIF": "image/gif",
    "MP4": "video/mp4",
    "MOV": "video/quicktime",
    "3GP": "video/3gpp",
    "MKV": "video/matroska",
    "WebM": "video/webm",
    "AVI": "video/vnd.avi",
    "MPEG-TS": "video/mp2t",
    "MPEG-PS": "video/mpeg",
    "FLV": "video/x-flv",
    "OGV": "video/ogg",
}
"""Registered media types by the format's name (IANA's list; FLV is not on it)."""

_PREFIXES: tuple[tuple[bytes, MediaType], ...] = (
    (b"\xff\xd8\xff", _JPEG),
    (b"\x89PNG\r\n\x1a\n", _PNG),
    (b"GIF87a", _GIF),
    (b"GIF89a", _GIF),
    (b"FLV\x01", _FLV),
    (b"OggS\x00", _OGG),
    (b"\x00\x00\x01\xba", _MPEG_PS),
)
_OLD_QUICKTIME_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TS_PACKETS = ((188, 0), (192, 4), (204, 0))  # packet size, offset of the sync byte (ISO 13818-1; 192: with timecode)
_TS_SYNC = 0x47
MIN_TS_PACKETS = 3
_PLAYLIST = re.compile(
    rb"\A(?:\xef\xbb\xbf)?\s*(?:#EXTM3U|#EXTINF|ffconcat|\[playlist\]|v=0\r?\n|<\?xml|<MPD|<smil|<asx|<SmoothStreaming)",
    re.IGNORECASE,
)
_HTML = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body|!--)", re.IGNORECASE)


def sniff_media_type(head: bytes, *, param: str = "video") -> MediaType:
    """Tell what a file is from its first :data:`HEAD_BYTES` bytes.

    Raises:
        UnsupportedMediaError: nothing that is accepted; the message says what is.
    """
    if not head:
        raise _refused("The file is empty", param)
    for prefix, media_type in _PREFIXES:
        if head.startswith(prefix):
            return media_type
    found = _sniff_riff(head) or _sniff_iso(head, param) or _sniff_matroska(head) or _sniff_ts(head)
    if found is None:
        raise _refused(_describe_unknown(head), param)
    return found


def read_head(path: Path) -> bytes:
    """The first bytes of a file; blocks on the disk."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _sniff_riff(head: bytes) -> MediaType | None:
    if head[:4] != b"RIFF":
        return None
    return {b"AVI ": _AVI, b"WEBP": _WEBP}.get(head[8:12])


def _sniff_iso(head: bytes, param: str) -> MediaType | None:
    """ISO base media (ISO 14496-12) and QuickTime: a size, then the type of the first box."""
    box = head[4:8]
    if box == b"ftyp":
        brand = head[8:12]
        if brand in _STILL_BRANDS:
            raise _refused("HEIC and AVIF pictures are not accepted", param)
        if brand == b"qt  ":
            return _MOV
        return _3GP if brand[:2] == b"3g" else _MP4
    return _MOV if box in _OLD_QUICKTIME_ATOMS else None


def _sniff_matroska(head: bytes) -> MediaType | None:
    if not head.startswith(b"\x1a\x45\xdf\xa3"):  # EBML header (RFC 8794)
        return None
    if b"webm" in head[:64]:
        return _WEBM
    return _MATROSKA if b"matroska" in head[:64] else None


def _sniff_ts(head: bytes) -> MediaType | None:
    for size, offset in _TS_PACKETS:
        positions = range(offset, min(len(head), size * 8), size)
        if len(positions) >= MIN_TS_PACKETS and all(head[position] == _TS_SYNC for position in positions):
            return _MPEG_TS
    return None


def _describe_unknown(head: bytes) -> str:
    if _HTML.match(head):
        return "The file is a web page, not a video; give the address of the video file itself"
    if _PLAYLIST.match(head):
        return "The file is a playlist or a description of other files, not a video"
    return "The file is not a video or image that this server reads"


def _refused(reason: str, param: str) -> UnsupportedMediaError:
    return UnsupportedMediaError(f"{reason}. Accepted are {ACCEPTED}.", param=param)
