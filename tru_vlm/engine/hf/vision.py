"""The vision tower, a chunk of temporal patches at a time, and the features waiting for their prefill.

Each temporal patch is attended to on its own in Qwen3-VL's tower, so chunks give what the whole video would give.
Knows pixels and features; knows no text and no KV cache.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from tru_vlm.engine.base import MediaInput
from tru_vlm.engine.hf.side_by_side import SideBySide
from tru_vlm.engine.hf.transfer import to_device
from tru_vlm.engine.hf.vision_model import VisionModel
from tru_vlm.processor.patches import patchify
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.processor.prompt import Prompt

MIN_PART_PATCHES = 180
"""Spatial patches of a part that has a thread of its own; with fewer, products cost more for each."""


@dataclass(frozen=True, slots=True)
class VisualFeatures:
    """Features of n visual tokens.

    Attributes:
        embeddings: (n, hidden), in place of the placeholders' embeddings.
        deepstack: one (n, hidden) per early text layer, added to its output.
    """

    embeddings: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return len(self.embeddings)

    def part(self, start: int, stop: int) -> VisualFeatures:
        """Features of the tokens from start up to stop."""
        return VisualFeatures(self.embeddings[start:stop], tuple(layer[start:stop] for layer in self.deepstack))

    def copy(self) -> VisualFeatures:
        """The same in memory of its own."""
        return VisualFeatures(self.embeddings.clone(), tuple(layer.clone() for layer in self.deepstack))

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return self.embeddings.nbytes + sum(layer.nbytes for layer in self.deepstack)

    @staticmethod
    def joined(parts: Sequence[VisualFeatures]) -> VisualFeatures:
        """One behind the other."""
        if len(parts) == 1:
            return parts[0]
        layers = zip(*(part.deepstack for part in parts), strict=True)
        return VisualFeatures(
            torch.cat([part.embeddings for part in parts]), tuple(torch.cat(layer) for layer in layers)
        )


class Encoder(Protocol):
    """Gives features of frames: the tower, or a cache around it."""

    def encode(self, media: MediaInput, start: int, stop: int) -> VisualFeatures:
        """Features of the medium's temporal patches from start up to stop."""
        ...


class VisionEncoder:
    """Runs the tower.

    Args:
        visual: the tower.
        profile: of the checkpoint.
        device: where the tower is.
        threads: what computes a chunk, in parts where it is large.
    """

    def __init__(
        self, visual: VisionModel, profile: ModelProfile, device: str, threads: SideBySide | None = None
    ) -> None:
        self._visual = visual
        self._profile = profile
        self._device = device
        self._threads = threads or SideBySide(1)

    def encode(self, media: MediaInput, start: int, stop: int) -> VisualFeatures:
        """Features of the medium's temporal patches from start up to stop."""
        num_patches = (stop - start) * math.prod(media.frames.shape[2:]) // self._profile.patch_size**2
        num_parts = min(self._threads.num_threads, stop - start, max(1, num_patches // MIN_PART_PATCHES))
        bounds = [start + (stop - start) * part // num_parts for part in range(num_parts + 1)]
        parts = [partial(self._encode, media, *part) for part in itertools.pairwise(bounds)]
        return VisualFeatures.joined(self._threads.run(parts))

    @torch.inference_mode()
    def _encode(self, media: MediaInput, start: int, stop: int) -> VisualFeatures:
        profile = self._profile
        patches = patchify(
            media.frames,
            patch_size=profile.patch_size,
            spatial_merge_size=profile.spatial_merge_size,
            temporal_patch_size=profile.temporal_patch_size,
            start=start,
            stop=stop,
            dtype=self._visual.dtype,
        )
        height, width = media.frames.shape[2] // profile.patch_size, media.frames.shape[3] // profile.patch_size
        embeddings, deepstack = self._visual(to_device(patches, self._device), height, width)
        return VisualFeatures(embeddings, tuple(deepstack))


class VisualInputs:
    """One sequence's media: which temporal patch comes next, and the features that wait for their prefill."""

    def __init__(self, media: Sequence[MediaInput], prompt: Prompt) -> None:
        self._media = media
        spans = prompt.spans
        empty = np.zeros(0, dtype=np.int64)
        starts = np.concatenate([empty, *(span.starts for span in spans)])
        in_text_order = np.argsort(starts)
        self._starts = starts[in_text_order]
        self._owners = np.repeat(np.arange(len(spans)), [len(span.starts) for span in spans])[in_text_order]
        self._patches = np.concatenate([empty, *(np.arange(len(span.starts)) for span in spans)])[in_text_order]
        self._tokens = [span.tokens_per_frame for span in spans]
        sizes = np.asarray(self._tokens, dtype=np.int64)[self._owners]
        self._visual_starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
        self._num_prompt_tokens = prompt.num_tokens
        self._next = 0
        self._num_dropped = 0
        self._waiting: deque[VisualFeatures] = deque()

    @property
    def ready_tokens(self) -> int:
        """Length of the prompt's beginning whose features are there (or were, and are prefilled)."""
        return int(self._starts[self._next]) if self._next < len(self._starts) else self._num_prompt_tokens

    def encode_next(self, encoder: Encoder, max_tokens: int) -> int:
        """Encode the next temporal patches of one medium, at least one of them.

        Returns:
            the number of visual tokens that became ready.
        """
        owner, first = int(self._owners[self._next]), int(self._patches[self._next])
        of_owner = len(self._patches) - self._next
        same = np.flatnonzero(self._owners[self._next :] != owner)
        of_owner = int(same[0]) if len(same) else of_owner
        count = min(of_owner, max(1, max_tokens // self._tokens[owner]))
        features = encoder.encode(self._media[owner], first, first + count)
        # The first patch may have been prefilled in part by another sequence.
        features = features.part(max(0, self._num_dropped - int(self._visual_starts[self._next])), len(features))
        self._waiting.append(features)
        self._next += count
        return len(features)

    def peek(self, num_tokens: int) -> list[VisualFeatures]:
        """The next features in the prompt's order; they stay until :meth:`advance_to`."""
        parts = []
        for features in self._waiting:
            if num_tokens <= 0:
                break
            parts.append(features.part(0, num_tokens))
            num_tokens -= len(parts[-1])
        return parts

    def advance_to(self, num_tokens: int) -> None:
        """The prompt's first ``num_tokens`` tokens are in the KV cache: their features are not needed (any more)."""
        target = self._num_visual_tokens(num_tokens)
        while self._waiting and self._num_dropped < target:
            features = self._waiting.popleft()
            taken = min(target - self._num_dropped, len(features))
            self._num_dropped += taken
            if taken < len(features):
                self._waiting.appendleft(features.part(taken, len(features)))
        self._num_dropped = target
        holds_target = int(np.searchsorted(self._visual_starts, target, side="right")) - 1
        self._next = max(self._next, holds_target)

    def _num_visual_tokens(self, num_tokens: int) -> int:
        """Visual tokens among the prompt's first ``num_tokens``."""
        begun = int(np.searchsorted(self._starts, num_tokens))
        if not begun:
            return 0
        in_last = min(num_tokens - int(self._starts[begun - 1]), self._tokens[int(self._owners[begun - 1])])
        return int(self._visual_starts[begun - 1]) + in_last
