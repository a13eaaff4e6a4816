"""The source makes a local file of what a request names as its video: an upload, a kept one, a data URI or a URL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tru_vlm.intake.data_uri import is_data_uri, spool_data_uri
from tru_vlm.intake.fetch import UrlFetcher
from tru_vlm.intake.spool import Spool, SpooledFile
from tru_vlm.principal import cache_salt_of
from tru_vlm.types import KeptVideo

MediaSource = SpooledFile | KeptVideo | str
"""A file that has been uploaded, a video that is kept, or an address: a data URI or an http(s) URL."""

Borrow = Callable[[KeptVideo, str, str], Awaitable[SpooledFile]]
"""A kept video, its owner and the request's field that named it, to a file of the caller's own."""


class VideoSource:
    """Where files come from.

    Args:
        fetcher: fetches URLs, within limits of its own.
        spool: where the files lie.
        borrow: has the kept videos.
        max_bytes: largest file of a data URI.
    """

    def __init__(self, fetcher: UrlFetcher, spool: Spool, borrow: Borrow, *, max_bytes: int) -> None:
        self._fetcher = fetcher
        self._borrow = borrow
        self._spool = spool
        self._max_bytes = max_bytes

    def check(self, video: MediaSource, *, param: str) -> None:
        """Refuse an address that leads nowhere, as far as can be told without going there.

        Raises:
            FetchError: the URL must not be fetched.
        """
        if isinstance(video, str) and not is_data_uri(video):
            self._fetcher.check(video, param=param)

    async def file(self, video: MediaSource, *, param: str, owner: str) -> SpooledFile:
        """The video as a file, which the caller removes.

        Args:
            video: where it is.
            param: the request's field that held it, for errors.
            owner: whose kept videos, and fetched ones, are looked at: a tenant.

        Raises:
            NotFoundError: no such video is kept.
            TruError: it cannot be had, must not be, or is too large; nothing is left on disk.
        """
        if isinstance(video, SpooledFile):
            return video
        if isinstance(video, KeptVideo):
            return await self._borrow(video, owner, param)
        if is_data_uri(video):
            return await spool_data_uri(video, spool=self._spool, max_bytes=self._max_bytes, param=param)
        return await self._fetcher.salted(cache_salt_of(owner)).fetch(video, param=param)


def is_remote(video: MediaSource) -> bool:
    """Whether another machine has to be asked for it."""
    return isinstance(video, str) and not is_data_uri(video)
