"""Stage 0: renders the training clips once, as the model will see them (small uint8 frames), and stores them in shards.

Part of the clips goes through real H.264; the rest is drawn at the frame's final size or resized, half of it
through JPEG.
"""

from __future__ import annotations

import io
import multiprocessing
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from demo_model.generator import ClipSpec, clip_spec, encode, is_observable, object_state, render_frame, sampled_indices
from demo_model.training.frames import resized, target_size

TRAIN_SEED = 1_000_000_000  # training seeds start here; scores and tests use smaller ones
ODD_RESOLUTIONS = ((64, 64), (96, 96), (160, 120), (128, 64), (300, 300), (180, 320), (352, 288))
ENCODED_RESOLUTIONS = ((320, 240), (640, 480), (256, 256), (240, 320), (426, 240))
CHEAP_FPS = (8.0, 10.0, 12.0, 15.0)  # real encodes cost by the frame
ENCODED_SHARE = 0.2  # of all lengths: a codec hides slow changes, which is what makes long clips hard


@dataclass(frozen=True)
class PoolClip:
    """What the model sees of a clip. indices: frame numbers in the source, one per frame; frames: (n, h, w, 3)
    uint8.
    """

    spec: ClipSpec
    kind: str  # "video" or "image"
    indices: tuple[int, ...]
    frames: NDArray[np.uint8]

    @property
    def seconds(self) -> list[float]:
        """Time of each frame."""
        return [index / self.spec.fps for index in self.indices]


def _random_seconds(rng: np.random.Generator) -> float:
    """2 to 20 s; short clips are more frequent."""
    if rng.random() < 0.5:
        return float(rng.uniform(2.0, 20.0))
    return float(np.exp(rng.uniform(np.log(2.0), np.log(20.0))))


def _cut(rng: np.random.Generator, spec: ClipSpec) -> tuple[int, ...] | None:
    """Frame numbers of a sampled window of the clip that still shows all that happens; None where there is none."""
    last = spec.num_frames - 1
    begin = int(rng.uniform(0, 0.3) * last)
    end = int(rng.uniform(0.7, 1.0) * last)
    if end - begin < 2 * spec.fps:
        return None
    return tuple(begin + index for index in sampled_indices(end - begin + 1, spec.fps))


def _choose_indices(rng: np.random.Generator, spec: ClipSpec) -> tuple[int, ...]:
    """Nominal sampling as a rule; other rates and cuts now and then, where they still show what happens."""
    nominal = tuple(sampled_indices(spec.num_frames, spec.fps))
    chance = rng.random()
    candidate: tuple[int, ...] | None = None
    if chance < 0.10:
        candidate = tuple(sampled_indices(spec.num_frames, spec.fps, float(rng.choice([1.0, 1.5, 3.0, 4.0]))))
    elif chance < 0.20:
        candidate = _cut(rng, spec)
    if candidate is None or len(candidate) > 44 or not is_observable(spec, [index / spec.fps for index in candidate]):
        return nominal
    return candidate


def _jpeg(frame: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """The frame after lossy compression with halved chroma, the cheap stand-in for a video codec."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(buffer))


def _draw_frames(rng: np.random.Generator, spec: ClipSpec, indices: tuple[int, ...]) -> NDArray[np.uint8]:
    """Frames without a codec, at the model's size: drawn there, or drawn larger and resized."""
    height, width = target_size(spec.height, spec.width)
    scale = 1
    if rng.random() < 0.4:
        scale = 2
    frames = [render_frame(spec, index / spec.fps, height * scale, width * scale) for index in indices]
    if rng.random() < 0.5:
        quality = int(rng.integers(25, 92))
        frames = [_jpeg(frame, quality) for frame in frames]
    return resized(np.stack(frames), height, width)


def decode(path: Path, indices: tuple[int, ...]) -> NDArray[np.uint8]:
    """The named frames of a video file, (n, h, w, 3), decoded by PyAV."""
    import av

    wanted, found = set(indices), {}
    with av.open(str(path)) as container:
        for number, picture in enumerate(container.decode(video=0)):
            if number in wanted:
                found[number] = picture.to_ndarray(format="rgb24")
    return np.stack([found[index] for index in indices])


def encoded_frames(spec: ClipSpec, indices: tuple[int, ...]) -> NDArray[np.uint8]:
    """Frames after real H.264, at the model's size."""
    with tempfile.TemporaryDirectory() as folder:
        return resized(decode(encode(spec, Path(folder) / "clip.mp4"), indices), *target_size(spec.height, spec.width))


def _image_clip(rng: np.random.Generator, spec: ClipSpec) -> PoolClip:
    """A still (or a video of one frame): the same visible frame twice."""
    visible = [i for i in range(spec.num_frames) if object_state(spec, i / spec.fps).visible]
    index = int(rng.choice(visible))
    frames = _draw_frames(rng, spec, (index,))
    kind = "image" if rng.random() < 0.8 else "video"
    return PoolClip(spec, kind, (0, 0) if kind == "video" else (index, index), np.repeat(frames, 2, axis=0))


def build_clip(seed: int) -> PoolClip:
    """The training clip of a seed."""
    rng = np.random.default_rng((seed, 1))
    is_encoded, is_image = rng.random() < ENCODED_SHARE, rng.random() < 0.05
    resolution = ODD_RESOLUTIONS[int(rng.integers(len(ODD_RESOLUTIONS)))] if rng.random() < 0.06 else None
    if is_encoded:
        resolution = resolution or ENCODED_RESOLUTIONS[int(rng.choice(5, p=(0.52, 0.18, 0.1, 0.1, 0.1)))]
    spec = clip_spec(
        TRAIN_SEED + seed,
        num_events=1 if rng.random() < 0.42 else 2,
        duration_seconds=_random_seconds(rng),
        resolution=resolution,
        fps=float(rng.choice(CHEAP_FPS)) if is_encoded else None,
    )
    if is_image:
        return _image_clip(rng, spec)
    indices = _choose_indices(rng, spec)
    frames = encoded_frames(spec, indices) if is_encoded else _draw_frames(rng, spec, indices)
    return PoolClip(spec, "video", indices, frames)


def _build_shard(job: tuple[Path, int, int]) -> Path:
    """Writes clips first..last-1 into one file, unless it is there."""
    folder, first, last = job
    torch.set_num_threads(1)
    path = folder / f"pool_{first:06d}.pkl"
    if not path.exists():
        clips = [build_clip(seed) for seed in range(first, last)]
        partial = path.with_suffix(".part")
        partial.write_bytes(pickle.dumps(clips, protocol=5))
        partial.rename(path)
    return path


def build_pool(folder: Path, num_clips: int, shard_size: int = 250, processes: int = 2) -> list[Path]:
    """Renders all shards, in parallel; finished shards are kept. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, first, min(first + shard_size, num_clips)) for first in range(0, num_clips, shard_size)]
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        return list(workers.imap(_build_shard, jobs))


def load_shard(path: Path) -> list[PoolClip]:
    """The clips of a shard that build_pool wrote."""
    clips: list[PoolClip] = pickle.loads(path.read_bytes())  # noqa: S301 - our own file of a moment ago
    return clips
