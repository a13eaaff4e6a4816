"""Two hours of video, and pictures that are large: the right frames, beside other work, in little memory."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support import require_reader
from video_clips import Local, write_clip, write_long_clip

from tru_vlm.intake.spool import Spool, SpooledFile
from tru_vlm.types import VideoParams
from tru_vlm.video.media import SamplingBounds
from tru_vlm.video.service import VideoService

Run = Callable[[Coroutine[Any, Any, Any]], Any]

HOURS = 2
FPS = 5
PIECE_FRAMES = 40
NUM_FRAMES = HOURS * 3600 * FPS
MEMORY_BYTES = 4 << 30
CACHE_BYTES = 1 << 20
MANY = VideoParams(fps=0.25, max_frames=2000)
BOUNDS = SamplingBounds(patch_size=16, min_pixels=1024, max_pixels=32 * 64)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Local:
    folder = tmp_path_factory.mktemp("long")
    piece = write_clip(folder / "piece.mp4", num_frames=PIECE_FRAMES, fps=FPS)
    return write_long_clip(folder / "long.mp4", piece, seconds=HOURS * 3600)


@pytest.fixture(scope="module")
def large_clip(tmp_path_factory: pytest.TempPathFactory) -> Local:
    """40 frames that take 6 MB each as RGB."""
    return write_clip(tmp_path_factory.mktemp("large") / "large.mp4", num_frames=40, width=1920, height=1088)


@pytest.fixture(scope="module")
def spool(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spool]:
    spool = Spool(tmp_path_factory.mktemp("spool"), 1 << 30, 0)
    run(spool.start())
    yield spool
    run(spool.close())


@pytest.fixture(scope="module", params=["pyav", "torchcodec"])
def service(
    run: Run, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VideoService]:
    require_reader(request.param)
    service = VideoService(
        frames_dir=tmp_path_factory.mktemp("frames"),
        frame_cache_bytes=CACHE_BYTES,
        decode_processes=2,
        decode_timeout_seconds=600,
        decode_memory_bytes=MEMORY_BYTES,
        reader=request.param,
    )
    run(service.start())
    yield service
    run(service.close())


async def spooled(spool: Spool, clip: Local) -> SpooledFile:
    return await spool.link(clip.path, size_bytes=clip.size_bytes, sha256=clip.sha256, filename=None)


class Heartbeat:
    """Counts how often the event loop gets to it."""

    def __init__(self) -> None:
        self.num_beats = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0)  # every turn of the loop: a timer's beats would count the decode's seconds
            self.num_beats += 1


def peak_growth_bytes(pid: int, before: int) -> int:
    """How far a process's memory has risen above ``before``, at its highest."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024 - before


def test_two_hours(run: Run, service: VideoService, spool: Spool, long_clip: Local, tmp_path: Path) -> None:
    async def scenario() -> None:
        file = await spooled(spool, long_clip)
        probe = await service.inspect(file)
        assert (probe.num_frames, probe.duration_seconds) == (NUM_FRAMES, HOURS * 3600)
        assert service.plan(probe, VideoParams(), BOUNDS).num_frames == 768
        plan = service.plan(probe, MANY, BOUNDS)
        assert plan.num_frames == 1800
        children = {pid: psutil.Process(pid).memory_info().rss for pid in service._pool.pids()}
        parent_bytes = psutil.Process().memory_info().rss
        short = write_clip(tmp_path / "short.mp4", num_frames=4)
        heart = Heartbeat()
        beating = asyncio.create_task(heart.run())
        try:
            decoding = asyncio.create_task(service.frames(file, probe, MANY, BOUNDS))
            short_probe = await service.inspect(short)
            (await service.frames(short, short_probe, VideoParams(), BOUNDS)).release()
            assert not decoding.done(), "1800 frames take longer than four"
            lease = await decoding
        finally:
            beating.cancel()
        assert heart.num_beats > 5000, "the loop went on while the file was decoded"
        await spool.remove(file)
        assert spool.used_bytes == 0
        check_frames(np.load(lease.ref.path, mmap_mode="r"), lease.ref.frames_indices, lease.ref.timestamps_seconds)
        assert lease.ref.timestamps_seconds == pytest.approx(plan.frame_timestamps, abs=1e-6)
        lease.release()
        growth = max(peak_growth_bytes(pid, before) for pid, before in children.items())
        assert growth < 96 << 20
        gc.collect()
        assert psutil.Process().memory_info().rss - parent_bytes < 32 << 20

    run(scenario())


def test_sampled_frames_are_never_all_held_at_full_size(run: Run, service: VideoService, large_clip: Local) -> None:
    async def scenario() -> None:
        probe = await service.inspect(large_clip)
        children = {pid: psutil.Process(pid).memory_info().rss for pid in service._pool.pids()}
        with await service.frames(large_clip, probe, VideoParams(fps=25.0), BOUNDS) as lease:
            assert lease.info.num_frames == 40
        growth = max(peak_growth_bytes(pid, before) for pid, before in children.items())
        assert growth < 130 << 20, "all of them would take 239 MiB"

    run(scenario())


def check_frames(frames: np.ndarray, indices: tuple[int, ...], times: tuple[float, ...]) -> None:
    """Each frame is the one of its index, shown at its time."""
    assert len(frames) == len(indices) == len(times) == 1800
    assert (indices[0], indices[-1]) == (0, NUM_FRAMES - 1)
    assert list(indices) == sorted(set(indices))
    assert times == pytest.approx([index / FPS for index in indices], abs=1e-6)
    levels = frames.mean(axis=(1, 2, 3))
    expected = np.array([20 + index % PIECE_FRAMES * 200 // PIECE_FRAMES for index in indices])
    assert np.abs(levels - expected).max() < 2.4, "levels of neighbours lie 5 apart"
