"""Content that was accepted before is not probed again; what was refused, or is other content, is."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from video_clips import local, local_bytes, write_clip

from tru_vlm.errors import InvalidRequestError, UnsupportedMediaError
from tru_vlm.video.media import MediaProbe
from tru_vlm.video.probe_memory import ProbeMemory
from tru_vlm.video.service import VideoService

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ANY = MediaProbe("video", "MP4", "h264", 160, 96, 2.0, 25.0, 50, 0)


def num_probes(service: VideoService) -> int:
    """Probes so far; nothing is decoded in these tests."""
    pool = service.stats().pool
    return pool.num_probed + pool.num_failed


def test_the_same_content_is_probed_once_under_whatever_name(run: Run, service: VideoService, tmp_path: Path) -> None:
    async def scenario() -> None:
        first = write_clip(tmp_path / "first.mp4", num_frames=23)
        copy = local(Path(shutil.copy(first.path, tmp_path / "copy.bin")))
        before = num_probes(service)
        probe = await service.inspect(first)
        assert num_probes(service) == before + 1
        assert await service.inspect(copy) == probe
        assert await service.inspect(first) == probe
        assert num_probes(service) == before + 1
        other = write_clip(tmp_path / "other.mp4", num_frames=24)
        assert (await service.inspect(other)).num_frames == 24
        assert num_probes(service) == before + 2

    run(scenario())


def test_what_was_refused_is_looked_at_again(run: Run, service: VideoService, tmp_path: Path) -> None:
    async def scenario() -> None:
        good = write_clip(tmp_path / "good.mp4", num_frames=25)
        broken = local_bytes(tmp_path, good.path.read_bytes()[: good.size_bytes // 3])
        wide = write_clip(tmp_path / "wide.mp4", num_frames=2, width=1216, height=1088)
        for file, error in ((broken, UnsupportedMediaError), (wide, InvalidRequestError)):
            for name in ("video", "video_url"):
                before = num_probes(service)
                with pytest.raises(error) as raised:
                    await service.inspect(file, name)
                assert raised.value.param == name
                assert num_probes(service) == before + 1

    run(scenario())


def test_a_probe_that_was_cancelled_is_made_again(run: Run, service: VideoService, tmp_path: Path) -> None:
    async def scenario() -> None:
        file = write_clip(tmp_path / "cancelled.mp4", num_frames=26)
        task = asyncio.ensure_future(service.inspect(file))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert (await service.inspect(file)).num_frames == 26

    run(scenario())


def test_the_least_recently_used_goes_first() -> None:
    memory = ProbeMemory(2)
    memory.put("a", ANY)
    memory.put("b", ANY)
    assert memory.get("a") is ANY
    memory.put("c", ANY)
    assert [memory.get(key) for key in "abc"] == [ANY, None, ANY]
