"""The module fits a sampling into what a model's context has left.  Pure arithmetic; it counts no text.

What is given up, in this order, until the rest fits:

1. pixels per frame, down to ``min_pixels`` (the request's own, else the model's minimum);
2. frames, down to ``min_frames`` (the request's own, else 4), each of that many pixels;
3. pixels, where the request's ``min_pixels`` is above the model's minimum, down to that;
4. frames, down to 2.

Pixels go first, because what happens between two frames is in no picture at all, while a smaller picture still shows
what happened and when; and because Qwen's own preprocessing does so: ``total_pixels`` shrinks the frames of a longer
video, taken at the same rate, down to 128 tokens each.  A request about small print says so by ``min_pixels``.

A header may lie about the number of frames.  So what comes out are bounds, which the decoder applies to the frames
that it finds: at most so many (``max_frames`` or ``nframes``), and so many pixels for all of them (``total_pixels``).
Whatever the file holds, those fit: a frame is as small as can be, or within its share of ``total_pixels``; hence T
pairs are together within the larger of ``total_pixels`` and T of the smallest, and either leaves room for T timestamps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from tru_vlm.plans import SamplingPlan
from tru_vlm.video.media import (
    SPATIAL_MERGE_SIZE,
    TEMPORAL_PATCH_SIZE,
    EffectiveSampling,
    MediaProbe,
    VideoAllowance,
)
from tru_vlm.video.sampling import DEFAULT_MIN_FRAMES

Plan = Callable[[EffectiveSampling], SamplingPlan]
"""What these options would sample of the file at hand, as its header describes it."""


class Frames(Protocol):
    """Frames that are planned or were taken."""

    @property
    def num_frames(self) -> int:
        """How many."""
        ...

    @property
    def height(self) -> int:
        """Pixels."""
        ...

    @property
    def width(self) -> int:
        """Pixels."""
        ...


@dataclass(frozen=True, slots=True)
class Fit:
    """A sampling that was made to fit.

    Attributes:
        asked: the options before.
        sampling: the options that fit.
        wished: what the former would sample, as the header tells.
        planned: what the latter would.
    """

    asked: EffectiveSampling
    sampling: EffectiveSampling
    wished: SamplingPlan
    planned: SamplingPlan

    def notes(self, taken: Frames) -> tuple[str, ...]:
        """What has been reduced, from what to what; ``taken`` are the frames in the end."""
        why = "so that the prompt, the video and the answer fit into the context"
        notes = []
        if self.planned.num_frames < self.wished.num_frames:
            notes.append(f"the number of frames was lowered from {self.wished.num_frames} to {taken.num_frames}, {why}")
        elif self.sampling != self.asked and taken.num_frames + 1 < (self.asked.nframes or 0):  # 1 is rounding's
            text = f"nframes was lowered from {self.asked.nframes} to {taken.num_frames}, as the file promises no more"
            notes.append(text)
        if _area(self.planned) < _area(self.wished):
            sizes = f"from {self.wished.width} x {self.wished.height} to {taken.width} x {taken.height} pixels"
            notes.append(f"the frames' size was lowered {sizes}, {why}")
        return tuple(notes)


def fit_sampling(
    probe: MediaProbe,
    sampling: EffectiveSampling,
    allowance: VideoAllowance,
    *,
    plan: Plan,
    model_min_pixels: int,
    default_total_pixels: int,
) -> Fit:
    """Make the frames fit into ``allowance``; where none do, take the least that there can be.

    A larger allowance never gives fewer or smaller frames (of strips that are less than one token high, it may give
    smaller ones).

    Args:
        probe: the file.
        sampling: its settled options.
        allowance: tokens.
        plan: the arithmetic for this file.
        model_min_pixels: height x width of the smallest frame (or image) that the model is made for.
        default_total_pixels: what ``total_pixels`` stands for when it is None.
    """
    if sampling.kind == "image":
        fitted = _fit_image(sampling, allowance, plan, model_min_pixels)
    else:
        video = _Video(probe=probe, allowance=allowance, plan=plan, default_total_pixels=default_total_pixels)
        fitted = video.fit(sampling, model_min_pixels)
    return Fit(asked=sampling, sampling=fitted, wished=plan(sampling), planned=plan(fitted))


def _fit_image(
    sampling: EffectiveSampling, allowance: VideoAllowance, plan: Plan, model_min_pixels: int
) -> EffectiveSampling:
    if plan(sampling).video_tokens <= allowance.tokens:
        return sampling
    least = min(sampling.min_pixels, model_min_pixels)
    most = max(least, allowance.tokens * _token_pixels(sampling))
    return replace(sampling, min_pixels=least, max_pixels=min(sampling.max_pixels, most))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Video:
    """A video that must fit.  Everything is counted in pairs of frames, which is what becomes tokens."""

    probe: MediaProbe
    allowance: VideoAllowance
    plan: Plan
    default_total_pixels: int

    def fit(self, sampling: EffectiveSampling, model_min_pixels: int) -> EffectiveSampling:
        """The steps of the module's docstring, one return each."""
        own = self._smallest(sampling)
        wanted = _pairs(self.plan(sampling).num_frames)
        least = min(wanted, _pairs(sampling.min_frames or DEFAULT_MIN_FRAMES))
        affordable = self._affordable(own)
        if affordable >= wanted:
            return self._bounded(sampling, num_pairs=wanted, tokens=self._left_by_timestamps(wanted))
        if affordable >= least:
            return self._bounded(sampling, num_pairs=affordable, tokens=affordable * own)
        lowered = replace(sampling, min_pixels=min(sampling.min_pixels, model_min_pixels))
        models = self._smallest(lowered)
        affordable = self._affordable(models)
        if affordable >= least:
            return self._bounded(lowered, num_pairs=least, tokens=self._left_by_timestamps(least))
        num_pairs = max(1, affordable)
        return self._bounded(lowered, num_pairs=num_pairs, tokens=num_pairs * models)

    def _smallest(self, sampling: EffectiveSampling) -> int:
        """Visual tokens of a pair whose share of ``total_pixels`` is nothing."""
        planned = self.plan(replace(sampling, total_pixels=1))
        # No side is shorter than one token: a strip may pass its share, but never takes more than its aspect ratio.
        sides = sorted((self.probe.height, self.probe.width))
        return max(planned.video_tokens // _pairs(planned.num_frames), -(-sides[1] // sides[0]))

    def _affordable(self, pair_tokens: int) -> int:
        return self.allowance.tokens // (pair_tokens + self.allowance.timestamp_tokens)

    def _left_by_timestamps(self, num_pairs: int) -> int:
        return self.allowance.tokens - num_pairs * self.allowance.timestamp_tokens

    def _bounded(self, sampling: EffectiveSampling, *, num_pairs: int, tokens: int) -> EffectiveSampling:
        """The options with at most so many frames of together so many visual tokens (or of the smallest size)."""
        pixels, most = tokens * _token_pixels(sampling), num_pairs * TEMPORAL_PATCH_SIZE
        if pixels < (sampling.total_pixels or self.default_total_pixels):
            sampling = replace(sampling, total_pixels=pixels)
        if sampling.nframes is not None:
            return replace(sampling, nframes=most)
        return replace(sampling, min_frames=min(sampling.min_frames or most, most), max_frames=most)


def _area(plan: SamplingPlan) -> int:
    return plan.height * plan.width


def _pairs(num_frames: int) -> int:
    return -(-num_frames // TEMPORAL_PATCH_SIZE)


def _token_pixels(sampling: EffectiveSampling) -> int:
    return (sampling.patch_size * SPATIAL_MERGE_SIZE) ** 2
