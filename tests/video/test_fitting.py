"""Fitting: it always fits if anything does, whatever the file really holds, and more room never gives less."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from video_clips import holds

from tru_vlm.plans import SamplingPlan
from tru_vlm.types import VideoParams
from tru_vlm.video.fitting import Fit, fit_sampling
from tru_vlm.video.media import EffectiveSampling, MediaProbe, SamplingBounds, VideoAllowance
from tru_vlm.video.reader import default_total_pixels, plan_image, plan_video
from tru_vlm.video.sampling import settle_sampling

TOKEN = 32 * 32
MINUTE = MediaProbe(
    kind="video",
    container="MP4",
    codec="h264",
    width=1280,
    height=720,
    duration_seconds=60.0,
    average_fps=30.0,
    num_frames=1800,
    rotation=0,
)
PICTURE = replace(MINUTE, kind="image", duration_seconds=None, average_fps=None, num_frames=1)
QWEN = SamplingBounds(
    patch_size=16,
    min_pixels=128 * TOKEN,
    max_pixels=768 * TOKEN,
    image_min_pixels=4 * TOKEN,
    image_max_pixels=16384 * TOKEN,
)
TINY = SamplingBounds(patch_size=16, min_pixels=4 * TOKEN, max_pixels=16 * TOKEN)


def plan(probe: MediaProbe, sampling: EffectiveSampling) -> SamplingPlan:
    return (plan_image if probe.kind == "image" else plan_video)(probe, sampling)


def fit(probe: MediaProbe, params: VideoParams, bounds: SamplingBounds, allowance: VideoAllowance) -> Fit:
    sampling, _ = settle_sampling(probe, replace(params, fit=True), bounds)
    return fit_sampling(
        probe,
        sampling,
        allowance,
        plan=lambda options: plan(probe, options),
        model_min_pixels=bounds.pixels_of(probe.kind)[0],
        default_total_pixels=default_total_pixels(bounds.patch_size),
    )


def shape(planned: SamplingPlan) -> tuple[int, int, int]:
    return planned.num_frames, planned.height, planned.width


# ---- by example ------------------------------------------------------------------------------------------------------


def test_with_room_enough_nothing_is_reduced_and_nothing_noted() -> None:
    done = fit(MINUTE, VideoParams(), QWEN, VideoAllowance(200_000, 12))
    assert shape(done.planned) == shape(done.wished)
    assert done.notes(done.planned) == ()


def test_frames_are_made_smaller_before_one_is_given_up() -> None:
    wished = fit(MINUTE, VideoParams(), QWEN, VideoAllowance(10**7, 12)).planned
    assert shape(wished)[0] == 120
    done = fit(MINUTE, VideoParams(), QWEN, VideoAllowance(15_000, 12))
    assert done.planned.num_frames == 120
    assert 128 * TOKEN * 0.8 <= done.planned.height * done.planned.width < wished.height * wished.width
    (note,) = done.notes(done.planned)
    assert f"from {wished.width} x {wished.height} to {done.planned.width} x {done.planned.height}" in note


def test_then_there_are_fewer_frames_of_the_least_size() -> None:
    done = fit(MINUTE, VideoParams(), QWEN, VideoAllowance(4_000, 12))
    num_pairs = done.planned.num_frames // 2
    tokens = done.planned.video_tokens // num_pairs
    assert tokens <= 128 * 1.05
    assert num_pairs == 4_000 // (tokens + 12)
    frames, size = done.notes(done.planned)
    assert f"number of frames was lowered from 120 to {2 * num_pairs}" in frames
    assert "size was lowered" in size


def test_a_requests_own_least_is_given_up_last() -> None:
    sharp = VideoParams(min_pixels=400 * TOKEN, min_frames=20)
    many = fit(MINUTE, sharp, QWEN, VideoAllowance(20_000, 12)).planned
    assert many.video_tokens / many.num_frames * 2 > 380
    assert 20 <= many.num_frames < 120
    fewest = fit(MINUTE, sharp, QWEN, VideoAllowance(3_000, 12)).planned
    assert fewest.num_frames == 20
    assert 128 * 0.8 <= fewest.video_tokens / 10 < 380
    least = fit(MINUTE, sharp, QWEN, VideoAllowance(300, 12)).planned
    assert least.num_frames == 4


def test_an_exact_number_is_lowered_and_the_file_may_have_fewer() -> None:
    done = fit(MINUTE, VideoParams(nframes=100), QWEN, VideoAllowance(3_000, 12))
    assert done.planned.num_frames == done.sampling.nframes < 100
    assert done.sampling.takes_fewer
    short = replace(MINUTE, num_frames=11, duration_seconds=11 / 30)
    done = fit(short, VideoParams(nframes=100), QWEN, VideoAllowance(4_500, 12))
    assert done.planned.num_frames == 10
    assert done.notes(done.planned) == ("nframes was lowered from 100 to 10, as the file promises no more",)


def test_an_image_is_made_smaller() -> None:
    done = fit(PICTURE, VideoParams(), QWEN, VideoAllowance(300))
    assert 250 <= done.planned.video_tokens <= 300
    (note,) = done.notes(done.planned)
    assert "from 1280 x 704 to" in note


@pytest.mark.parametrize("probe", [MINUTE, PICTURE])
def test_without_any_room_the_least_is_taken(probe: MediaProbe) -> None:
    allowance = VideoAllowance(-50, 12)
    done = fit(probe, VideoParams(min_pixels=500 * TOKEN, min_frames=50), QWEN, allowance)
    least = done.planned
    assert least.num_frames == (2 if probe.kind == "video" else 1)
    assert least.height * least.width <= QWEN.pixels_of(probe.kind)[0] * 1.05
    assert done.sampling.min_pixels == QWEN.pixels_of(probe.kind)[0]
    assert not holds(allowance, least)


def test_a_strip_takes_more_than_its_share_and_fits_all_the_same() -> None:
    strip = replace(MINUTE, width=3200, height=32)
    allowance = VideoAllowance(1000, 0)
    planned = fit(strip, VideoParams(min_pixels=1), QWEN, allowance).planned
    assert planned.num_frames == 20
    assert holds(allowance, planned)


# ---- for all -----------------------------------------------------------------------------------------------------


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


@st.composite
def probes(draw: st.DrawFn, *, with_strips: bool = False) -> MediaProbe:
    """Any video.  A strip's short side cannot shrink below one token: less room may give it more pixels."""
    least, ratio = (8, 190) if with_strips else (32, 4)
    width, height = draw(st.integers(least, 4096)), draw(st.integers(least, 4096))
    assume(max(width, height) <= ratio * min(width, height))
    rate, frames = draw(st.sampled_from([1.0, 23.976, 30.0, 120.0])), draw(st.integers(1, 30_000))
    return replace(
        MINUTE, width=width, height=height, average_fps=rate, num_frames=frames, duration_seconds=frames / rate
    )


def params(*, least_pixels: int = 4 * TOKEN) -> st.SearchStrategy[VideoParams]:
    """Any wishes; bounds on pixels below a picture's aspect ratio in tokens make a strip of it."""
    min_pixels = maybe(st.integers(least_pixels, 10**6))
    by_rate = st.builds(
        VideoParams,
        fps=maybe(st.floats(0.1, 30)),
        min_frames=maybe(st.integers(1, 300)),
        max_frames=maybe(st.integers(2, 5000)),
        min_pixels=min_pixels,
        max_pixels=maybe(st.integers(least_pixels, 10**7)),
        total_pixels=maybe(st.integers(1, 10**9)),
    )
    return by_rate | st.builds(VideoParams, nframes=st.integers(1, 5000), min_pixels=min_pixels)


bounds = st.sampled_from([QWEN, TINY])
tokens = st.integers(1, 2_000) | st.integers(1, 300_000)
timestamps = st.integers(0, 15)
allowances = st.builds(VideoAllowance, tokens, timestamps)


@settings(deadline=None, max_examples=150)
@given(
    probe=probes(with_strips=True),
    truth=probes(),
    wishes=params(least_pixels=1),
    limits=bounds,
    allowance=allowances,
    is_turned=st.booleans(),
)
def test_it_fits_whatever_the_file_really_holds(
    *,
    probe: MediaProbe,
    truth: MediaProbe,
    wishes: VideoParams,
    limits: SamplingBounds,
    allowance: VideoAllowance,
    is_turned: bool,
) -> None:
    done = fit(probe, wishes, limits, allowance)
    assume(holds(allowance, done.planned))
    sides = (probe.width, probe.height) if is_turned else (probe.height, probe.width)
    assert holds(allowance, plan(replace(truth, height=sides[0], width=sides[1]), done.sampling))


@settings(deadline=None, max_examples=150)
@given(probes(), params(), bounds, allowances)
def test_a_fit_is_legal_and_fails_only_where_nothing_fits(
    probe: MediaProbe, wishes: VideoParams, limits: SamplingBounds, allowance: VideoAllowance
) -> None:
    done = fit(probe, wishes, limits, allowance)
    planned = done.planned
    assert planned.num_frames >= 2
    assert planned.num_frames % 2 == planned.height % 32 == planned.width % 32 == 0
    assert planned.num_frames <= done.wished.num_frames
    assert planned.height * planned.width <= done.wished.height * done.wished.width
    if not holds(allowance, planned):
        least_pixels = min(done.asked.min_pixels, limits.min_pixels)
        least = replace(done.asked, nframes=2, fps=None, min_pixels=least_pixels, total_pixels=1)
        assert shape(planned) == shape(plan(probe, least))


@settings(deadline=None, max_examples=150)
@given(probes(), params(), bounds, allowances, st.integers(1, 500))
def test_more_room_never_gives_less(
    probe: MediaProbe, wishes: VideoParams, limits: SamplingBounds, allowance: VideoAllowance, more: int
) -> None:
    small = fit(probe, wishes, limits, allowance).planned
    larger = replace(allowance, tokens=allowance.tokens + more)
    large = fit(probe, wishes, limits, larger).planned
    assert large.num_frames >= small.num_frames
    assert large.height * large.width >= small.height * small.width


@settings(deadline=None, max_examples=80)
@given(probes(), params(), bounds, timestamps)
def test_room_enough_changes_nothing(
    probe: MediaProbe, wishes: VideoParams, limits: SamplingBounds, timestamp: int
) -> None:
    wished = fit(probe, wishes, limits, VideoAllowance(1, timestamp)).wished
    # A small picture that is enlarged may pass the maximum, by rounding up.
    pair_tokens = max(limits.max_pixels // TOKEN, wished.height * wished.width // TOKEN)
    room = wished.num_frames // 2 * (pair_tokens + timestamp)
    done = fit(probe, wishes, limits, VideoAllowance(room, timestamp))
    assert shape(done.planned) == shape(wished)


@settings(deadline=None, max_examples=60)
@given(probes(), bounds, tokens, st.integers(0, 500), maybe(st.integers(4 * TOKEN, 10**6)))
def test_images(probe: MediaProbe, limits: SamplingBounds, room: int, more: int, min_pixels: int | None) -> None:
    picture = replace(PICTURE, width=probe.width, height=probe.height)
    wishes = VideoParams(min_pixels=min_pixels)
    small = fit(picture, wishes, limits, VideoAllowance(room))
    large = fit(picture, wishes, limits, VideoAllowance(room + more))
    assert small.planned.video_tokens <= large.planned.video_tokens <= large.wished.video_tokens
    if not holds(VideoAllowance(room), small.planned):
        least = min(small.asked.min_pixels, limits.pixels_of("image")[0])
        assert (small.sampling.min_pixels, small.sampling.max_pixels) == (least, least)
