"""Counts, spans, indices and the plan."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl_utils import (
    FrameCountError,
    InvalidTimeRangeError,
    SamplingOptionError,
    SamplingOptions,
    SourceCounts,
    calculate_video_frame_range,
    plan_video,
    smart_nframes,
)
from qwen_vl_utils.sampling import choose_span, linspace_indices

totals = st.integers(2, 5000)
rates = st.floats(1, 120)


@pytest.mark.parametrize(
    ("ele", "total", "fps", "expected"),
    [
        ({}, 300, 30.0, 20),
        ({"nframes": 5}, 300, 30.0, 4),
        ({"nframes": 7}, 300, 30.0, 8),
        ({"nframes": 3.0}, 300, 30.0, 4),
        ({}, 3, 30.0, 2),
        ({"fps": 0}, 300, 30.0, 4),
        ({"fps": -3}, 300, 30.0, 4),
        ({"fps": 60}, 300, 30.0, 300),
        ({"min_frames": 50, "max_frames": 10}, 300, 30.0, 10),
        ({"max_frames": 2000, "fps": 30}, 60_000, 30.0, 2000),
        ({"fps": 30}, 60_000, 30.0, 768),
    ],
)
def test_smart_nframes_equals_the_interface(ele, total, fps, expected):
    count = smart_nframes(ele, total, fps)
    assert count == expected
    assert isinstance(count, int)


@pytest.mark.parametrize(
    ("ele", "total"), [({}, 1), ({"nframes": 1}, 10), ({"nframes": 12}, 11), ({"max_frames": 1}, 10)]
)
def test_smart_nframes_refuses(ele, total):
    with pytest.raises(FrameCountError, match=f"2 to {total} are accepted"):
        smart_nframes(ele, total, 25.0)


def test_fps_and_nframes_exclude_each_other():
    with pytest.raises(AssertionError):
        smart_nframes({"fps": 1, "nframes": 4}, 100, 25.0)
    with pytest.raises(SamplingOptionError):
        SamplingOptions(fps=1, nframes=4)


@given(total=totals, rate=rates, fps=st.floats(0.01, 200))
def test_a_rate_gives_an_even_count_within_the_video(total, rate, fps):
    count = smart_nframes({"fps": fps}, total, rate)
    assert count % 2 == 0
    assert 2 <= count <= min(total, 768)


@pytest.mark.parametrize(
    ("ele", "expected"),
    [
        ({}, (0, 299, 300)),
        ({"video_start": 1.0}, (30, 299, 270)),
        ({"video_start": -5, "video_end": 1.0}, (0, 30, 31)),
        ({"video_start": 2, "video_end": 99}, (60, 299, 240)),
    ],
)
def test_frame_range_equals_the_interface(ele, expected):
    assert calculate_video_frame_range(ele, 300, 30.0) == expected


def test_frame_range_does_not_round_products_first():
    assert 0.07 * 100 > 7
    assert calculate_video_frame_range({"video_start": 0.07}, 300, 100.0) == (8, 299, 292)


def test_frame_range_refuses():
    assert calculate_video_frame_range({}, 1, 30.0) == (0, 0, 1)
    for ele in ({"video_start": 5, "video_end": 2}, {"video_start": 1.01, "video_end": 1.02}, {"video_start": 50}):
        with pytest.raises(InvalidTimeRangeError, match="video_start"):
            calculate_video_frame_range(ele, 300, 30.0)
    for total, fps in ((0, 30.0), (10, 0.0), (10, -1.0)):
        with pytest.raises(InvalidTimeRangeError):
            calculate_video_frame_range({}, total, fps)


@given(first=st.integers(0, 1000), length=st.integers(2, 3000), data=st.data())
def test_indices_ascend_and_hit_both_ends(first, length, data):
    count = data.draw(st.integers(2, length))
    indices = linspace_indices(first, first + length - 1, count)
    assert len(indices) == count
    assert (indices[0], indices[-1]) == (first, first + length - 1)
    assert all(a < b for a, b in itertools.pairwise(indices))


def test_ties_are_rounded_in_float32_half_to_even():
    assert linspace_indices(0, 2, 5) == [0, 0, 1, 2, 2]


@given(
    total=st.integers(1, 4000),
    rate=rates,
    fps=st.one_of(st.none(), st.floats(1e-6, 1e6)),
    least=st.one_of(st.none(), st.integers(0, 50)),
    most=st.one_of(st.none(), st.integers(1, 3000)),
    start=st.one_of(st.none(), st.floats(-10, 100)),
)
def test_every_plan_with_clamping_is_consistent(*, total, rate, fps, least, most, start):
    options = SamplingOptions(fps=fps, min_frames=least, max_frames=most, video_start=start)
    source = SourceCounts(total, rate, 360, 640)
    if start is not None and start >= total / rate:
        with pytest.raises(InvalidTimeRangeError):
            plan_video(source, options)
        return
    plan = plan_video(source, options)
    assert plan.num_frames % 2 == 0
    assert plan.num_frames == len(plan.frames_indices) == len(plan.pts_seconds)
    assert all(0 <= i < total for i in plan.frames_indices)
    assert list(plan.frames_indices) == sorted(plan.frames_indices)
    distinct = len(set(plan.frames_indices))
    assert distinct == plan.num_frames or plan.num_source_frames == 1  # never a frame twice, but for a lone one
    t, h, w = plan.grid_thw
    assert (t * 2, h * 16, w * 16) == (plan.num_frames, plan.resized_height, plan.resized_width)
    assert plan.visual_tokens * 4 == t * h * w


@given(
    steps=st.lists(st.floats(0, 5, allow_subnormal=False), min_size=1, max_size=60),
    start=st.one_of(st.none(), st.floats(-5, 400)),
    end=st.one_of(st.none(), st.floats(-5, 400)),
    fps=st.floats(0.01, 100),
)
def test_every_plan_by_real_times_stays_inside_its_range(steps, start, end, fps):
    times = list(itertools.accumulate(steps))
    times = [seconds - times[0] for seconds in times]
    rate = len(times) / (times[-1] + 0.04)
    options = SamplingOptions(fps=fps, video_start=start, video_end=end)
    inside = [t for t in times if (start is None or t >= start) and (end is None or t <= end)]
    try:
        plan = plan_video(SourceCounts(len(times), rate, 360, 640), options, times=times)
    except InvalidTimeRangeError:
        assert len(inside) < 2
        return
    assert list(plan.frames_indices) == sorted(plan.frames_indices)
    assert list(plan.pts_seconds) == [times[index] for index in plan.frames_indices]
    if len(inside) >= 2:
        assert (plan.pts_seconds[0], plan.pts_seconds[-1]) == (inside[0], inside[-1])
    else:
        assert len(set(plan.frames_indices)) == 1


def codes(plan):
    return [note.code for note in plan.notes]


def test_notes_tell_what_was_changed():
    source = SourceCounts(50, 25.0, 360, 640)
    assert codes(plan_video(source)) == []
    assert codes(plan_video(source, SamplingOptions(nframes=80))) == ["frame_count_reduced"]
    assert codes(plan_video(source, SamplingOptions(nframes=1))) == ["frame_count_raised"]
    assert codes(plan_video(source, SamplingOptions(fps=60.0))) == ["sample_rate_above_source"]
    assert codes(plan_video(source, SamplingOptions(fps=10.0, max_frames=6))) == ["max_frames_reached"]
    assert codes(plan_video(source, SamplingOptions(video_end=9.0))) == ["time_range_clamped"]
    assert codes(plan_video(source, SamplingOptions(video_start=1.01, video_end=1.02))) == [
        "time_range_widened",
        "single_frame_repeated",
    ]
    assert codes(plan_video(source, SamplingOptions(resized_height=64))) == ["resized_side_ignored"]
    assert codes(plan_video(source, SamplingOptions(max_pixels=10**7))) == ["max_pixels_reduced"]
    assert codes(plan_video(SourceCounts(1, 25.0, 64, 64))) == ["single_frame_repeated"]


def test_without_clamping_the_interface_s_errors_come():
    source = SourceCounts(50, 25.0, 360, 640)
    with pytest.raises(FrameCountError):
        plan_video(source, SamplingOptions(nframes=80, clamp_short=False))
    with pytest.raises(InvalidTimeRangeError):
        plan_video(source, SamplingOptions(video_start=1.01, video_end=1.02, clamp_short=False))


@pytest.mark.parametrize(
    "bad",
    [
        {"fps": math.nan},
        {"fps": math.inf},
        {"fps": 0},
        {"fps": -1.0},
        {"nframes": 0},
        {"max_frames": -3},
        {"video_start": math.nan},
        {"min_pixels": -math.inf},
        {"resized_width": 0},
        {"fps": "2"},
        {"nframes": True},
    ],
)
def test_illegal_values_are_named(bad):
    with pytest.raises(SamplingOptionError, match=next(iter(bad))):
        SamplingOptions(**bad)


def test_unknown_counts_are_refused_not_guessed():
    class Nothing:
        num_frames = None
        average_fps = None
        height = 10
        width = 10

    with pytest.raises(FrameCountError):
        plan_video(Nothing())


def test_a_variable_rate_is_cut_by_real_time():
    times = [0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 9.0]
    options = SamplingOptions(video_start=5.0, video_end=6.0)
    span, _ = choose_span(options, num_frames=7, average_fps=7 / 9.1, times=times)
    assert (span.start, span.end) == (3, 5)
    with pytest.raises(InvalidTimeRangeError):
        choose_span(SamplingOptions(video_start=11.0), num_frames=7, average_fps=7 / 9.1, times=times)
