"""One event loop and one set of decode processes for the tests that need them: starting them takes seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from video_clips import MEMORY_BYTES, Local, write_clip

from tru_vlm.video.decode_pool import DecodePool
from tru_vlm.video.service import VideoService

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(scope="session")
def run() -> Iterator[Run[Any]]:
    """Runs a coroutine on the session's loop."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="session")
def pool(run: Run[Any]) -> Iterator[DecodePool]:
    """One decode process, which tests may kill."""
    pool = DecodePool(1, 600, MEMORY_BYTES, "pyav", num_threads=1)
    run(pool.start())
    yield pool
    run(pool.close())


@pytest.fixture(scope="session")
def service(run: Run[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VideoService]:
    """A service with one decode process."""
    service = VideoService(
        frames_dir=tmp_path_factory.mktemp("frames"),
        frame_cache_bytes=1 << 30,
        decode_processes=1,
        decode_timeout_seconds=600,
        decode_memory_bytes=MEMORY_BYTES,
        max_video_seconds=60,
        max_source_pixels=1000 * 1000,
        max_streams=3,
    )
    run(service.start())
    yield service
    run(service.close())


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Local:
    """Two seconds of H.264 at 25 frames per second, 160 x 96."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")
