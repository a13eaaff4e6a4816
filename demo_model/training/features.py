"""Stage 2: runs the finished vision tower over the pool once, so that the language model trains without it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from demo_model.generator import ClipSpec
from demo_model.training.frames import FACTOR
from demo_model.training.pool import PoolClip, load_shard
from demo_model.training.vision import tower


@dataclass(frozen=True)
class FeatureClip:
    """A clip as the language model gets it.

    seconds: time of each frame. grid: rows and columns of merged tokens. features: (patches, tokens, 2, hidden)
    bfloat16, merged and deepstack.
    """

    spec: ClipSpec
    is_picture: bool
    seconds: tuple[float, ...]
    grid: tuple[int, int]
    features: Tensor

    def patches(self, first: int, last: int) -> FeatureClip:
        """The clip cut to some of its temporal patches."""
        return replace(self, seconds=self.seconds[2 * first : 2 * last], features=self.features[first:last])


def _pairs(clip: PoolClip) -> Tensor:
    """Temporal patches of frames: (patches, 2, h, w, 3) uint8."""
    return torch.from_numpy(clip.frames).view(-1, 2, *clip.frames.shape[1:])


def _as_clip(clip: PoolClip, features: Tensor) -> FeatureClip:
    height, width = clip.frames.shape[1:3]
    grid = (height // FACTOR, width // FACTOR)
    return FeatureClip(clip.spec, clip.kind == "image", tuple(clip.seconds), grid, features)


def cached_features(clips: list[FeatureClip]) -> Tensor:
    """Features of the clips' tokens, one after the other: (tokens, 2, hidden) float32."""
    return torch.cat([clip.features.flatten(0, 1) for clip in clips]).float()


@torch.inference_mode()
def encode_clips(visual: Qwen3VLVisionModel, clips: list[PoolClip], batch_size: int = 128) -> list[FeatureClip]:
    """Features of the clips, in order; patches of clips of one frame size go through the tower together."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for number, clip in enumerate(clips):
        sizes.setdefault(clip.frames.shape[1:3], []).append(number)
    done: dict[int, FeatureClip] = {}
    for numbers in sizes.values():
        pairs = torch.cat([_pairs(clips[number]) for number in numbers])
        parts = [torch.stack(tower(visual, part), dim=2).bfloat16() for part in torch.split(pairs, batch_size)]
        lengths = [len(clips[number].frames) // 2 for number in numbers]
        for number, features in zip(numbers, torch.split(torch.cat(parts), lengths), strict=True):
            done[number] = _as_clip(clips[number], features.clone())
    return [done[number] for number in range(len(clips))]


def encode_pool(visual: Qwen3VLVisionModel, shards: list[Path]) -> list[FeatureClip]:
    """Features of every clip of the pool."""
    return [clip for shard in shards for clip in encode_clips(visual, load_shard(shard))]
