"""``fetch_image`` and ``fetch_video``: the drop-in face. Owns the element's keys and the returned shapes, no decoding.

Rules: sections 5 and 6 of the behaviour that this package equals; what is better is said at each function.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from PIL import Image

from qwen_vl_utils.constants import (
    DEFAULT_IMAGE_PATCH_SIZE,
    FORCE_QWENVL_VIDEO_READER,
    FPS,
    FRAME_FACTOR,
    MAX_FRAME_LIST_THREADS,
    SPATIAL_MERGE_SIZE,
    torchcodec_num_threads,
)
from qwen_vl_utils.download import downloaded, is_url
from qwen_vl_utils.errors import ConversationError, FrameCountError, ImageError, SizeError
from qwen_vl_utils.images import ImageSource, decode_data_url, load_image
from qwen_vl_utils.resize import resize_into, target_size
from qwen_vl_utils.sampling import SamplingOptions
from qwen_vl_utils.video import SampledVideo, read_video

logger = logging.getLogger(__name__)

_SIZE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
_SAMPLING_KEYS = (
    *("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end", "total_pixels", "clamp_short"),
    *_SIZE_KEYS,
)
_SMALLEST_FPS = 1e-9


class VideoMetadata(dict[str, Any]):
    """Metadata of one video as the processors take it: fps, frames_indices, total_num_frames, video_backend.

    ``timestamps`` (seconds from the first frame, one per frame, real ones) and ``notes`` are attributes, not keys:
    Transformers builds its own class from the keys and refuses one that it does not know.
    """

    timestamps: list[float]
    notes: tuple[str, ...]

    def __init__(self, values: Mapping[str, Any], *, timestamps: list[float], notes: Sequence[str] = ()) -> None:
        super().__init__(values)
        self.timestamps = timestamps
        self.notes = tuple(notes)


def fetch_image(ele: Mapping[str, Any], image_patch_size: int = DEFAULT_IMAGE_PATCH_SIZE) -> Image.Image:
    """The image of a conversation element as PIL RGB, resized with the image bounds.

    ``ele["image"]`` (or ``ele["image_url"]``, also in OpenAI's {"url": ...} form): PIL image, encoded bytes, path,
    file://, http(s):// or data:image URL. Better than the interface that it equals: EXIF orientation is applied,
    every transparency lies on white, 16-bit grey is scaled, downloads have limits.

    Raises: KeyError without either key; ImageError, MissingFileError, DownloadError, SizeError (all ValueErrors).
    """
    source = ele["image"] if "image" in ele else ele["image_url"]
    if isinstance(source, Mapping):
        source = source.get("url")
    size = {key: ele[key] for key in _SIZE_KEYS if ele.get(key) is not None}
    with _local_image(source) as local:
        return load_image(local, image_patch_size=image_patch_size, **size)


@contextmanager
def _local_image(source: object) -> Iterator[ImageSource]:
    if isinstance(source, str):
        if is_url(source):
            with downloaded(source) as path:
                yield path
        elif source.startswith("data:image"):
            yield decode_data_url(source)
        else:
            yield _local_path(source)
    elif isinstance(source, Image.Image | Path | bytes):
        yield source
    else:
        kind = type(source).__name__
        raise ImageError(f"an image cannot be a {kind}: a path, URL, data URL, bytes or PIL image is accepted")


def _local_path(text: str) -> Path:
    """A path, or the path in a file:// URL (as it stands if such a file exists, else with %20 and the like decoded)."""
    if not text.startswith("file://"):
        return Path(text)
    path = Path(text.removeprefix("file://"))
    return path if path.exists() else Path(unquote(str(path)))


def fetch_video(
    ele: Mapping[str, Any],
    image_patch_size: int = DEFAULT_IMAGE_PATCH_SIZE,
    return_video_sample_fps: bool = False,
    return_video_metadata: bool = False,
    *,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The video of a conversation element: float32 (T, 3, h, w) holding integers 0..255, T even.

    ``ele["video"]``: a path, file:// or http(s):// URL, or a list of frames (anything that ``fetch_image`` takes).
    Returns video | (video, sample_fps) | (video, metadata) | ((video, metadata), sample_fps).

    Better than the interface that it equals: errors are ValueErrors that name file, stage and cause; a video of one
    frame gives two; ``ele["clamp_short"] = True`` moves counts that do not fit instead of refusing them; on a variable
    frame rate video_start / video_end mean real time; metadata carries real ``timestamps``; ``dtype=torch.uint8``
    saves three quarters of the memory.
    """
    video = ele["video"]
    if isinstance(video, str | Path):
        frames, sample_fps, metadata = _from_file(video, ele, image_patch_size)
    elif isinstance(video, list | tuple):
        frames, sample_fps, metadata = _from_frames(video, ele, image_patch_size)
    else:
        raise ConversationError(f"a video cannot be a {type(video).__name__}: a path, URL or list is accepted")
    tensor = frames.to(dtype)
    result = (tensor, metadata) if return_video_metadata else tensor
    return (result, sample_fps) if return_video_sample_fps else result


def sampling_options(ele: Mapping[str, Any]) -> SamplingOptions:
    """The options of a video element. Keys that are None count as absent; ``clamp_short`` is off unless asked for."""
    values = {key: ele[key] for key in _SAMPLING_KEYS if ele.get(key) is not None}
    values.setdefault("clamp_short", False)
    fps = values.get("fps")
    if isinstance(fps, int | float) and fps <= 0:
        # The interface takes such a rate as "as few as possible"; SamplingOptions refuses it.
        values["fps"] = _SMALLEST_FPS
    return SamplingOptions(**values)


def _from_file(
    video: str | Path, ele: Mapping[str, Any], image_patch_size: int
) -> tuple[torch.Tensor, float, VideoMetadata]:
    with _local_video(video) as path:
        sampled = read_video(
            path,
            sampling=sampling_options(ele),
            image_patch_size=image_patch_size,
            backend=FORCE_QWENVL_VIDEO_READER,
            num_threads=torchcodec_num_threads(),
            arithmetic="float32",
        )
    for note in sampled.notes:
        logger.info("%s: %s", path.name, note)
    return sampled.frames, sampled.sample_fps, _metadata(sampled)


@contextmanager
def _local_video(video: str | Path) -> Iterator[Path]:
    if isinstance(video, Path):
        yield video
    elif is_url(video):
        with downloaded(video) as path:
            yield path
    else:
        yield _local_path(video)


def _metadata(sampled: SampledVideo) -> VideoMetadata:
    values = {
        "fps": sampled.source_fps,
        "frames_indices": list(sampled.frames_indices),
        "total_num_frames": sampled.num_source_frames,
        "video_backend": sampled.backend,
    }
    notes = tuple(str(note) for note in sampled.notes)
    return VideoMetadata(values, timestamps=list(sampled.pts_seconds), notes=notes)


def _from_frames(
    sources: Sequence[Any], ele: Mapping[str, Any], image_patch_size: int
) -> tuple[torch.Tensor, float, VideoMetadata]:
    """A list of frames: each resized as an image, padded to even with the last, then resized as a video."""
    if not sources:
        raise FrameCountError("the list of frames is empty")
    shared = {key: value for key, value in ele.items() if key not in ("type", "video")}
    with ThreadPoolExecutor(max_workers=min(MAX_FRAME_LIST_THREADS, len(sources))) as pool:
        # The interface hands the factor on as the patch size here: a list's frames first lie on a twice coarser grid.
        patch = SPATIAL_MERGE_SIZE * image_patch_size
        jobs = [pool.submit(fetch_image, {**shared, "image": frame}, patch) for frame in sources]
        images = [job.result() for job in jobs]
    images += images[-1:] * (-len(images) % FRAME_FACTOR)
    if len({image.size for image in images}) > 1:
        sizes = sorted({f"{image.height} x {image.width}" for image in images})
        raise SizeError(f"the frames of a list must agree in size after resizing; these are {', '.join(sizes)}")
    frames = _resized(images, ele, image_patch_size)
    sample_fps = ele["sample_fps"] if ele.get("sample_fps") is not None else FPS
    raw_fps = ele["raw_fps"] if ele.get("raw_fps") is not None else sample_fps
    values = {
        "fps": raw_fps,
        "frames_indices": list(range(len(images))),
        "total_num_frames": len(images) / sample_fps * raw_fps,
    }
    # The indices count sampled frames, so their time follows from the sampled rate, not from fps.
    return frames, sample_fps, VideoMetadata(values, timestamps=[i / sample_fps for i in range(len(images))])


def _resized(images: Sequence[Image.Image], ele: Mapping[str, Any], image_patch_size: int) -> torch.Tensor:
    keys = (*_SIZE_KEYS, "total_pixels")
    height, width = target_size(
        images[0].height,
        images[0].width,
        num_frames=len(images),
        image_patch_size=image_patch_size,
        **{key: ele[key] for key in keys if ele.get(key) is not None},
    )
    out = torch.empty((len(images), 3, height, width), dtype=torch.uint8)
    for row, image in zip(out, images, strict=True):
        resize_into(torch.from_numpy(np.array(image)).permute(2, 0, 1), row, "float32")
    return out
