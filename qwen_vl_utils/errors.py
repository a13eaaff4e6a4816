"""Every error of this package, in one tree. Knows no HTTP status: a server maps ``code`` to one.

VideoError (ValueError)             what was given cannot become model input
├── SourceError                     the bytes: stage "open"
│   ├── MissingFileError            (also FileNotFoundError) no such file, or not a regular one
│   ├── EmptyFileError              zero bytes
│   ├── NotAVideoError              no accepted container is recognised
│   ├── NoVideoStreamError          a container without a video stream (audio only)
│   ├── UnsupportedCodecError       a video stream for which no decoder is built in
│   ├── TruncatedError              the container begins well and ends before anything can be shown
│   └── DownloadError               a URL could not be fetched within its limits
├── DecodeError                     stage "decode": too few of the wanted frames can be decoded
│   └── FrameTooLargeError          a frame has more pixels than the limit, whatever the header says
├── SamplingError                   stage "sample": the options do not fit the video
│   ├── SamplingOptionError         one option is not a legal value
│   │   └── ExclusiveOptionsError   (also AssertionError) fps together with nframes
│   ├── InvalidTimeRangeError       video_start / video_end leave nothing
│   └── FrameCountError             the frame count is not within 2..frames available
├── SizeError                       stage "resize"
│   ├── PixelBudgetError            (also AssertionError) max_pixels below min_pixels
│   ├── AspectRatioError            longer side over shorter side above 200
│   └── EmptySizeError              (also ZeroDivisionError) a side of zero
├── ImageError                      an image that cannot be read
│   └── ImageTooLargeError          more pixels than the limit
├── BackendUnavailableError         the decoder that was asked for is unknown or does not load
└── ConversationError               messages that hold no readable vision element
The second bases keep ``except`` clauses working that were written for the package on PyPI.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

_FOLDERS = re.compile(r"(?:/[^/\s'\"]+)*/(?=[^/\s'\"]+)")
"""Folders in front of a file name: they tell a stranger about the server's disk."""

Stage = Literal["open", "probe", "sample", "decode", "resize"]


class VideoError(ValueError):
    """Root of the tree. ``str()`` reads "file: stage: detail (cause)".

    Attributes: ``file`` (base name, never the folder, or None), ``stage``, ``detail`` (fixed wording of this package
    with numbers) and ``cause`` (what a library said, or None: for a log, not for a stranger). Survives pickling, so
    that it can cross from a decode process.
    """

    code: ClassVar[str] = "video_error"
    default_stage: ClassVar[Stage] = "open"

    def __init__(
        self,
        detail: str,
        *,
        file: str | Path | None = None,
        stage: Stage | None = None,
        cause: BaseException | str | None = None,
    ) -> None:
        self.detail = detail
        self.file = Path(file).name if file is not None else None
        self.stage: Stage = stage if stage is not None else self.default_stage
        self.cause = _describe(cause)
        super().__init__(self._text())

    def _text(self) -> str:
        place = f"{self.file}: {self.stage}" if self.file else self.stage
        return f"{place}: {self.detail}" + (f" ({self.cause})" if self.cause else "")

    def __str__(self) -> str:
        return self._text()

    def with_file(self, file: str | Path) -> VideoError:
        """The same error, naming ``file`` if it named none (arithmetic does not know the file that it serves)."""
        if self.file is not None:
            return self
        return type(self)(self.detail, file=file, stage=self.stage, cause=self.cause)

    def __reduce__(self) -> tuple[Callable[..., VideoError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.detail, self.file, self.stage, self.cause)


def _rebuild(kind: type[VideoError], detail: str, file: str | None, stage: Stage, cause: str | None) -> VideoError:
    return kind(detail, file=file, stage=stage, cause=cause)


def _describe(cause: BaseException | str | None) -> str | None:
    if cause is None or isinstance(cause, str):
        return cause
    # A library's text may run over many lines and name build paths: the first line is what helps.
    # An OSError (PyAV's errors are) puts the whole path behind its reason: the reason alone.
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    first_line = _FOLDERS.sub("", next(iter(text.strip().splitlines()), ""))
    return f"{type(cause).__name__}: {first_line}"[:300] if first_line else type(cause).__name__


class SourceError(VideoError):
    """The bytes could not be opened as a video."""

    code = "unreadable_source"


class MissingFileError(SourceError, FileNotFoundError):
    """No such file, or something that is not a regular file."""

    code = "file_not_found"


class EmptyFileError(SourceError):
    """The file has zero bytes."""

    code = "empty_file"


class NotAVideoError(SourceError):
    """No accepted container is recognised in the content (the extension plays no part)."""

    code = "not_a_video"


class NoVideoStreamError(SourceError):
    """The container holds no video stream."""

    code = "no_video_stream"


class UnsupportedCodecError(SourceError):
    """No decoder for the stream's codec."""

    code = "unsupported_codec"


class TruncatedError(SourceError):
    """The container was recognised but holds no frame that could be shown."""

    code = "truncated"


class DownloadError(SourceError):
    """A URL could not be fetched: scheme, time, size or status."""

    code = "download_failed"


class DecodeError(VideoError):
    """Too few of the wanted frames can be decoded."""

    code = "decode_failed"
    default_stage = "decode"


class FrameTooLargeError(DecodeError):
    """A decoded frame has more pixels than the limit; the header may have promised fewer."""

    code = "frame_too_large"


class SamplingError(VideoError):
    """The sampling options do not fit the video."""

    code = "sampling_failed"
    default_stage = "sample"


class SamplingOptionError(SamplingError):
    """One option is not a legal value whatever the video."""

    code = "invalid_sampling_option"


class ExclusiveOptionsError(SamplingOptionError, AssertionError):
    """Two options that exclude each other."""


class InvalidTimeRangeError(SamplingError):
    """``video_start`` / ``video_end`` leave no frames."""

    code = "invalid_time_range"


class FrameCountError(SamplingError):
    """The number of frames asked for is not within 2 and the frames available."""

    code = "invalid_frame_count"


class SizeError(VideoError):
    """No legal target size."""

    code = "invalid_size"
    default_stage = "resize"


class PixelBudgetError(SizeError, AssertionError):
    """``max_pixels`` is below ``min_pixels``."""

    code = "invalid_pixel_budget"


class AspectRatioError(SizeError):
    """Longer side over shorter side is above the limit."""

    code = "aspect_ratio_too_large"


class EmptySizeError(SizeError, ZeroDivisionError):
    """A side is zero."""

    code = "empty_size"


class ImageError(VideoError):
    """An image that cannot be read."""

    code = "unreadable_image"


class ImageTooLargeError(ImageError):
    """More pixels than the limit, known from the header: nothing was decoded."""

    code = "image_too_large"


class BackendUnavailableError(VideoError):
    """The video decoder that was asked for is unknown or does not load here."""

    code = "backend_unavailable"


class ConversationError(VideoError):
    """A conversation element that promises an image or a video and brings none."""

    code = "invalid_conversation"
