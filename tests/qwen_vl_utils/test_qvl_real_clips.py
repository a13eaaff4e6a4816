"""Real clips that nobody here made; only where the folder beside the project is present."""

import numpy as np
import pytest

from qwen_vl_utils import (
    NoVideoStreamError,
    SamplingOptions,
    VideoError,
    load_image,
    probe_video,
    read_video,
    scan_frames,
)

# name: frames, average rate (section 5 of the rules, where it names the file)
KNOWN = {
    "ax_edit_list.mp4": (77, 29.9805),
    "nasa_13013.mp4": (390, 29.97),
    "ax_vp9.webm": (82, 29.9708),
    "mp_pigs.gif": (30, 10.0),
    "sk_bikes.mp4": (250, 25.0),
    "mz_hevc_1frame.mp4": (1, 25.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_counts_and_rates(real_videos, name):
    table = scan_frames(real_videos / name)
    num_frames, rate = KNOWN[name]
    assert table.num_frames == num_frames
    assert table.average_fps == pytest.approx(rate, abs=1e-3)


def test_the_best_stream_is_read_not_the_first(real_videos):
    probe = probe_video(real_videos / "nasa_13013.mp4")
    assert (probe.height, probe.width, probe.stream_index, probe.num_video_streams) == (270, 480, 3, 2)
    assert probe.has_audio


def test_every_clip_gives_frames_or_a_clear_error(real_videos, backend):
    for path in sorted(real_videos.iterdir()):
        if path.suffix in (".md", ".jpg", ".png"):
            continue
        if path.name == "ax_audio_only.mp4":
            with pytest.raises(NoVideoStreamError):
                read_video(path, backend=backend)
            continue
        video = read_video(path, sampling=SamplingOptions(max_frames=4, max_pixels=140_000), backend=backend)
        assert len(video.frames) == len(video.pts_seconds) >= 2, path.name
        assert video.pts_seconds == sorted(video.pts_seconds)
        assert video.frames.float().std() > 0.5 or path.name == "mz_hevc_1frame.mp4", path.name  # white


def test_rotation_and_size_change(real_videos, backend):
    assert read_video(real_videos / "dc_rot90.mov", backend=backend).source_height == 568
    video = read_video(real_videos / "wpt_resize.mp4", backend=backend)
    assert "frame_size_changed" in [note.code for note in video.notes]
    red, green = video.frames[0].float().mean((1, 2)), video.frames[-1].float().mean((1, 2))
    assert red[0] > 200 > green[0]


def test_exif_and_palette(real_videos):
    assert load_image(real_videos / "img_exif6.jpg", image_patch_size=None).size == (1800, 1200)
    assert np.array(load_image(real_videos / "img_p_trns.png")).shape[2] == 3


def test_text_is_no_video(real_videos):
    with pytest.raises(VideoError):
        probe_video(real_videos / "README.md")
