"""Which server a request should go to, as far as the request itself says.  It knows neither Ray nor the servers.

Requests about one video are to meet in one server, which has the video's frames and caches.  The video is named by
the body's JSON, by the path, or by the small forms of the page; an upload has no name yet, and goes anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any

COOKIE = "tru_server"
"""Names the server that has the page's running answer; its path is the answer's, so it goes nowhere else."""

MAX_FORM_BYTES = 1 << 18
"""Forms up to this size are looked into: larger ones have a file."""

_PLACES = re.compile(r"/v1/(?:(?P<kept>videos)|uploads|chats)/(?P<id>[^/]+)")
_MEDIA = ("video_id", "video_url", "video", "image_url", "image", "input_video")
_FIELD = re.compile(rb'name="(chat_id|chat|video_id|video_url)"\r\n\r\n([^\r\n]{1,4096})\r\n')
_MAX_DEPTH = 12


@dataclass(frozen=True, slots=True)
class Visit:
    """Where a request would like to go.

    Attributes:
        key: requests with the same one meet; None goes anywhere.
        is_fixed: they meet even in a server that is busier than others (two of them at once could disturb each other).
        server: the one that must have it, by its name.
        avoided: servers that could not be reached, or had not what was looked for.
    """

    key: str | None = None
    is_fixed: bool = False
    server: str | None = None
    avoided: tuple[str, ...] = ()


def visit_of_head(path: str, headers: Mapping[str, str]) -> Visit:
    """What path and headers say.

    Args:
        path: without the query.
        headers: by lower-case name.
    """
    if path.startswith("/ui/answers/"):
        return Visit(server=_cookie(headers.get("cookie", "")))
    if (place := _PLACES.match(path)) is not None:
        return Visit(place["id"], is_fixed=place["kept"] is None)
    return Visit(headers.get("x-routing-key"))


def key_of_json(body: bytes) -> str | None:
    """The first video or image that a JSON body names; None where there is none (the server will say what is wrong)."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return next(_media_of(values, _MAX_DEPTH), None)


def key_of_form(body: bytes) -> str | None:
    """The chat, or else the video, that a small form names."""
    fields = {name: value.decode(errors="replace") for name, value in _FIELD.findall(body)}
    return next((fields[name] for name in (b"chat_id", b"chat", b"video_id", b"video_url") if name in fields), None)


def _media_of(values: Any, depth: int) -> Iterator[str]:
    if depth == 0:
        return
    if isinstance(values, list):
        for value in values:
            yield from _media_of(value, depth - 1)
    elif isinstance(values, dict):
        for name in _MEDIA:
            value = values.get(name)
            address = value.get("url") if isinstance(value, dict) else value
            if isinstance(address, str) and address:
                yield address.removeprefix("video_id:")
        for value in values.values():
            if isinstance(value, dict | list):
                yield from _media_of(value, depth - 1)


def _cookie(header: str) -> str | None:
    try:
        cookies = SimpleCookie(header)
    except CookieError:
        return None
    return cookies[COOKIE].value if COOKIE in cookies else None
