"""The adapter is the only module that imports qwen_vl_utils; it knows no process, no cache and no request.

Importing it takes a second or two (torch, PyAV): decode processes do it at their start, the HTTP process in a thread.
"""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

import qwen_vl_utils as qwen
from qwen_vl_utils.constants import TOTAL_PIXELS_SHARE
from qwen_vl_utils.readers import DEFAULT_BACKEND
from qwen_vl_utils.readers import torchcodec as torchcodec_reader
from tru_vlm.paths import STATIC_DIR
from tru_vlm.plans import SamplingPlan
from tru_vlm.video.failures import DecodeFailure, DecodeSetupError, too_long
from tru_vlm.video.media import EffectiveSampling, MediaProbe, SampledInfo, num_visual_tokens

_SAMPLE = STATIC_DIR / "samples" / "red-circle.mp4"
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
EXIF_ORIENTATION = 0x0112
_EXIF_TURNS = {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}  # clockwise, mirroring left out (Exif 2.32, 4.6.4)


@contextmanager
def video_errors() -> Iterator[None]:
    """Turn qwen_vl_utils' errors into :class:`DecodeFailure`."""
    try:
        yield
    except qwen.VideoError as error:
        raise DecodeFailure(error.code, error.detail, stage=error.stage, cause=error.cause) from error


@dataclass(frozen=True, slots=True)
class FramesFile:
    """The ``.npy`` file that frames are decoded into.

    Attributes:
        path: where; there may be an empty file.
        max_bytes: most bytes of frames; None for no bound.
    """

    path: Path
    max_bytes: int | None = None

    @contextmanager
    def mapped(self, shape: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
        """The file as uint8 of a shape, mapped into memory.

        Its blocks are allocated first: a disk that fills up under a mapping ends the process (SIGBUS).

        Raises:
            DecodeFailure: ``storage_full``, or ``decode_memory`` where the process may not write so large a file.
        """
        num_bytes = int(np.prod(shape))
        if self.max_bytes is not None and num_bytes > self.max_bytes:
            raise DecodeFailure(
                "storage_full", f"{num_bytes} bytes of frames, room for {self.max_bytes}", stage="write"
            )
        try:
            with self.path.open("wb") as file:
                npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                offset = file.tell()
                _allocate(file.fileno(), offset, num_bytes)
        except OSError as error:
            if error.errno == errno.EFBIG:  # larger than the process may map: see decode_confinement.limit_memory
                raise DecodeFailure("decode_memory", stage="write", cause=str(error)) from error
            raise DecodeFailure("storage_full", "no room for the frames", stage="write", cause=str(error)) from error
        yield np.memmap(self.path, dtype=np.uint8, mode="r+", offset=offset, shape=shape)


def choose_reader(reader: str, device: str) -> str:
    """The decoder that the settings' values mean; its library is loaded, and no other one's.

    Raises:
        DecodeSetupError: it does not load here.
    """
    wanted = reader
    if reader == "auto":
        wanted = "torchcodec" if device == "cuda" else DEFAULT_BACKEND
    try:
        return qwen.choose_backend(wanted).name
    except qwen.BackendUnavailableError as error:
        if reader == "auto":
            raise DecodeSetupError(_refusal("VIDEO_DECODE_DEVICE", device, error)) from error
        loading = [name for name, state in qwen.backend_status().items() if state == "available"]
        text = f"{_refusal('VIDEO_READER', reader, error)} What loads here: {', '.join(loading)}."
        raise DecodeSetupError(text) from error


def check_device(device: str) -> None:
    """Decode a frame of a bundled clip where ``device`` says, unless that is the CPU.  Wakes CUDA: not before a fork.

    Raises:
        DecodeSetupError: it cannot be done here.
    """
    if device == "cpu":
        return
    try:
        torchcodec_reader.check_device(device, _SAMPLE)
    except qwen.BackendUnavailableError as error:
        raise DecodeSetupError(_refusal("VIDEO_DECODE_DEVICE", device, error)) from error


def _refusal(variable: str, value: str, error: qwen.BackendUnavailableError) -> str:
    reason = f"{error.detail} ({error.cause})" if error.cause else error.detail
    return f"{variable}={value}: {reason}."


def probe_video(path: Path) -> MediaProbe:
    """What a video's header says; where it tells no counts, its packets are counted (nothing is decoded).

    Raises:
        DecodeFailure: not a video that can be read.
    """
    with video_errors():
        probe = qwen.probe_video(path)
        duration, rate, num_frames = probe.duration_seconds, probe.average_fps, probe.num_frames
        if not (duration and rate and num_frames):
            table = qwen.scan_frames(path)
            duration, rate, num_frames = table.duration_seconds, table.average_fps, table.num_frames
    return MediaProbe(
        kind="video",
        container=probe.format_name,
        codec=probe.codec,
        width=probe.width,
        height=probe.height,
        duration_seconds=duration,
        average_fps=rate,
        num_frames=num_frames,
        rotation=probe.rotation_degrees,
        num_streams=probe.num_streams,
    )


def probe_image(path: Path) -> MediaProbe:
    """What an image's header says.

    Raises:
        DecodeFailure: not an image that can be read.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
            width, height = image.size
            name = image.format or "image"
    except Image.DecompressionBombError as error:
        raise DecodeFailure("image_too_large", "the image has too many pixels", stage="probe") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:  # Pillow's own for damaged headers
        raise DecodeFailure("unreadable_image", "the image is damaged", stage="probe", cause=str(error)) from error
    turn = _EXIF_TURNS.get(orientation, 0)
    if turn in (90, 270):
        width, height = height, width
    return MediaProbe(
        kind="image",
        container=name,
        codec=name.lower(),
        width=width,
        height=height,
        duration_seconds=None,
        average_fps=None,
        num_frames=1,
        rotation=turn,
    )


def plan_video(probe: MediaProbe, sampling: EffectiveSampling) -> SamplingPlan:
    """What would be sampled of a video, by arithmetic alone.

    Raises:
        DecodeFailure: the options do not fit the video.
    """
    counts = qwen.SourceCounts(
        num_frames=probe.num_frames or 0,
        average_fps=probe.average_fps or 0.0,
        height=probe.height,
        width=probe.width,
    )
    with video_errors():
        plan = qwen.plan_video(counts, _options(sampling), image_patch_size=sampling.patch_size)
    duration = probe.duration_seconds
    end = duration if sampling.video_end is None else min(sampling.video_end, duration or sampling.video_end)
    return SamplingPlan(
        kind="video",
        num_frames=plan.num_frames,
        height=plan.resized_height,
        width=plan.resized_width,
        video_tokens=plan.visual_tokens,
        frame_timestamps=tuple(plan.pts_seconds),
        source_fps=plan.source_fps,
        sample_fps=plan.sample_fps,
        video_start=sampling.video_start or 0.0,
        video_end=end,
        notes=tuple(note.message for note in plan.notes),
    )


def default_total_pixels(patch_size: int) -> int:
    """What ``total_pixels`` stands for when nobody sets it."""
    factor = qwen.SPATIAL_MERGE_SIZE * patch_size
    return int(qwen.MODEL_SEQ_LEN * factor**2 * TOTAL_PIXELS_SHARE)


def plan_image(probe: MediaProbe, sampling: EffectiveSampling) -> SamplingPlan:
    """The size and tokens that an image would have.

    Raises:
        DecodeFailure: no legal size.
    """
    factor = 2 * sampling.patch_size
    with video_errors():
        size = qwen.smart_resize(probe.height, probe.width, factor, sampling.min_pixels, sampling.max_pixels)
    height, width = max(factor, size[0]), max(factor, size[1])
    tokens = num_visual_tokens(num_frames=1, height=height, width=width, patch_size=sampling.patch_size)
    return SamplingPlan(kind="image", num_frames=1, height=height, width=width, video_tokens=tokens)


def sample_video(
    path: Path,
    sampling: EffectiveSampling,
    target: FramesFile,
    *,
    reader: str,
    num_threads: int,
    max_source_pixels: int | None = None,
    max_video_seconds: float = math.inf,
    device: str = "cpu",
) -> SampledInfo:
    """Decode a video's sampled frames into a new ``.npy`` file, uint8 (T, 3, H, W).

    Raises:
        DecodeFailure: the file cannot be decoded, the options do not fit it, it is longer or larger than its header
            said and than the limits, or the disk is full.
    """
    with video_errors():
        table = qwen.scan_frames(path)
        plan = qwen.plan_for_table(table, _options(sampling), image_patch_size=sampling.patch_size)
        _check_duration(plan, max_video_seconds)
        _check_count(sampling, plan)
        shape = (plan.num_frames, 3, plan.resized_height, plan.resized_width)
        with target.mapped(shape) as frames:
            sampled = qwen.decode_plan(
                table,
                plan,
                backend=reader,
                num_threads=num_threads,
                device=device,
                max_source_pixels=max_source_pixels,
                out=torch.from_numpy(frames),
            )
    num_frames, _, height, width = sampled.frames.shape
    return SampledInfo(
        kind="video",
        num_frames=num_frames,
        height=height,
        width=width,
        source_height=sampled.source_height,
        source_width=sampled.source_width,
        decoder=sampled.backend,
        duration_seconds=sampled.duration_seconds,
        source_fps=sampled.source_fps,
        sample_fps=sampled.sample_fps,
        timestamps_seconds=tuple(sampled.pts_seconds),
        frames_indices=tuple(sampled.frames_indices),
        notes=tuple(note.message for note in sampled.notes),
    )


def sample_image(path: Path, sampling: EffectiveSampling, target: FramesFile, *, max_source_pixels: int) -> SampledInfo:
    """Decode an image into a new ``.npy`` file, uint8 (1, 3, H, W).

    Raises:
        DecodeFailure: the file cannot be decoded, or the disk is full.
    """
    with video_errors():
        image = qwen.load_image(
            path,
            image_patch_size=sampling.patch_size,
            min_pixels=sampling.min_pixels,
            max_pixels=sampling.max_pixels,
            max_source_pixels=max_source_pixels,
        )
    probe = probe_image(path)
    with target.mapped((1, 3, image.height, image.width)) as frames:
        frames[0] = np.asarray(image).transpose(2, 0, 1)
    return SampledInfo(
        kind="image",
        num_frames=1,
        height=image.height,
        width=image.width,
        source_height=probe.height,
        source_width=probe.width,
        decoder="pillow",
    )


def _allocate(fd: int, offset: int, num_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, offset, num_bytes)
    else:  # macOS
        os.truncate(fd, offset + num_bytes)


def _options(sampling: EffectiveSampling) -> qwen.SamplingOptions:
    return qwen.SamplingOptions(
        fps=sampling.fps,
        nframes=sampling.nframes,
        min_frames=sampling.min_frames,
        max_frames=sampling.max_frames,
        min_pixels=sampling.min_pixels,
        max_pixels=sampling.max_pixels,
        total_pixels=sampling.total_pixels,
        video_start=sampling.video_start,
        video_end=sampling.video_end,
    )


def _check_duration(plan: qwen.VideoPlan, limit: float) -> None:
    """Refuse what is too long by its frames' times; the header may have promised less."""
    seconds = plan.total_num_frames / plan.source_fps
    if seconds > limit:
        raise DecodeFailure("video_too_long", too_long(seconds, limit), stage="sample")


def _check_count(sampling: EffectiveSampling, plan: qwen.VideoPlan) -> None:
    """Refuse an exact count that the span does not hold; the header may have promised more."""
    wanted, available = sampling.nframes, plan.num_source_frames
    if wanted is not None and wanted > max(available, 2) and not sampling.takes_fewer:
        text = f"nframes is {wanted}; the video has {available} frames in this span; with fit, all of them are taken"
        raise DecodeFailure("invalid_frame_count", text, stage="sample")


def frame_image(path: Path, index: int, *, image_format: str, max_side: int | None) -> bytes | None:
    """One frame of a ``.npy`` file as an image file; None outside of 0..T-1.

    Args:
        path: the frames.
        index: which of them.
        image_format: "jpeg", "png" or "webp".
        max_side: its longer side is made at most so many pixels; None leaves it as it is.
    """
    frames: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if not 0 <= index < frames.shape[0]:
        return None
    image = Image.fromarray(np.ascontiguousarray(frames[index].transpose(1, 2, 0)))
    if max_side is not None:
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, image_format, quality=85)
    return buffer.getvalue()
