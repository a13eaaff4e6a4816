"""The generator: same seed, same clip; real H.264; actions that can be seen."""

from pathlib import Path

import av
import numpy as np
import pytest

from demo_model.generator import (
    ClipSpec,
    Event,
    clip_spec,
    encode,
    is_observable,
    object_state,
    render_frame,
    sampled_indices,
)


def test_a_seed_gives_the_same_clip_every_time() -> None:
    assert clip_spec(7) == clip_spec(7)
    assert clip_spec(7) != clip_spec(8)
    assert np.array_equal(render_frame(clip_spec(7), 0.5), render_frame(clip_spec(7), 0.5))


@pytest.mark.parametrize("seed", range(20))
def test_random_clips_keep_to_the_promised_ranges(seed: int) -> None:
    spec = clip_spec(seed)
    assert 2 <= spec.duration_seconds <= 20
    assert is_observable(spec, [index / spec.fps for index in sampled_indices(spec.num_frames, spec.fps)])
    for index in range(len(spec.events)):
        begin, end = spec.span(index)
        assert end - begin >= 1.0


def test_wanted_properties_are_kept() -> None:
    spec = clip_spec(3, num_events=2, duration_seconds=4.0, resolution=(640, 480), fps=30.0)
    assert (len(spec.events), spec.duration_seconds, spec.width, spec.height, spec.fps) == (2, 4.0, 640, 480, 30.0)


def test_an_unknown_name_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(ValueError, match="accepted: red"):
        Event("mauve", "circle", "grows")
    with pytest.raises(ValueError, match="one or two events"):
        ClipSpec(events=())


def test_the_second_object_replaces_the_first() -> None:
    spec = ClipSpec(
        (Event("red", "circle", "stands still"), Event("blue", "square", "moves right")), switch_seconds=2.0
    )
    assert [object_state(spec, seconds).event_index for seconds in (1.99, 2.0)] == [0, 1]
    assert tuple(render_frame(spec, 1.0)[120, 160] > 100) == (True, False, False)
    assert object_state(spec, 5.9).x > object_state(spec, 2.1).x


def test_a_blinking_object_is_gone_at_times() -> None:
    spec = ClipSpec((Event("red", "circle", "blinks", blink_seconds=0.5),))
    assert [object_state(spec, seconds).visible for seconds in (0.2, 0.7, 1.2)] == [True, False, True]


def test_clips_are_real_h264(tmp_path: Path) -> None:
    spec = clip_spec(11, duration_seconds=2.0, resolution=(320, 240), fps=10.0)
    with av.open(str(encode(spec, tmp_path / "clip.mp4"))) as container:
        stream = container.streams.video[0]
        frames = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    assert (stream.codec_context.name, len(frames)) == ("h264", 20)
    difference = np.abs(frames[4].astype(int) - render_frame(spec, 0.4).astype(int))
    assert difference.mean() < 12
