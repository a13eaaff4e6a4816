"""The setting VIDEO_READER: each reader gives the same frames, and one that does not load is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import require
from video_clips import write_clip

import qwen_vl_utils as qwen
from tru_vlm.video.media import EffectiveSampling
from tru_vlm.video.reader import sample_video

SAMPLING = EffectiveSampling(kind="video", patch_size=16, min_pixels=1024, max_pixels=16384, fps=5.0, min_frames=4)


@pytest.mark.parametrize("options", [{}, {"video_start": 0.7, "video_end": 1.3, "fps": 12.5}])
def test_readers_sample_the_same_frames_where_mean_rates_differ(tmp_path: Path, options: dict[str, float]) -> None:
    """FFmpeg 5 (torchcodec's here) lets an MPEG's last frame last for nothing, FFmpeg 8 (PyAV's) does not."""
    require(qwen.backend_status()["torchcodec"] == "available", "torchcodec needs FFmpeg's libraries")
    clip = write_clip(tmp_path / "clip.mpg", num_frames=40, codec="mpeg2video")
    sampling = EffectiveSampling(**{**SAMPLING.as_dict(), **options})
    infos, frames = [], []
    for name in ("torchcodec", "pyav"):
        out = tmp_path / f"{name}.npy"
        infos.append(sample_video(clip.path, sampling, out, reader=name, num_threads=1))
        frames.append(np.load(out))
    assert infos[0].frames_indices == infos[1].frames_indices
    assert infos[0].timestamps_seconds == infos[1].timestamps_seconds
    assert np.array_equal(*frames)
