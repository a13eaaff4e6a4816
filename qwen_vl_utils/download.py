"""http(s) to a local file, with a time limit and a size limit. For scripts: it guards against no private address.

A server that takes URLs from strangers fetches them itself and gives this package local paths.
"""

from __future__ import annotations

import http.client
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from qwen_vl_utils.errors import DownloadError

MAX_DOWNLOAD_BYTES = 2 * 2**30
DOWNLOAD_TIMEOUT_SECONDS = 300.0
IDLE_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 2**20


def is_url(text: str) -> bool:
    """Whether ``text`` is one that ``download`` accepts."""
    return text.lower().startswith(("http://", "https://"))


@contextmanager
def downloaded(
    url: str,
    *,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    timeout_seconds: float = DOWNLOAD_TIMEOUT_SECONDS,
    idle_timeout_seconds: float = IDLE_TIMEOUT_SECONDS,
) -> Iterator[Path]:
    """The body of ``url`` as a temporary file that is gone afterwards. Raises DownloadError.

    ``timeout_seconds`` bounds the whole transfer, ``idle_timeout_seconds`` each wait for data.
    """
    if not is_url(url):
        raise DownloadError(f"scheme {urlsplit(url).scheme!r}: http and https are accepted")
    with tempfile.TemporaryDirectory(prefix="qwen-vl-") as folder:
        path = Path(folder) / "download"
        deadline = time.monotonic() + timeout_seconds
        try:
            with _open(url, idle_timeout_seconds) as response, path.open("wb") as file:
                _copy(response, file, max_bytes=max_bytes, deadline=deadline)
        except (OSError, http.client.HTTPException, ValueError) as cause:
            if isinstance(cause, DownloadError):
                raise
            raise DownloadError("the URL cannot be fetched", cause=cause) from cause
        yield path


def _open(url: str, idle_timeout_seconds: float) -> http.client.HTTPResponse:
    """An answer with status 2xx. The opener knows http and https only, so that no redirect leads to a file."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "qwen_vl_utils"})  # noqa: S310 - scheme was checked
    response: http.client.HTTPResponse = opener.open(request, timeout=idle_timeout_seconds)
    return response


def _copy(source: http.client.HTTPResponse, target: IO[bytes], *, max_bytes: int, deadline: float) -> None:
    promised = source.headers.get("Content-Length", "")
    if promised.isdigit() and int(promised) > max_bytes:
        raise DownloadError(f"the URL holds {promised} bytes: at most {max_bytes} are accepted")
    received = 0
    while chunk := source.read1(_CHUNK_BYTES):
        received += len(chunk)
        if received > max_bytes:
            raise DownloadError(f"the URL holds more than {max_bytes} bytes")
        if time.monotonic() > deadline:
            raise DownloadError(f"the URL took too long: {received} bytes came in time")
        target.write(chunk)
    if promised.isdigit() and received < int(promised):
        raise DownloadError(f"the URL broke off after {received} of {promised} bytes")
