"""The whole way of a file: what it is, what would be sampled, the frames; and what is said of bad ones."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from video_clips import (
    Local,
    image_bytes,
    local,
    local_bytes,
    promise_one_second,
    write_clip,
    write_sound,
    write_variable_rate,
)

from tru_vlm.errors import InvalidRequestError, UnsupportedMediaError
from tru_vlm.types import VideoParams
from tru_vlm.video.media import SamplingBounds
from tru_vlm.video.media_type import ACCEPTED
from tru_vlm.video.service import VideoService, content_key

Run = Callable[[Coroutine[Any, Any, Any]], Any]

BOUNDS = SamplingBounds(patch_size=16, min_pixels=1024, max_pixels=96 * 160, default_max_frames=16, max_frames=24)
REAL_CLIPS = Path(__file__).resolve().parents[2].parent / "shared" / "videos"


def test_a_clip_from_probe_to_frames(run: Run, service: VideoService, clip: Local) -> None:
    async def scenario() -> None:
        probe = await service.inspect(clip, "video")
        assert (probe.kind, probe.container, probe.codec, probe.width, probe.height) == (
            "video",
            "MP4",
            "h264",
            160,
            96,
        )
        plan = service.plan(probe, VideoParams(), BOUNDS)
        async with await service.frames(clip, probe, VideoParams(), BOUNDS) as lease:
            frames, info = lease.ref, lease.info
            assert np.load(frames.path).shape == (frames.num_frames, 3, frames.height, frames.width) == (4, 3, 96, 160)
            assert (info.num_frames, info.height, info.width) == (plan.num_frames, plan.height, plan.width)
            assert info.video_tokens == plan.video_tokens == 2 * 3 * 5
            assert info.frame_timestamps == frames.timestamps_seconds == pytest.approx(plan.frame_timestamps)
            assert (info.video_start, info.video_end, info.duration_seconds, info.source_fps) == (0.0, 2.0, 2.0, 25.0)
            assert (frames.kind, info.kind, info.frames_url) == ("video", "video", None)
            assert info.decoder in ("torchcodec", "pyav")
        again = await service.frames(clip, probe, VideoParams(), BOUNDS)
        assert again.is_cached
        again.release()

    run(scenario())


def test_a_span_and_an_exact_number(run: Run, service: VideoService, clip: Local) -> None:
    async def scenario() -> None:
        probe = await service.inspect(clip)
        params = VideoParams(nframes=6, video_start=1.0, video_end=1.5)
        with await service.frames(clip, probe, params, BOUNDS) as lease:
            assert (lease.info.num_frames, lease.info.video_start, lease.info.video_end) == (6, 1.0, 1.5)
            assert min(lease.info.frame_timestamps) >= 1.0
            assert max(lease.info.frame_timestamps) <= 1.5

    run(scenario())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_one_frame(run: Run, service: VideoService, tmp_path: Path, kind: str) -> None:
    async def scenario() -> None:
        file = local_bytes(tmp_path, image_bytes(kind, width=320, height=160))
        probe = await service.inspect(file)
        assert (probe.kind, probe.width, probe.height, probe.num_frames) == ("image", 320, 160, 1)
        plan = service.plan(probe, VideoParams(), BOUNDS)
        with await service.frames(file, probe, VideoParams(), BOUNDS) as lease:
            frames = np.load(lease.ref.path)
            assert frames.shape == (1, 3, plan.height, plan.width)
            assert np.abs(frames.mean(axis=(0, 2, 3)) - [200, 30, 60]).max() < 4
            assert (lease.ref.kind, lease.ref.timestamps_seconds, lease.ref.source_fps) == ("image", (), None)
            assert lease.info.video_tokens == plan.video_tokens == plan.height * plan.width // 32**2

    run(scenario())


def test_a_clip_of_one_frame(run: Run, service: VideoService, tmp_path: Path) -> None:
    async def scenario() -> None:
        file = write_clip(tmp_path / "one.mp4", num_frames=1)
        probe = await service.inspect(file)
        with await service.frames(file, probe, VideoParams(), BOUNDS) as lease:
            assert lease.info.num_frames == 2
            assert "used twice" in " ".join(lease.info.notes)

    run(scenario())


def test_thumbnails(run: Run, service: VideoService, clip: Local) -> None:
    async def scenario() -> None:
        probe = await service.inspect(clip)
        with await service.frames(clip, probe, VideoParams(), BOUNDS) as lease:
            key = lease.ref.content_key
        jpeg = await service.frame_jpeg(key, 3, 80)
        assert jpeg is not None
        image = Image.open(io.BytesIO(jpeg))
        assert (image.format, image.size) == ("JPEG", (80, 48))
        for other in ((key, 4), (key, -1), ("0" * 64, 0), ("../../../etc/passwd", 0)):
            assert await service.frame_jpeg(*other, 80) is None

    run(scenario())


def test_notes_say_what_was_reduced(run: Run, service: VideoService, clip: Local) -> None:
    async def scenario() -> None:
        probe = await service.inspect(clip)
        params = VideoParams(fps=25.0, max_frames=1000, max_pixels=10**9)
        plan = service.plan(probe, params, BOUNDS)
        with await service.frames(clip, probe, params, BOUNDS) as lease:
            assert lease.info.num_frames == plan.num_frames == 24
            notes = " ".join(lease.info.notes)
            assert "max_frames was lowered from 1000 to 24" in notes
            assert "max_pixels was lowered" in notes

    run(scenario())


@pytest.mark.parametrize(
    ("params", "param"),
    [
        (VideoParams(video_start=2.0), "video_params.video_start"),
        (VideoParams(video_start=1.0, video_end=0.5), "video_params.video_end"),
        (VideoParams(nframes=25), "video_params.nframes"),
        (VideoParams(min_frames=30), "video_params.min_frames"),
        (VideoParams(nframes=20, video_start=1.9), "video_params.nframes"),
    ],
)
def test_options_that_do_not_fit_the_clip(
    run: Run, service: VideoService, clip: Local, params: VideoParams, param: str
) -> None:
    async def scenario() -> None:
        probe = await service.inspect(clip)
        with pytest.raises(InvalidRequestError) as caught:
            await service.frames(clip, probe, params, BOUNDS)
        assert (caught.value.param, caught.value.status) == (param, 400)

    run(scenario())


async def inspect_and_sample(service: VideoService, file: Local) -> None:
    """A damaged file may betray itself only when it is decoded."""
    probe = await service.inspect(file, "video_url")
    (await service.frames(file, probe, VideoParams(), BOUNDS, param="video_url")).release()


def bad_files(directory: Path, clip: Local) -> dict[str, bytes]:
    content = clip.path.read_bytes()
    return {
        "empty": b"",
        "text": b"this is not a video " * 100,
        "cut off": content[: len(content) // 10],
        "header only": content[:32],
        "sound": write_sound(directory / "sound").path.read_bytes(),
        "playlist": b"#EXTM3U\nfile:///etc/passwd\n",
        "broken jpeg": b"\xff\xd8\xff\xe0 broken",
        "broken png": image_bytes("PNG")[:40],
        "playlist behind a video's signature": b"FLV\x01#EXTM3U <MPD dash:profile:isoff-on-demand:2011",
    }


def test_bad_files_are_named_and_what_is_accepted_is_told(
    run: Run, service: VideoService, clip: Local, tmp_path: Path
) -> None:
    async def scenario() -> None:
        restarts = service.stats().pool.num_restarts
        for name, content in bad_files(tmp_path, clip).items():
            file = local_bytes(tmp_path, content)
            with pytest.raises(UnsupportedMediaError) as caught:
                await inspect_and_sample(service, file)
            assert (caught.value.param, caught.value.status) == ("video_url", 415), name
            assert ACCEPTED in caught.value.message, name
            assert str(tmp_path) not in caught.value.message, name
        assert service.stats().pool.num_restarts == restarts

    run(scenario())


def test_ceilings(run: Run, service: VideoService, tmp_path: Path) -> None:
    async def scenario() -> None:
        long = write_clip(tmp_path / "long.mp4", num_frames=70, fps=1)
        with pytest.raises(InvalidRequestError, match=r"70\.0 s long; at most 60 s") as caught:
            await service.inspect(long, "video")
        assert (caught.value.code, caught.value.param) == ("video_too_long", "video")
        for large in (
            write_clip(tmp_path / "large.mp4", num_frames=1, width=1280, height=800),
            local_bytes(tmp_path, image_bytes("PNG", width=1001, height=1000)),
        ):
            with pytest.raises(InvalidRequestError, match="at most 1000000 pixels") as caught:
                await service.inspect(large)
            assert caught.value.code == "frame_too_large"
        crowded = write_clip(tmp_path / "crowded.mkv", num_frames=2, num_streams=4)
        with pytest.raises(InvalidRequestError, match="4 streams; at most 3 are accepted") as caught:
            await service.inspect(crowded)
        assert caught.value.code == "too_many_streams"

    run(scenario())


def test_a_header_that_promises_less_does_not_pass_the_ceiling(run: Run, service: VideoService, tmp_path: Path) -> None:
    async def scenario() -> None:
        file = promise_one_second(write_clip(tmp_path / "liar.mp4", num_frames=70, fps=1))
        probe = await service.inspect(file)
        assert probe.duration_seconds == 1.0
        with pytest.raises(InvalidRequestError, match=r"The video is 70\.0 s long; at most 60 s") as caught:
            await service.frames(file, probe, VideoParams(), BOUNDS, param="video_url")
        assert (caught.value.code, caught.value.param) == ("video_too_long", "video_url")

    run(scenario())


def test_a_count_that_decoders_tell_differently(run: Run, service: VideoService, tmp_path: Path) -> None:
    """At this rate one FFmpeg's duration of the last frame gives ten frames, another's eight."""

    async def scenario() -> None:
        file, times = write_variable_rate(tmp_path / "variable.mp4")
        probe = await service.inspect(file)
        with await service.frames(file, probe, VideoParams(fps=2.075), BOUNDS) as lease:
            assert lease.info.num_frames in (8, 10)
            assert len(np.load(lease.ref.path)) == lease.info.num_frames
            expected = [times[index] for index in lease.ref.frames_indices]
            assert lease.ref.timestamps_seconds == pytest.approx(expected, abs=2e-3)

    run(scenario())


def test_the_same_video_is_decoded_once_for_many(run: Run, service: VideoService, tmp_path: Path) -> None:
    async def scenario() -> None:
        file = write_clip(tmp_path / "many.mp4", num_frames=40)
        probe = await service.inspect(file)
        before = service.stats().pool.num_decoded
        leases = await asyncio.gather(*(service.frames(file, probe, VideoParams(), BOUNDS) for _ in range(4)))
        assert service.stats().pool.num_decoded - before == 1
        assert len({lease.ref.path for lease in leases}) == 1
        for lease in leases:
            lease.release()

    run(scenario())


def test_the_key_changes_with_everything_that_changes_frames(run: Run, service: VideoService, clip: Local) -> None:
    from tru_vlm.video.sampling import settle_sampling

    probe = run(service.inspect(clip))
    base, _ = settle_sampling(probe, VideoParams(), BOUNDS)
    variants = [replace(base, fps=3.0), replace(base, patch_size=14), replace(base, max_pixels=9999)]
    variants += [replace(base, video_start=0.5), replace(base, total_pixels=5), replace(base, max_frames=10)]
    keys = {content_key("a" * 64, sampling, reader="auto") for sampling in [base, *variants]}
    keys |= {content_key("b" * 64, base, reader="auto"), content_key("a" * 64, base, reader="pyav")}
    assert len(keys) == len(variants) + 3


def test_no_parts_and_no_open_leases_remain(run: Run, service: VideoService) -> None:
    assert service.stats().cache.num_leases == 0


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="the folder of real clips is not here")
def test_real_clips(run: Run, service: VideoService) -> None:
    bounds = replace(BOUNDS, max_pixels=64 * 1024, max_frames=8, default_max_frames=8)

    async def scenario() -> None:
        for name in ("dc_rot90.mov", "tc_h265.mp4", "ax_vp9_odd.webm", "mp_pigs.gif", "img_p_trns.png", "tc_av1.mkv"):
            file = local(REAL_CLIPS / name)
            probe = await service.inspect(file)
            plan = service.plan(probe, VideoParams(), bounds)
            with await service.frames(file, probe, VideoParams(), bounds) as lease:
                assert (lease.info.num_frames, lease.info.height, lease.info.width) == (
                    plan.num_frames,
                    plan.height,
                    plan.width,
                ), name

    run(scenario())
