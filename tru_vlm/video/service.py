"""The service answers for a file's frames: what is in it, what would be sampled, the frames.  It knows no HTTP.

It composes the sniffing, the decode pool and the frame cache, and is the one place of this package where failures
become errors for clients.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Self

from tru_vlm.errors import InvalidRequestError, UnsupportedMediaError
from tru_vlm.plans import SamplingPlan
from tru_vlm.types import FramesRef, VideoInfo, VideoParams
from tru_vlm.video.decode_pool import DecodePool, DecodePoolStats
from tru_vlm.video.failures import DecodeFailure, client_error, too_long
from tru_vlm.video.fitting import Fit, Frames, fit_sampling
from tru_vlm.video.frame_cache import FrameCache, FrameCacheStats, FrameLease, shared_memory_directory
from tru_vlm.video.media import (
    TEMPORAL_PATCH_SIZE,
    DecodeDevice,
    EffectiveSampling,
    LocalFile,
    MediaProbe,
    ReaderName,
    SampledInfo,
    SamplingBounds,
    VideoAllowance,
    num_visual_tokens,
)
from tru_vlm.video.media_type import ACCEPTED, read_head, sniff_media_type
from tru_vlm.video.probe_memory import ProbeMemory
from tru_vlm.video.sampling import settle_sampling

CACHE_FORMAT = 2
"""Part of every cache key; to be raised when the same options give other frames than before."""

MAX_STREAMS = 64
_MAX_PROBES = 4096


@dataclass(frozen=True, slots=True)
class VideoServiceStats:
    """Counters of both parts."""

    pool: DecodePoolStats
    cache: FrameCacheStats


class FramesLease:
    """Sampled frames in use; they stay on disk until :meth:`release`.  Usable in ``with`` and ``async with``.

    Attributes:
        ref: what a worker needs to read them.
        info: what the answer says about them; ``frames_url`` is left None.
        is_cached: whether they were there already.
    """

    def __init__(self, *, lease: FrameLease, ref: FramesRef, info: VideoInfo) -> None:
        self.ref = ref
        self.info = info
        self.is_cached = lease.is_hit
        self._lease = lease

    def release(self) -> None:
        """Let the frames go; a second call does nothing."""
        self._lease.release()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release."""
        self.release()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Release."""
        self.release()


@dataclass(frozen=True, slots=True)
class _Settled:
    """How a file will be sampled, and what was changed for it."""

    sampling: EffectiveSampling
    notes: tuple[str, ...]
    fit: Fit | None = None

    def fit_notes(self, taken: Frames) -> tuple[str, ...]:
        return self.fit.notes(taken) if self.fit is not None else ()


class VideoService:
    """Probe, plan and sample local files.  For one event loop."""

    def __init__(
        self,
        *,
        frames_dir: Path,
        frame_cache_bytes: int,
        frame_cache_memory_bytes: int = 0,
        min_free_bytes: int = 0,
        decode_processes: int,
        decode_timeout_seconds: float,
        decode_memory_bytes: int,
        reader: ReaderName = "auto",
        device: DecodeDevice = "cpu",
        max_video_seconds: float = 4 * 3600.0,
        max_source_pixels: int = 8192 * 8192,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        """Remember how; nothing starts before :meth:`start`.

        Args:
            frames_dir: folder of sampled frames.
            frame_cache_bytes: disk space for them.
            frame_cache_memory_bytes: shared memory for them.
            min_free_bytes: disk space that they leave free.
            decode_processes: files decoded at once.
            decode_timeout_seconds: wall clock for one file.
            decode_memory_bytes: address space of one decode process; with CUDA its own memory.
            reader: which decoder.
            device: where it decodes.
            max_video_seconds: longest video.
            max_source_pixels: largest width x height of a source frame or image.
            max_streams: most streams of a container.
        """
        self._pool = DecodePool(
            decode_processes,
            decode_timeout_seconds,
            decode_memory_bytes,
            reader,
            device=device,
            max_source_pixels=max_source_pixels,
            max_video_seconds=max_video_seconds,
        )
        self._cache = FrameCache(
            Path(frames_dir),
            frame_cache_bytes,
            memory_directory=shared_memory_directory(Path(frames_dir)),
            memory_bytes=frame_cache_memory_bytes,
            min_free_bytes=min_free_bytes,
        )
        self._probes = ProbeMemory(_MAX_PROBES)
        self._reader_setting = reader
        self._device = device
        self._max_video_seconds = max_video_seconds
        self._max_source_pixels = max_source_pixels
        self._max_streams = max_streams
        self._reader: ModuleType | None = None

    async def start(self) -> None:
        """Start the decode processes and load the arithmetic; takes as long as importing torch does.

        Raises:
            PoolStartError: decode processes cannot start; the text says why.
        """
        self._reader = await self._cache.run(_import_reader)
        await self._pool.start()
        await self._cache.start()

    async def close(self) -> None:
        """End decodes and processes; frames stay on disk for the next start."""
        await self._cache.close()
        await self._pool.close()

    def stats(self) -> VideoServiceStats:
        """Counters and gauges; cheap."""
        return VideoServiceStats(pool=self._pool.stats(), cache=self._cache.stats())

    async def inspect(self, file: LocalFile, param: str = "video", cache_salt: str = "") -> MediaProbe:
        """What a file holds, if the server takes it.  Content that was accepted before is not probed again.

        Args:
            file: a complete file.
            param: the request's field that errors name.
            cache_salt: a tenant's; what is known of a content is found only under the same one, since it is quicker.

        Raises:
            UnsupportedMediaError: not a video or image that is read here, or damaged beyond use.
            InvalidRequestError: over a ceiling; the text has the numbers.
        """
        key = cache_salt + file.sha256
        probe = self._probes.get(key)
        if probe is None:
            probe = await self._probe(file, param)
            self._probes.put(key, probe)
        return probe

    def plan(
        self,
        probe: MediaProbe,
        params: VideoParams,
        bounds: SamplingBounds,
        *,
        allowance: VideoAllowance | None = None,
        param: str = "video",
    ) -> SamplingPlan:
        """What would be sampled, from what the file says; nothing is read.

        Args:
            probe: what :meth:`inspect` said.
            params: the request's wishes.
            bounds: what model and server allow.
            allowance: what the context has left; with ``params.fit`` the frames are made to fit into it.
            param: the request's field that errors name.

        Raises:
            InvalidRequestError: options that contradict each other, the file or the ceilings.
        """
        try:
            settled = self._settle(probe, params, bounds, allowance)
            planned = self._planned(probe, settled.sampling)
        except DecodeFailure as failure:
            raise client_error(failure, param=param) from failure
        return replace(planned, notes=settled.notes + planned.notes + settled.fit_notes(planned))

    async def frames(
        self,
        file: LocalFile,
        probe: MediaProbe,
        params: VideoParams,
        bounds: SamplingBounds,
        *,
        allowance: VideoAllowance | None = None,
        param: str = "video",
        cache_salt: str = "",
    ) -> FramesLease:
        """Sampled frames of an inspected file: from the cache, or decoded now.

        A cancelled await stops the decode at once, unless another request waits for the same frames.

        Args:
            file: the file that was inspected.
            probe: what :meth:`inspect` said.
            params: the request's wishes.
            bounds: what model and server allow.
            allowance: as for :meth:`plan`; the frames keep to it also when the file's header has lied.
            param: the request's field that errors name.
            cache_salt: a tenant's, hex digits; frames are found only under the same one, and their key begins with it.

        Raises:
            UnsupportedMediaError: it cannot be decoded, or decoding crashed, hung or swelled.
            InvalidRequestError: options do not fit what the file really holds, or it is longer than its header told
                and than what is accepted.
            UnavailableError: no disk space.
        """

        async def decode(out_path: Path, max_bytes: int | None) -> SampledInfo:
            return await self._pool.sample(file.path, sampling=settled.sampling, out_path=out_path, max_bytes=max_bytes)

        try:
            settled = self._settle(probe, params, bounds, allowance)
            key = content_key(
                file.sha256, settled.sampling, reader=self._reader_setting, device=self._device, salt=cache_salt
            )
            size = partial(self._planned_bytes, probe, settled.sampling)
            lease = await self._cache.get_or_decode(key, decode, size=size)
        except DecodeFailure as failure:
            raise client_error(failure, param=param) from failure
        notes = settled.notes + settled.fit_notes(lease.info)
        return FramesLease(
            lease=lease,
            ref=_frames_ref(key, lease),
            info=video_info(lease.info, sampling=settled.sampling, notes=notes),
        )

    async def has_frames(self, content_key: str) -> bool:
        """Whether these frames are in the cache."""
        try:
            lease = await self._cache.get(content_key)
        except ValueError:
            return False
        if lease is None:
            return False
        with lease:
            return True

    async def frame_jpeg(self, content_key: str, index: int, max_side: int) -> bytes | None:
        """One cached frame as JPEG, its longer side at most ``max_side`` pixels.

        Returns:
            None when these frames are not in the cache (any more), or have no frame of this number.
        """
        try:
            lease = await self._cache.get(content_key)
        except ValueError:
            return None
        if lease is None:
            return None
        with lease:
            return await self._image(lease.path, index, "jpeg", max_side)

    async def frame_image(
        self, lease: FramesLease, index: int, *, image_format: str, max_side: int | None = None
    ) -> bytes | None:
        """One of the frames in use as an image file; None when there is none of this number.

        Args:
            lease: the frames.
            index: which of them.
            image_format: "jpeg", "png" or "webp".
            max_side: most pixels of its longer side; None leaves it as the model sees it.
        """
        return await self._image(Path(lease.ref.path), index, image_format, max_side)

    async def _image(self, path: Path, index: int, image_format: str, max_side: int | None) -> bytes | None:
        reader = self._reader if self._reader is not None else await self._cache.run(_import_reader)
        encode = partial(reader.frame_image, image_format=image_format, max_side=max_side)
        image: bytes | None = await self._cache.run(encode, path, index)
        return image

    async def _probe(self, file: LocalFile, param: str) -> MediaProbe:
        media_type = sniff_media_type(await self._cache.run(read_head, file.path), param=param)
        try:
            probe = await self._pool.probe(file.path, kind=media_type.kind)
        except DecodeFailure as failure:
            raise client_error(failure, param=param) from failure
        if media_type.demuxer not in probe.container.split(",") and media_type.kind == "video":
            # Content that is one thing to us and another to FFmpeg was made to be so.
            raise UnsupportedMediaError(f"The file is ambiguous. Accepted are {ACCEPTED}.", param=param)
        probe = replace(probe, container=media_type.name)
        self._check_ceilings(probe, param)
        return probe

    def _settle(
        self, probe: MediaProbe, params: VideoParams, bounds: SamplingBounds, allowance: VideoAllowance | None
    ) -> _Settled:
        sampling, notes = settle_sampling(probe, params, bounds)
        if not params.fit or allowance is None:
            return _Settled(sampling, notes)
        fit = fit_sampling(
            probe,
            sampling,
            allowance,
            plan=partial(self._planned, probe),
            model_min_pixels=bounds.pixels_of(probe.kind)[0],
            default_total_pixels=self._arithmetic().default_total_pixels(sampling.patch_size),
        )
        return _Settled(fit.sampling, notes, fit)

    def _planned(self, probe: MediaProbe, sampling: EffectiveSampling) -> SamplingPlan:
        reader = self._arithmetic()
        plan = reader.plan_image if probe.kind == "image" else reader.plan_video
        planned: SamplingPlan = plan(probe, sampling)
        return planned

    def _planned_bytes(self, probe: MediaProbe, sampling: EffectiveSampling) -> int:
        """How large the frames will be, with room for a pair more than the header promises."""
        plan = self._planned(probe, sampling)
        return (plan.num_frames + TEMPORAL_PATCH_SIZE) * 3 * plan.height * plan.width

    def _arithmetic(self) -> ModuleType:
        return self._reader or _import_reader()

    def _check_ceilings(self, probe: MediaProbe, param: str) -> None:
        if probe.duration_seconds is not None and probe.duration_seconds > self._max_video_seconds:
            failure = DecodeFailure("video_too_long", too_long(probe.duration_seconds, self._max_video_seconds))
            raise client_error(failure, param=param)
        if probe.width * probe.height > self._max_source_pixels:
            text = f"A frame is {probe.width} x {probe.height}; at most {self._max_source_pixels} pixels are accepted."
            raise InvalidRequestError(text, param=param, code="frame_too_large")
        if probe.num_streams > self._max_streams:
            text = f"The file has {probe.num_streams} streams; at most {self._max_streams} are accepted."
            raise InvalidRequestError(text, param=param, code="too_many_streams")


def content_key(sha256: str, sampling: EffectiveSampling, *, reader: str, device: str, salt: str = "") -> str:
    """The name of these frames: hex digest over the content and everything that makes the frames what they are.

    It begins with the salt, which tells whose they are: whoever knows a file and guesses a tenant could else compute
    the name of the tenant's frames, and learn from them whether the tenant has that file.
    """
    text = json.dumps([CACHE_FORMAT, sha256, reader, device, sampling.as_dict()], sort_keys=True)
    return salt + hashlib.sha256(text.encode()).hexdigest()[len(salt) :]


def video_info(info: SampledInfo, *, sampling: EffectiveSampling, notes: tuple[str, ...]) -> VideoInfo:
    """What the answer says about sampled frames."""
    span = _span(info, sampling)
    return VideoInfo(
        kind=info.kind,
        num_frames=info.num_frames,
        height=info.height,
        width=info.width,
        source_height=info.source_height,
        source_width=info.source_width,
        video_tokens=num_visual_tokens(
            num_frames=info.num_frames,
            height=info.height,
            width=info.width,
            patch_size=sampling.patch_size,
        ),
        decoder=info.decoder,
        duration_seconds=info.duration_seconds,
        source_fps=info.source_fps,
        sample_fps=info.sample_fps,
        frame_timestamps=info.timestamps_seconds,
        video_start=span[0],
        video_end=span[1],
        notes=tuple(dict.fromkeys(notes + info.notes)),
    )


def _span(info: SampledInfo, sampling: EffectiveSampling) -> tuple[float | None, float | None]:
    """The seconds that were looked at; None for images."""
    if info.duration_seconds is None:
        return None, None
    end = info.duration_seconds if sampling.video_end is None else min(sampling.video_end, info.duration_seconds)
    return sampling.video_start or 0.0, end


def _frames_ref(key: str, lease: FrameLease) -> FramesRef:
    info = lease.info
    return FramesRef(
        path=str(lease.path),
        kind=info.kind,
        content_key=key,
        num_frames=info.num_frames,
        height=info.height,
        width=info.width,
        timestamps_seconds=info.timestamps_seconds,
        frames_indices=info.frames_indices,
        source_fps=info.source_fps,
    )


def _import_reader() -> ModuleType:
    return importlib.import_module("tru_vlm.video.reader")
