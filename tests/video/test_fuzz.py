"""Damaged files through the real spool, decode pool and service: frames or a clear refusal, and nothing left behind.

``--fuzz-files`` says how many, ``--fuzz-seed`` which ones, ``--fuzz-only`` takes a single one of them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fuzz_files import mutant, whole_files
from support import require_reader

from tru_vlm.errors import InvalidRequestError, TruError
from tru_vlm.intake.spool import Spool
from tru_vlm.types import VideoParams
from tru_vlm.video.media import SamplingBounds
from tru_vlm.video.service import VideoService

Run = Callable[[Coroutine[Any, Any, Any]], Any]

FILES_PER_TEST = 250
TIMEOUT_SECONDS = 60
"""For files of a few kilobytes that take milliseconds: one that gets there hangs."""
MAX_SECONDS = 600.0
MAX_PARENT_GROWTH_BYTES = 64 << 20
MAX_CHILD_GROWTH_BYTES = 128 << 20
SPARE_THREADS = 8
"""Of torch's pool, which begins at its first large picture; far fewer than one a file."""
CACHE_BYTES = 1 << 20
BOUNDS = SamplingBounds(patch_size=16, min_pixels=1024, max_pixels=64 * 96, default_max_frames=8, max_frames=16)
PARAMS = (
    VideoParams(),
    VideoParams(fps=30.0),
    VideoParams(fps=0.01),
    VideoParams(nframes=2),
    VideoParams(nframes=7),
    VideoParams(video_start=0.3, video_end=0.5),
    VideoParams(video_start=0.6),
    VideoParams(video_end=0.01),
    VideoParams(max_pixels=100, total_pixels=5),
    VideoParams(min_frames=12),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "numbers" not in metafunc.fixturenames:
        return
    option = metafunc.config.option
    if option.fuzz_only is not None:
        chunks = [range(option.fuzz_only, option.fuzz_only + 1)]
    else:
        ends = [*range(0, option.fuzz_files, FILES_PER_TEST), option.fuzz_files]
        chunks = [range(begin, end) for begin, end in pairwise(ends)]
    metafunc.parametrize("numbers", chunks, ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")


@dataclass(frozen=True)
class Footprint:
    """What the server holds: children, descriptors, threads of the decode process, bytes in memory."""

    num_processes: int
    num_descriptors: int
    child_pid: int
    num_child_descriptors: int
    num_child_threads: int
    parent_bytes: int
    child_bytes: int


class Lab:
    """A service with one decode process, the spool in front of it, and the files to begin with."""

    def __init__(self, folder: Path, reader: str) -> None:
        self.folder = folder
        self.whole = whole_files(folder)
        self.spool = Spool(folder / "spool", 1 << 30, 0)
        self.service = VideoService(
            frames_dir=folder / "frames",
            frame_cache_bytes=CACHE_BYTES,
            decode_processes=1,
            decode_timeout_seconds=TIMEOUT_SECONDS,
            decode_memory_bytes=4 << 30,
            reader=reader,  # type: ignore[arg-type]
            max_video_seconds=MAX_SECONDS,
            max_source_pixels=512 * 512,
            max_streams=8,
        )

    async def outcome(self, content: bytes, params: VideoParams) -> str:
        """What a client would get: "frames", or the code of the error.  Raises AssertionError for anything unclear."""
        file = await self.spool.write(one_chunk(content), filename="clip", max_bytes=1 << 20)
        try:
            probe = await self.service.inspect(file, "video")
            plan = self.service.plan(probe, params, BOUNDS)
            async with await self.service.frames(file, probe, params, BOUNDS) as lease:
                json.dumps([asdict(probe), asdict(plan), asdict(lease.info)], allow_nan=False)
                check_frames(np.load(lease.ref.path, mmap_mode="r"), lease.ref.frames_indices, lease.info)
                return "frames"
        except TruError as error:
            self._check_error(error)
            return error.code
        finally:
            await self.spool.remove(file)

    def _check_error(self, error: TruError) -> None:
        assert isinstance(error, InvalidRequestError), f"{error!r} from {error.__cause__!r}"
        assert error.code != "decode_timeout", "it hangs"
        assert error.message.isprintable(), error.message
        assert str(self.folder) not in error.message

    async def footprint(self) -> Footprint:
        """Measured when nothing is under way: a whole file has just been decoded."""
        assert await self.outcome(self.whole["h264.mp4"], VideoParams()) == "frames"
        await until(lambda: not self.service._pool._endings)
        gc.collect()
        me = psutil.Process()
        (pid,) = self.service._pool.pids()
        child = psutil.Process(pid)
        return Footprint(
            num_processes=len(me.children(recursive=True)),
            num_descriptors=me.num_fds(),
            child_pid=pid,
            num_child_descriptors=child.num_fds(),
            num_child_threads=child.num_threads(),
            parent_bytes=me.memory_info().rss,
            child_bytes=child.memory_info().rss,
        )


async def one_chunk(content: bytes) -> AsyncIterator[bytes]:
    yield content


def check_frames(frames: np.ndarray, indices: tuple[int, ...], info: Any) -> None:
    assert frames.shape == (info.num_frames, 3, info.height, info.width)
    assert frames.dtype == np.uint8
    if info.kind == "image":
        return
    times = info.frame_timestamps
    assert len(times) == len(indices) == info.num_frames
    assert list(times) == sorted(times)
    assert list(indices) == sorted(indices)
    assert all(0 <= seconds <= MAX_SECONDS for seconds in times), times
    assert info.source_fps > 0
    assert info.sample_fps > 0


@pytest.fixture(scope="module", params=["pyav", "torchcodec"])
def lab(run: Run, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    require_reader(request.param)
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("fuzz")
        (folder / "tmp").mkdir()
        patch.setenv("TMPDIR", str(folder / "tmp"))
        lab = Lab(folder, request.param)
        run(lab.service.start())
        yield lab
        run(lab.service.close())
        run(lab.spool.close())


def test_the_files_to_begin_with_are_whole(run: Run, lab: Lab) -> None:
    outcomes = {name: run(lab.outcome(content, VideoParams())) for name, content in lab.whole.items()}
    assert set(outcomes.values()) == {"frames"}, outcomes


def test_seed_and_number_tell_a_file(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    first, second = (whole_files(folder) for folder in folders)
    made = [mutant(first, 5, number).content for number in range(200)]
    assert made == [mutant(second, 5, number).content for number in range(200)]
    assert len(set(made)) > 190
    assert mutant(first, 6, 0) != mutant(first, 5, 0)


def test_damaged_files(run: Run, lab: Lab, tmp_path: Path, request: pytest.FixtureRequest, numbers: range) -> None:
    seed = request.config.option.fuzz_seed
    faults = []
    outcomes: dict[str, int] = {}

    async def scenario() -> tuple[Footprint, Footprint]:
        before = await lab.footprint()
        for number in numbers:
            damaged = mutant(lab.whole, seed, number)
            try:
                code = await lab.outcome(damaged.content, PARAMS[number % len(PARAMS)])
            except AssertionError as fault:
                (tmp_path / str(number)).write_bytes(damaged.content)
                faults.append(f"--fuzz-seed {seed} --fuzz-only {number} ({damaged.story}): {fault}")
            else:
                outcomes[code] = outcomes.get(code, 0) + 1
        return before, await lab.footprint()

    before, after = run(scenario())
    print(outcomes)  # noqa: T201 - shown when the test fails
    assert not faults, "\n".join([f"the files are in {tmp_path}", *faults])
    assert len(numbers) < FILES_PER_TEST or len(outcomes) > 2, outcomes
    check_nothing_is_left(run, lab, before, after)


def check_nothing_is_left(run: Run, lab: Lab, before: Footprint, after: Footprint) -> None:
    assert after.num_processes == before.num_processes
    assert after.num_descriptors <= before.num_descriptors
    assert after.parent_bytes - before.parent_bytes < MAX_PARENT_GROWTH_BYTES
    if after.child_pid == before.child_pid:
        assert after.num_child_descriptors <= before.num_child_descriptors
        assert after.num_child_threads <= before.num_child_threads + SPARE_THREADS
        assert after.child_bytes - before.child_bytes < MAX_CHILD_GROWTH_BYTES
    assert lab.spool.used_bytes == 0
    assert files_in(lab.folder / "spool") == []
    assert files_in(lab.folder / "tmp") == []
    assert lab.service.stats().cache.num_leases == 0
    run(until(lambda: bytes_of(lab.folder.glob("frames/*.npy")) <= CACHE_BYTES))
    assert {path.suffix for path in files_in(lab.folder / "frames")} <= {".npy", ".json"}


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def bytes_of(paths: Iterable[Path]) -> int:
    """Their sizes together; one that the cache evicts meanwhile counts nothing."""
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it is so; it must become so."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110 - turns of the loop
            await asyncio.sleep(0)
