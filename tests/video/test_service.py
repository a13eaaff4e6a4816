"""The whole way of a file: what it is, what would be sampled, the frames; and what is said of bad ones."""

from __future__ import annotations

import asyncio
import io
import itertools
import re
from collections.abc import Callable, Coroutine
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import real_clips
from video_clips import (
    MEMORY_BYTES,
    Local,
    holds,
    image_bytes,
    local,
    local_bytes,
    promise_one_second,
    write_clip,
    write_growing,
    write_liar,
    write_sound,
    write_variable_rate,
)

from tru_vlm.errors import InvalidRequestError, UnsupportedMediaError
from tru_vlm.processor.profile import load_profile, resolve_model_path
from tru_vlm.processor.prompt import MediaLayout, build_prompt
from tru_vlm.types import MediaPart, Message, TextPart, VideoParams
from tru_vlm.video.frame_cache import shared_memory_directory
from tru_vlm.video.media import SamplingBounds, VideoAllowance
from tru_vlm.video.media_type import ACCEPTED
from tru_vlm.video.service import VideoService, content_key

Run = Callable[[Coroutine[Any, Any, Any]], Any]

BOUNDS = SamplingBounds(patch_size=16, min_pixels=1024, max_pixels=96 * 160, default_max_frames=16, max_frames=24)
REAL_CLIPS = real_clips()


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


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animated_image_the_first_picture_is_taken(
    run: Run, service: VideoService, tmp_path: Path, kind: str
) -> None:
    async def scenario() -> None:
        pictures = [Image.new("RGB", (64, 64), (number, 200, 40)) for number in range(0, 250, 5)]
        buffer = io.BytesIO()
        pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:], duration=40)
        file = local_bytes(tmp_path, buffer.getvalue())
        probe = await service.inspect(file)
        assert (probe.kind, probe.num_frames) == ("image", 1)
        with await service.frames(file, probe, VideoParams(fps=25.0), BOUNDS) as lease:
            frames = np.load(lease.ref.path)
            assert frames.shape == (1, 3, 64, 64)
            assert np.abs(frames.mean(axis=(0, 2, 3)) - [0, 200, 40]).max() < 3

    run(scenario())


def test_the_prompt_tells_the_frames_own_times(run: Run, service: VideoService, tmp_path: Path) -> None:
    """Of a variable rate, on which the mean rate is off by more than 0.3 s."""

    async def scenario() -> None:
        file, times = write_variable_rate(tmp_path / "variable.mp4")
        probe = await service.inspect(file)
        with await service.frames(file, probe, VideoParams(nframes=20), BOUNDS) as lease:
            ref, frames = lease.ref, np.load(lease.ref.path)
        levels = frames.mean(axis=(1, 2, 3))
        assert np.abs(levels - [20 + index * 200 // len(times) for index in ref.frames_indices]).max() < 1.6
        shown = [times[index] for index in ref.frames_indices]
        layout = MediaLayout(ref.kind, ref.num_frames, ref.height, ref.width, ref.timestamps_seconds)
        messages = [Message("user", (MediaPart(0), TextPart("What happens?")))]
        prompt = build_prompt(profile, messages, [layout])
        text = profile.tokenizer.decode(prompt.token_ids)
        told = [float(seconds) for seconds in re.findall(r"<(\d+\.\d) seconds>", text)]
        means = [(first + second) / 2 for first, second in zip(shown[::2], shown[1::2], strict=True)]
        half_a_digit = 0.05
        assert told == pytest.approx(means, abs=half_a_digit + 1e-3)
        assert max(abs(i / ref.source_fps - t) for i, t in zip(ref.frames_indices, shown, strict=True)) > 0.3

    profile = load_profile(resolve_model_path("demo"))
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


FIT = VideoParams(fit=True)


@pytest.mark.parametrize(
    ("told_seconds", "real_frames"),
    [(1.0, 1000), (40.0, 50), (2.0, 60)],
    ids=["far too little", "far too much", "a little too little"],
)
def test_frames_keep_to_their_bounds_also_where_the_header_lies(
    run: Run, service: VideoService, tmp_path: Path, told_seconds: float, real_frames: int
) -> None:
    async def scenario() -> None:
        file = write_liar(tmp_path / "liar.mkv", seconds=told_seconds, num_frames=real_frames)
        probe = await service.inspect(file)
        assert probe.num_frames == told_seconds * 25
        wishes = (FIT, VideoParams(fit=True, nframes=20), VideoParams(fit=True, fps=25.0))
        for params, room in itertools.product(wishes, (400, 100, 30)):
            allowance = VideoAllowance(room, timestamp_tokens=9)
            assert holds(allowance, service.plan(probe, params, BOUNDS, allowance=allowance))
            with await service.frames(file, probe, params, BOUNDS, allowance=allowance) as lease:
                info = lease.info
                assert holds(allowance, info)
                assert info.num_frames >= 2
                assert max(info.frame_timestamps) <= real_frames / 25

    run(scenario())


def test_a_fit_says_what_it_reduced_and_has_frames_of_its_own(run: Run, service: VideoService, clip: Local) -> None:
    async def scenario() -> None:
        probe = await service.inspect(clip)
        keys = {}
        tight = VideoAllowance(40, timestamp_tokens=9)
        for name, allowance in (("all", None), ("less", tight), ("less again", tight)):
            with await service.frames(clip, probe, FIT, BOUNDS, allowance=allowance) as lease:
                keys[name] = lease.ref.content_key
                notes = " ".join(lease.info.notes)
                is_smaller = (lease.info.height, lease.info.width) != (96, 160)
            assert is_smaller == (allowance is tight)
            assert ("the frames' size was lowered from 160 x 96 to" in notes) == is_smaller
        with await service.frames(clip, probe, VideoParams(), BOUNDS) as lease:
            keys["unfitted"] = lease.ref.content_key
        assert keys["all"] == keys["unfitted"] != keys["less"] == keys["less again"]

    run(scenario())


def test_more_than_the_clip_or_the_server_has_is_lowered_on_request(
    run: Run, service: VideoService, tmp_path: Path
) -> None:
    async def scenario() -> None:
        short = write_clip(tmp_path / "short.mp4", num_frames=11)
        probe = await service.inspect(short)
        for params, num_frames, words in (
            (VideoParams(nframes=20, fit=True), 10, "20 frames asked for, 11 available: 10 used"),
            (VideoParams(nframes=1000, fit=True), 10, "nframes was lowered from 1000 to 24, the server's limit"),
            (VideoParams(nframes=8, video_start=0.3, fit=True), 2, "8 frames asked for, 3 available: 2 used"),
            (VideoParams(min_frames=30, fit=True), 10, "min_frames was lowered from 30 to 24 (max_frames)"),
        ):
            for allowance in (None, VideoAllowance(200, timestamp_tokens=9)):
                planned = service.plan(probe, params, BOUNDS, allowance=allowance)
                with await service.frames(short, probe, params, BOUNDS, allowance=allowance) as lease:
                    assert lease.info.num_frames == planned.num_frames == num_frames
                    if allowance is None:
                        assert words in lease.info.notes
                    asked = str(params.nframes or params.min_frames)
                    assert any(asked in note for note in lease.info.notes)

    run(scenario())


def test_a_video_that_is_longer_than_its_header_tells_is_still_too_long(
    run: Run, service: VideoService, tmp_path: Path
) -> None:
    async def scenario() -> None:
        file = write_liar(tmp_path / "long.mkv", seconds=2, num_frames=70, fps=1)
        probe = await service.inspect(file)
        with pytest.raises(InvalidRequestError, match=r"70\.0 s long; at most 60 s") as caught:
            await service.frames(file, probe, VideoParams(), BOUNDS)
        assert (caught.value.code, caught.value.param) == ("video_too_long", "video")

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


def test_frames_that_grow_past_the_ceiling_in_mid_stream(run: Run, service: VideoService, tmp_path: Path) -> None:
    async def scenario() -> None:
        file = write_growing(tmp_path / "growing.webm", first=64, then=1024)
        probe = await service.inspect(file)
        assert (probe.width, probe.height) == (64, 64)
        with pytest.raises(InvalidRequestError, match="A frame is 1024 x 1024; at most 1000000 pixels") as caught:
            await service.frames(file, probe, VideoParams(), BOUNDS, param="video_url")
        assert (caught.value.code, caught.value.param) == ("frame_too_large", "video_url")

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
    others = {name: (value or 0) + 3 for name, value in base.as_dict().items() if name != "kind"} | {"kind": "image"}
    assert others.keys() == {field.name for field in fields(base)}
    variants = [replace(base, **{name: value}) for name, value in others.items()]
    keys = {content_key("a" * 64, sampling, reader="auto", device="cpu") for sampling in [base, *variants]}
    keys.add(content_key("b" * 64, base, reader="auto", device="cpu"))
    keys.add(content_key("a" * 64, base, reader="pyav", device="cpu"))
    keys.add(content_key("a" * 64, base, reader="auto", device="cuda"))
    assert len(keys) == len(variants) + 4


def test_frames_lie_in_shared_memory_while_the_service_runs(run: Run, clip: Local, tmp_path: Path) -> None:
    memory = shared_memory_directory(tmp_path)
    if memory is None:
        pytest.skip("this system has no /dev/shm")
    image = local_bytes(tmp_path, image_bytes("PNG"))

    async def scenario() -> None:
        service = VideoService(
            frames_dir=tmp_path,
            frame_cache_bytes=1 << 30,
            frame_cache_memory_bytes=1 << 20,
            decode_processes=1,
            decode_timeout_seconds=600,
            decode_memory_bytes=MEMORY_BYTES,
        )
        await service.start()
        try:
            for file in (clip, image):
                probe = await service.inspect(file)
                for is_cached in (False, True):
                    with await service.frames(file, probe, VideoParams(), BOUNDS) as lease:
                        assert Path(lease.ref.path).parent == memory
                        assert np.load(lease.ref.path).shape[0] == lease.ref.num_frames
                        assert lease.is_cached is is_cached
            large = VideoParams(nframes=24, min_pixels=96 * 160)
            with await service.frames(clip, await service.inspect(clip), large, BOUNDS) as lease:
                assert Path(lease.ref.path).parent == tmp_path, "24 frames of 45 KiB have no room"
            stats = service.stats().cache
            assert (stats.num_memory_hits, stats.num_disk_hits, stats.num_misses) == (2, 0, 3)
        finally:
            await service.close()

    run(scenario())
    assert not memory.exists()
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_no_parts_and_no_open_leases_remain(run: Run, service: VideoService) -> None:
    assert service.stats().cache.num_leases == 0


@pytest.mark.skipif(REAL_CLIPS is None, reason="the folder of real clips is not here")
def test_real_clips(run: Run, service: VideoService) -> None:
    assert REAL_CLIPS is not None
    bounds = replace(BOUNDS, max_pixels=64 * 1024, max_frames=8, default_max_frames=8)

    refused = {
        "README.md": "unsupported_media",
        "ax_audio_only.mp4": "unsupported_media",
        "ax_edit_list.mp4": "frame_too_large",
        "img_exif6.jpg": "frame_too_large",
        "nasa_13013.mp4": "too_many_streams",
    }

    async def outcome(path: Path) -> str | None:
        file = local(path)
        try:
            probe = await service.inspect(file)
            plan = service.plan(probe, VideoParams(), bounds)
            with await service.frames(file, probe, VideoParams(), bounds) as lease:
                info = lease.info
                assert (info.num_frames, info.height, info.width) == (plan.num_frames, plan.height, plan.width), path
        except InvalidRequestError as error:
            return error.code
        return None

    for path in sorted(REAL_CLIPS.iterdir()):
        assert run(outcome(path)) == refused.get(path.name), path
