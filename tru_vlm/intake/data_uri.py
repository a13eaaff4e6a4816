"""The reader turns a base64 data URI (RFC 2397) into a spooled file; it does not look at what the bytes are."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator

from tru_vlm.errors import InvalidRequestError
from tru_vlm.intake.spool import Spool, SpooledFile, too_large

PIECE_CHARACTERS = 4 << 18
"""Characters that are decoded at once; a multiple of 4, so that every piece but the last is whole."""

_HEADER = re.compile(
    r"data:(?:video|image)/[\w.+-]{1,64}(?:;[\w.+-]{1,32}=[\w.,+\"-]{1,64}){0,4};base64,", re.IGNORECASE
)
MAX_HEADER_CHARACTERS = 512


def is_data_uri(text: str) -> bool:
    """Whether a URL is a data URI, well-formed or not."""
    return text[:5].lower() == "data:"


async def spool_data_uri(uri: str, *, spool: Spool, max_bytes: int, param: str = "video_url") -> SpooledFile:
    """Decode ``data:video/...;base64,...`` (or image/...) into the spool, in threads.

    Args:
        uri: the whole URI.
        spool: where the bytes go.
        max_bytes: most decoded bytes; checked before anything is decoded.
        param: the field that errors name.

    Raises:
        InvalidRequestError: not a base64 data URI of a video or an image.
        PayloadTooLargeError: more than ``max_bytes``.
        UnavailableError: no space.
    """
    header = _HEADER.match(uri[:MAX_HEADER_CHARACTERS])
    if header is None:
        raise InvalidRequestError(
            "A data URI must start with data:video/<type>;base64, or data:image/<type>;base64, and hold base64.",
            param=param,
        )
    start = header.end()
    if (len(uri) - start) // 4 * 3 > max_bytes + 2:  # up to two bytes of the last four characters are padding
        raise too_large(max_bytes, param=param)
    return await spool.write(_decoded(uri, start, spool, param), filename=None, max_bytes=max_bytes, param=param)


async def _decoded(uri: str, start: int, spool: Spool, param: str) -> AsyncIterator[bytes]:
    """The bytes, a piece at a time.  Padding is right only at the very end."""
    for offset in range(start, len(uri), PIECE_CHARACTERS):
        piece = uri[offset : offset + PIECE_CHARACTERS]
        is_last = offset + PIECE_CHARACTERS >= len(uri)
        if not is_last and piece.endswith("="):
            raise _not_base64(param)
        try:
            yield await spool.run(_decode_piece, piece)
        except (binascii.Error, ValueError) as error:
            raise _not_base64(param) from error


def _decode_piece(piece: str) -> bytes:
    return base64.b64decode(piece, validate=True)


def _not_base64(param: str) -> InvalidRequestError:
    return InvalidRequestError(
        "The data URI is not base64: letters, digits, + and /, without spaces, padded with = to a multiple of 4.",
        param=param,
    )
