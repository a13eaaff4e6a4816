"""What routes call to keep videos and to look at kept ones.  It knows no HTTP; what is kept is the library's business.

Everything that is kept was probed first: nothing lies in the library that a question could not be asked about.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from tru_vlm.api.pipeline.frames_url import content_key_of, frames_url
from tru_vlm.api.pipeline.places import Places
from tru_vlm.api.pipeline.request_run import timed_out
from tru_vlm.database import Database
from tru_vlm.errors import InvalidRequestError, NotFoundError
from tru_vlm.intake.multipart import receive_multipart
from tru_vlm.intake.source import VideoSource
from tru_vlm.intake.spool import Spool, SpooledFile
from tru_vlm.library import catalog
from tru_vlm.library.catalog import Video
from tru_vlm.library.store import VideoLibrary
from tru_vlm.library.uploads import Upload, UploadStore
from tru_vlm.principal import cache_salt_of
from tru_vlm.settings import Settings
from tru_vlm.types import KeptVideo, VideoInfo, VideoParams
from tru_vlm.video.media import SamplingBounds
from tru_vlm.video.service import FramesLease, VideoService

logger = logging.getLogger(__name__)

_EXPIRY_SECONDS = 60.0
_MAX_FIELD_BYTES = 1 << 16
_MAX_FIELDS = 8
_POSTER_PIXELS = 1 << 18
_POSTER_SHARE, _POSTER_SPAN_SECONDS = 0.1, 1.0
"""A poster is taken a little into the video, since many begin black."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The library's parts."""

    database: Database
    videos: VideoLibrary
    uploads: UploadStore


def build_stores(settings: Settings, spool: Spool) -> Stores:
    """The library of a server."""
    folder = settings.storage_dir / "library"
    database = Database(folder / "library.sqlite3", catalog.MIGRATIONS, is_shared=settings.storage_shared)
    library = VideoLibrary(
        folder,
        database,
        spool,
        max_bytes=settings.max_library_bytes,
        ttl_seconds=settings.video_ttl_seconds,
    )
    uploads = UploadStore(
        folder,
        database,
        library,
        spool,
        ttl_seconds=settings.upload_ttl_seconds,
        free_space_floor=settings.min_free_bytes,
    )
    return Stores(database, library, uploads)


def borrow_from(library: VideoLibrary) -> Callable[[KeptVideo, str, str], Awaitable[SpooledFile]]:
    """How a request's source gets a kept video."""

    async def borrow(video: KeptVideo, owner: str, param: str) -> SpooledFile:
        _, file = await library.borrow(video.id, owner, param=param)
        return file

    return borrow


class LibraryService:
    """One per HTTP process.

    Args:
        settings: the server's configuration.
        stores: the library.
        spool: where files lie while they arrive.
        source: gets files from addresses.
        videos: probes and samples.
        bounds_of: what a sampling of a video may be, by the model that is asked for and the video's id; raises where
            there is no such model.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stores: Stores,
        spool: Spool,
        source: VideoSource,
        videos: VideoService,
        bounds_of: Callable[[str | None, str], SamplingBounds],
    ) -> None:
        self.store = stores.videos
        self.uploads = stores.uploads
        self._settings = settings
        self._database = stores.database
        self._spool = spool
        self._source = source
        self._videos = videos
        self._bounds_of = bounds_of
        self._places = Places(settings.max_queued_requests)
        self._expiry: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the library, mend what a killed process left, and begin to let videos expire.

        Raises:
            DatabaseError: its database cannot be used.
        """
        await self._database.start()
        await self.store.start()
        await self.uploads.start()
        self._expiry = asyncio.create_task(self._expire(), name="library expiry")

    async def close(self) -> None:
        """Stop expiry and close the database."""
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.wait({self._expiry})
        await self._database.close()

    async def receive(self, chunks: AsyncIterator[bytes], content_type: str, *, owner: str) -> tuple[Video, bool]:
        """Keep the file of a form with the file `video` and, if it shall have another name, the field `filename`.

        Returns:
            The video, and whether it is new.

        Raises:
            TruError: the form or the file is wrong, or there is no room; nothing is left on disk.
        """
        with self._place():
            form = await receive_multipart(
                chunks,
                content_type,
                spool=self._spool,
                file_fields=frozenset({"video"}),
                max_file_bytes=self._settings.max_upload_bytes,
                max_field_bytes=_MAX_FIELD_BYTES,
                max_fields=_MAX_FIELDS,
            )
            file = form.files.get("video")
            try:
                unknown = sorted(set(form.fields) - {"filename", "video"})
                if unknown:
                    text = f"Unknown field {unknown[0]!r}; accepted are video and filename."
                    raise InvalidRequestError(text, param=unknown[0], code="unknown_field")
                if file is None:
                    raise InvalidRequestError("The file `video` is missing.", param="video", code="missing_field")
                return await self._keep(file, form.fields.get("filename"), owner=owner, param="video")
            finally:
                if file is not None:
                    await self._spool.remove(file)

    async def fetch(self, url: str, filename: str | None, *, owner: str) -> tuple[Video, bool]:
        """Keep what an address leads to.

        Returns:
            The video, and whether it is new.

        Raises:
            TruError: it cannot be had, is no video, or there is no room; nothing is left on disk.
        """
        with self._place():
            file = await self._source.file(url, param="video_url", owner=owner)
            try:
                return await self._keep(file, filename, owner=owner, param="video_url")
            finally:
                await self._spool.remove(file)

    async def finish(self, upload: Upload) -> Upload:
        """Make a kept video of an upload, if it is complete and is none yet.

        Raises:
            TruError: the file is no video, or over a ceiling; the upload is then removed.
        """

        async def keep(file: SpooledFile) -> str:
            probe = await self._videos.inspect(file, "upload", cache_salt_of(upload.owner))
            video, _ = await self.store.put(
                file, probe, filename=file.filename, owner=upload.owner, upload_id=upload.id, param="upload"
            )
            return video.content.sha256

        if not upload.is_complete or upload.sha256 is not None:
            return upload
        return await self.uploads.finish(upload.id, upload.owner, keep)

    @contextlib.asynccontextmanager
    async def frames(
        self,
        video_id: str,
        params: VideoParams,
        *,
        owner: str,
        model: str | None = None,
        is_use: bool = True,
    ) -> AsyncIterator[FramesLease]:
        """The frames that a question with these options would see; the video's life begins anew where it is a use.

        Args:
            video_id: a kept one.
            params: how it is sampled.
            owner: whose it is.
            model: which model would see them; by default the server's.
            is_use: whether somebody wants them.

        Raises:
            NotFoundError: no such video is kept, or there is no such model.
            InvalidRequestError: the options contradict each other, the file or the ceilings.
            OverloadedError: too many want some.
        """
        with self._place():
            try:
                async with asyncio.timeout(self._settings.request_timeout_seconds):
                    bounds = self._bounds_of(model, video_id)
                    lease = await self._sample(video_id, params, bounds, owner, is_use=is_use)
            except TimeoutError:
                raise timed_out(self._settings.request_timeout_seconds) from None
            except InvalidRequestError as error:
                error.param = error.param and error.param.removeprefix("video_params.")  # the options are flat here
                raise
        with lease:
            yield lease

    async def seen_frames(self, video_id: str, seen: VideoInfo, *, owner: str) -> VideoInfo:
        """What a model saw of a video once, with an address where its frames can be had now.

        Options that were made to fit then may give other frames now.  So the same frames are looked for; where they are
        not there any more, as many are taken of the same span, as large.

        Args:
            video_id: a kept one.
            seen: as the answer told it.
            owner: whose it is.

        Raises:
            NotFoundError: no such video is kept, or it does not give as many frames any more.
            TruError: it cannot be decoded now.
        """
        if seen.frames_url is not None and await self._videos.has_frames(content_key_of(seen.frames_url)):
            return seen
        params = VideoParams(max_pixels=seen.height * seen.width, min_pixels=1)
        if seen.kind == "video":
            end = seen.video_end if seen.video_end != seen.duration_seconds else None
            params = dataclasses.replace(
                params, nframes=seen.num_frames, video_start=seen.video_start, video_end=end, fit=True
            )
        async with self.frames(video_id, params, owner=owner) as lease:
            if lease.info.num_frames != seen.num_frames:
                raise NotFoundError("The video does not give the same frames any more.", code="frames_not_found")
            return dataclasses.replace(seen, frames_url=frames_url(lease.ref.content_key))

    async def frame(self, lease: FramesLease, index: int, *, image_format: str, max_side: int | None) -> bytes | None:
        """One of the frames as an image file; None outside of 0..T-1."""
        return await self._videos.frame_image(lease, index, image_format=image_format, max_side=max_side)

    async def poster(self, video_id: str, *, max_side: int, owner: str) -> bytes:
        """A small picture of a video, JPEG; to look at it is no use of the video.  Raises as :meth:`frames`."""
        video = await self.store.get(video_id, owner)
        params = VideoParams(max_pixels=_POSTER_PIXELS, min_pixels=1)
        duration = video.content.duration_seconds
        if video.content.kind == "video":
            params = VideoParams(nframes=2, max_pixels=_POSTER_PIXELS, fit=True)
        if duration is not None and duration * _POSTER_SHARE > _POSTER_SPAN_SECONDS:
            begin = duration * _POSTER_SHARE
            params = VideoParams(
                nframes=2,
                max_pixels=_POSTER_PIXELS,
                fit=True,
                video_start=begin,
                video_end=begin + _POSTER_SPAN_SECONDS,
            )
        async with self.frames(video_id, params, owner=owner, is_use=False) as lease:
            jpeg = await self.frame(lease, 0, image_format="jpeg", max_side=max_side)
        assert jpeg is not None  # noqa: S101 - there is always a first frame
        return jpeg

    async def _sample(
        self, video_id: str, params: VideoParams, bounds: SamplingBounds, owner: str, *, is_use: bool
    ) -> FramesLease:
        _, file = await self.store.borrow(video_id, owner, is_use=is_use)
        try:
            salt = cache_salt_of(owner)
            probe = await self._videos.inspect(file, "video_id", salt)
            return await self._videos.frames(file, probe, params, bounds, param="video_id", cache_salt=salt)
        finally:
            await self._spool.remove(file)

    async def _keep(self, file: SpooledFile, filename: str | None, *, owner: str, param: str) -> tuple[Video, bool]:
        probe = await self._videos.inspect(file, param, cache_salt_of(owner))
        return await self.store.put(file, probe, filename=filename or file.filename, owner=owner, param=param)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        self._places.take()
        try:
            yield
        finally:
            self._places.give_back()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_SECONDS)
            try:
                await self.store.expire()
                await self.uploads.expire()
            except Exception:
                logger.exception("what has expired could not be removed; it is tried again")
