"""A kept file as an answer: whole, or the range that a player asks for (RFC 9110, section 14).

What users have uploaded is sent so that a browser can show it and can do nothing else with it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from tru_vlm.errors import RangeError
from tru_vlm.intake.spool import SpooledFile

SAFE_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; "
        "frame-ancestors 'self'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""For bytes that came from a user: no other type than the one that is told, no script, nobody else's page."""

FOR_EVER = "private, max-age=31536000, immutable"

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class KeptFileResponse(FileResponse):
    """Sends a borrowed file and gives it back, also when the client leaves.

    One range is answered with 206.  Several ranges, malformed ones and those of another version of the file are
    ignored, as the standard allows, and the file is sent whole.

    Args:
        file: what is sent; its digest is the ``ETag``.
        give_back: is called with it at the end.
        is_partial: whether the request's range is looked at (:func:`wants_range`).
        media_type: of the content.
        filename: for the user's disk.
        as_attachment: to be saved, not shown.
    """

    def __init__(
        self,
        file: SpooledFile,
        give_back: Callable[[SpooledFile], Awaitable[None]],
        *,
        is_partial: bool,
        media_type: str,
        filename: str,
        as_attachment: bool,
    ) -> None:
        disposition = "attachment" if as_attachment else "inline"
        headers = {
            **SAFE_HEADERS,
            "ETag": etag(file.sha256),
            "Cache-Control": "private, no-cache",
            "Content-Disposition": f"{disposition}; filename*=utf-8''{quote(filename, safe='')}",
        }
        super().__init__(file.path, headers=headers, media_type=media_type)
        self._file = file
        self._give_back = give_back
        self._is_partial = is_partial

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send."""
        if not self._is_partial:
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"range"]}
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._give_back(self._file)


def etag(sha256: str) -> str:
    """The entity tag of a content."""
    return f'"{sha256}"'


def is_known(request: Request, tag: str) -> bool:
    """Whether the client has this version already, and takes a 304."""
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or tag in {item.strip().removeprefix("W/") for item in known.split(",")}


def wants_range(request: Request, tag: str, size_bytes: int) -> bool:
    """Whether the request asks for one range of a file of this entity tag and size.

    Raises:
        RangeError: it lies behind the file's end.
    """
    condition = request.headers.get("if-range")
    found = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if found is None or (condition is not None and condition != tag):
        return False
    begin, end = found.groups()
    if not (begin or end) or (begin and end and int(begin) > int(end)):
        return False
    if int(begin) >= size_bytes if begin else int(end) == 0:
        text = f"The range {found.group()} lies behind the end of the file, which has {size_bytes} bytes."
        raise RangeError(text, param="Range")
    return True
