"""What a caller may give as a video, and how a file's bytes are counted while they are sent."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tru_vlm.types import MediaKind


@dataclass(frozen=True, slots=True)
class KeptVideo:
    """A video or image that the server keeps; ask about it as often as you like without sending it again.

    Attributes:
        id: hex sha256 of the content.
        kind: "video" or "image".
        filename: a name for people.
        size_bytes, width, height: of the file; pixels as shown.
        duration_seconds: None for images.
        expires_at: seconds since 1970, after which it may be removed if it is not used again; None for never.
    """

    id: str
    kind: MediaKind
    size_bytes: int
    width: int
    height: int
    filename: str | None = None
    duration_seconds: float | None = None
    expires_at: float | None = None


VideoSource = str | os.PathLike[str] | bytes | KeptVideo
"""A path; an ``http(s)://`` URL, which the server fetches; a ``data:`` URI; the bytes of a file; a kept video, or its
id, as ``video_id:...`` or as its 64 hex digits alone."""

UploadProgress = Callable[[int, int], None]
"""Called with the bytes that were handed to the network, and the file's size; from 0 again when it is sent again."""

_KEPT = "video_id:"
_URL_SCHEMES = ("http://", "https://", "data:", _KEPT)
_IS_ID = re.compile(r"[0-9a-f]{64}").fullmatch


@dataclass(frozen=True, slots=True)
class RemoteVideo:
    """A video that the server fetches, or keeps."""

    url: str

    def fields(self) -> dict[str, str]:
        """How it stands in JSON."""
        if self.url.startswith(_KEPT):
            return {"video_id": self.url.removeprefix(_KEPT)}
        return {"video_url": self.url}


@dataclass(frozen=True, slots=True)
class LocalVideo:
    """A video that is sent: ``content`` is where it lies, or its bytes."""

    content: Path | bytes

    @property
    def name(self) -> str:
        """A file name for the form."""
        return self.content.name if isinstance(self.content, Path) else "video"

    def open(self, on_progress: UploadProgress | None) -> CountedFile:
        """Its bytes from the beginning.

        Raises:
            OSError: if it cannot be opened.
        """
        if isinstance(self.content, Path):
            return CountedFile(self.content.open("rb"), self.content.stat().st_size, on_progress)
        return CountedFile(io.BytesIO(self.content), len(self.content), on_progress)


def understand(video: VideoSource) -> RemoteVideo | LocalVideo:
    """What the caller means."""
    if isinstance(video, bytes):
        return LocalVideo(video)
    if isinstance(video, KeptVideo):
        return RemoteVideo(_KEPT + video.id)
    if isinstance(video, str) and _IS_ID(video):
        return RemoteVideo(_KEPT + video)
    if isinstance(video, str) and video.lower().startswith(_URL_SCHEMES):
        return RemoteVideo(video)
    return LocalVideo(Path(video).expanduser())


class CountedFile:
    """A file that tells how much of it was read; of the interface, what httpx's multipart encoder uses."""

    def __init__(self, file: BinaryIO, size_bytes: int, on_progress: UploadProgress | None) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._on_progress = on_progress

    def read(self, size: int = -1) -> bytes:
        """The next bytes; what was read before them has been sent."""
        if self._on_progress is not None:
            self._on_progress(self._file.tell(), self._size_bytes)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As files do."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As files do."""
        return self._file.tell()

    def close(self) -> None:
        """As files do."""
        self._file.close()
