"""The source makes a local file of whatever a request names as its video: an upload, a data URI or a URL."""

from __future__ import annotations

from tru_vlm.intake.data_uri import is_data_uri, spool_data_uri
from tru_vlm.intake.fetch import UrlFetcher
from tru_vlm.intake.spool import Spool, SpooledFile


class VideoSource:
    """Where files come from.

    Args:
        fetcher: fetches URLs, within limits of its own.
        spool: where the files lie.
        max_bytes: largest file of a data URI.
    """

    def __init__(self, fetcher: UrlFetcher, spool: Spool, *, max_bytes: int) -> None:
        self._fetcher = fetcher
        self._spool = spool
        self._max_bytes = max_bytes

    async def file(self, video: SpooledFile | str, *, param: str, cache_salt: str = "") -> SpooledFile:
        """The video as a file, which the caller removes.

        Args:
            video: a file that has been uploaded, a data URI, or an http(s) URL.
            param: the request's field that held it, for errors.
            cache_salt: what was fetched under another one is not found; a tenant's.

        Raises:
            TruError: it cannot be had, must not be, or is too large; nothing is left on disk.
        """
        if isinstance(video, SpooledFile):
            return video
        if is_data_uri(video):
            return await spool_data_uri(video, spool=self._spool, max_bytes=self._max_bytes, param=param)
        return await self._fetcher.salted(cache_salt).fetch(video, param=param)


def is_remote(video: SpooledFile | str) -> bool:
    """Whether another machine has to be asked for it."""
    return isinstance(video, str) and not is_data_uri(video)
