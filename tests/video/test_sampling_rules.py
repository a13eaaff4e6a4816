"""How wishes, defaults and ceilings are settled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tru_vlm.errors import InvalidRequestError
from tru_vlm.types import VideoParams
from tru_vlm.video.media import MediaProbe, SamplingBounds, num_visual_tokens
from tru_vlm.video.sampling import settle_sampling

PROBE = MediaProbe(
    kind="video",
    container="MP4",
    codec="h264",
    width=640,
    height=360,
    duration_seconds=10.0,
    average_fps=25.0,
    num_frames=250,
    rotation=0,
)
IMAGE = replace(PROBE, kind="image", duration_seconds=None, average_fps=None, num_frames=1)
BOUNDS = SamplingBounds(
    patch_size=16,
    min_pixels=1000,
    max_pixels=100_000,
    default_fps=2.0,
    default_max_frames=100,
    max_frames=200,
    total_pixels=1_000_000,
    image_max_pixels=500_000,
)


def test_defaults() -> None:
    sampling, notes = settle_sampling(PROBE, VideoParams(), BOUNDS)
    assert (sampling.fps, sampling.nframes) == (2.0, None)
    assert (sampling.min_frames, sampling.max_frames) == (4, 100)
    assert (sampling.min_pixels, sampling.max_pixels, sampling.total_pixels) == (1000, 100_000, 1_000_000)
    assert notes == ()


def test_ceilings_beat_wishes_and_say_so() -> None:
    params = VideoParams(max_frames=100_000, max_pixels=10**9, total_pixels=10**12)
    sampling, notes = settle_sampling(PROBE, params, BOUNDS)
    assert (sampling.max_frames, sampling.max_pixels, sampling.total_pixels) == (200, 100_000, 1_000_000)
    assert [note.split()[0] for note in notes] == ["max_frames", "max_pixels", "total_pixels"]
    assert "from 100000 to 200" in notes[0]


def test_more_than_the_default_number_of_frames_on_request() -> None:
    assert settle_sampling(PROBE, VideoParams(max_frames=150), BOUNDS)[0].max_frames == 150
    assert settle_sampling(PROBE, VideoParams(min_frames=150), BOUNDS)[0].max_frames == 150


def test_a_smaller_max_pixels_lowers_the_default_minimum() -> None:
    sampling, _ = settle_sampling(PROBE, VideoParams(max_pixels=500), BOUNDS)
    assert (sampling.min_pixels, sampling.max_pixels) == (500, 500)


def test_an_image_takes_the_image_bounds_only() -> None:
    sampling, notes = settle_sampling(IMAGE, VideoParams(fps=3.0, video_start=99.0, nframes=10**6), BOUNDS)
    assert (sampling.kind, sampling.fps, sampling.max_pixels, notes) == ("image", None, 500_000, ())


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (VideoParams(video_start=10.0), "video_start"),
        (VideoParams(video_start=1e9), "video_start"),
        (VideoParams(video_start=5.0, video_end=5.0), "video_end"),
        (VideoParams(video_start=5.0, video_end=4.0), "video_end"),
        (VideoParams(nframes=201), "nframes"),
        (VideoParams(nframes=251), "nframes"),
        (VideoParams(min_frames=201), "min_frames"),
        (VideoParams(min_frames=20, max_frames=10), "min_frames"),
        (VideoParams(min_pixels=200_000), "min_pixels"),
        (VideoParams(min_pixels=2000, max_pixels=1000), "min_pixels"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(params: VideoParams, field: str) -> None:
    with pytest.raises(InvalidRequestError, match=field) as caught:
        settle_sampling(PROBE, params, BOUNDS)
    assert caught.value.param == f"video_params.{field}"


@pytest.mark.parametrize(
    ("params", "lowered", "note"),
    [
        (VideoParams(nframes=201), 200, "nframes was lowered from 201 to 200, the server's limit"),
        (VideoParams(min_frames=201), 200, "min_frames was lowered from 201 to 200 (max_frames)"),
        (VideoParams(min_pixels=200_000), 100_000, "min_pixels was lowered from 200000 to 100000 (max_pixels)"),
    ],
)
def test_what_is_too_large_is_lowered_with_fit_and_the_refusal_offers_it(
    params: VideoParams, lowered: int, note: str
) -> None:
    with pytest.raises(InvalidRequestError, match="fit"):
        settle_sampling(PROBE, params, BOUNDS)
    sampling, notes = settle_sampling(PROBE, replace(params, fit=True), BOUNDS)
    assert notes == (note,)
    assert getattr(sampling, note.partition(" ")[0]) == lowered


def test_an_odd_ceiling_is_not_passed_by_rounding() -> None:
    assert settle_sampling(PROBE, VideoParams(nframes=300, fit=True), replace(BOUNDS, max_frames=203))[0].nframes == 202


def test_fit_leaves_contradictions_refused() -> None:
    with pytest.raises(InvalidRequestError, match="video_start"):
        settle_sampling(PROBE, VideoParams(video_start=10.0, fit=True), BOUNDS)


def test_fit_alone_changes_nothing() -> None:
    assert settle_sampling(PROBE, VideoParams(fit=True), BOUNDS) == settle_sampling(PROBE, VideoParams(), BOUNDS)


def test_a_file_that_tells_nothing_is_left_to_the_decoder() -> None:
    silent = replace(PROBE, duration_seconds=None, average_fps=None, num_frames=None)
    assert settle_sampling(silent, VideoParams(video_start=50.0, nframes=200), BOUNDS)[0].nframes == 200


maybe = st.none() | st.integers(1, 10**7)


@given(st.builds(VideoParams, max_frames=maybe, min_frames=maybe, min_pixels=maybe, max_pixels=maybe, nframes=maybe))
def test_nothing_ever_passes_a_ceiling(params: VideoParams) -> None:
    try:
        sampling, _ = settle_sampling(PROBE, params, BOUNDS)
    except InvalidRequestError:
        return
    assert (sampling.nframes or 0) <= BOUNDS.max_frames
    assert (sampling.max_frames or 0) <= BOUNDS.max_frames
    assert (sampling.min_frames or 0) <= (sampling.max_frames or 0)
    assert sampling.min_pixels <= sampling.max_pixels <= BOUNDS.max_pixels


def test_visual_tokens() -> None:
    assert num_visual_tokens(num_frames=1, height=64, width=96, patch_size=16) == 6
    assert num_visual_tokens(num_frames=5, height=64, width=96, patch_size=16) == 18
