"""What can go wrong with a file in a decode process, and the one map from it to a client's error."""

from __future__ import annotations

from typing import Final

from tru_vlm.errors import InternalError, InvalidRequestError, TruError, UnavailableError, UnsupportedMediaError
from tru_vlm.video.media_type import ACCEPTED

RETRY_SECONDS = 10.0

_FIELD_OF: Final = {
    "invalid_time_range": "video_params.video_start",
    "invalid_frame_count": "video_params.nframes",
    "invalid_sampling_option": "video_params",
    "invalid_pixel_budget": "video_params.max_pixels",
}
_MEDIA_CODES: Final = frozenset(
    {
        "video_error",
        "unreadable_source",
        "empty_file",
        "not_a_video",
        "no_video_stream",
        "unsupported_codec",
        "truncated",
        "decode_failed",
        "image_error",
        "unreadable_image",
        "image_too_large",
    }
)
_CEILING_CODES: Final = frozenset({"video_too_long", "frame_too_large"})
_LIMIT_TEXTS: Final = {
    "decoder_crashed": "The decoder failed on this file: it is damaged, or made to do harm.",
    "decode_memory": "Decoding this file needs more memory than this server gives to one file.",
    "decode_timeout": (
        "Decoding took longer than this server allows. Ask for a shorter span (video_start, video_end), "
        "or send the video in a smaller size."
    ),
}


class DecodeSetupError(Exception):
    """Videos cannot be decoded as a setting wants it; the text names the setting, its value and the reason."""


class DecodeFailure(Exception):  # noqa: N818 - an outcome with a code, not an error class of the tree
    """A decode process could not do what was asked.

    Attributes:
        code: one of qwen_vl_utils' codes or of this module's.
        detail: fixed wording with numbers, fit for the client.
        stage: where it happened.
        cause: what a library said; for the log only.
    """

    def __init__(self, code: str, detail: str = "", *, stage: str = "", cause: str | None = None) -> None:
        super().__init__(f"{code}: {detail} ({cause})" if cause else f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.stage = stage
        self.cause = cause


def client_error(failure: DecodeFailure, *, param: str) -> TruError:
    """The error that a client is told.

    Args:
        failure: what went wrong.
        param: the request's field that held the file.
    """
    code = failure.code
    if code in _LIMIT_TEXTS:
        return UnsupportedMediaError(_LIMIT_TEXTS[code], param=param, code=code)
    if code in _MEDIA_CODES:
        text = f"The file cannot be read: {failure.detail}. Accepted are {ACCEPTED}."
        return UnsupportedMediaError(text, param=param, code=code if code == "image_too_large" else None)
    if code in _FIELD_OF:
        return InvalidRequestError(f"{_sentence(failure.detail)}.", param=_FIELD_OF[code])
    if code in _CEILING_CODES or code in ("aspect_ratio_too_large", "empty_size", "invalid_size"):
        text = f"{_sentence(failure.detail)}."
        return InvalidRequestError(text, param=param, code=code if code in _CEILING_CODES else None)
    if code == "storage_full":
        return UnavailableError(
            "The server has no disk space left for the frames; try again later.",
            code=code,
            retry_after_seconds=RETRY_SECONDS,
        )
    return InternalError()


def too_long(seconds: float, limit: float) -> str:
    """What is said of a video over the limit."""
    return f"the video is {seconds:.1f} s long; at most {limit:g} s is accepted"


def _sentence(detail: str) -> str:
    return detail[:1].upper() + detail[1:]
