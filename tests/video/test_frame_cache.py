"""Frames by content: decoded once, kept while in use, bounded, and never wrong after damage."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tru_vlm.video import frame_folder
from tru_vlm.video.failures import DecodeFailure
from tru_vlm.video.frame_cache import FrameCache, FrameLease
from tru_vlm.video.media import SampledInfo

SHAPE = (2, 3, 8, 8)
ENTRY_BYTES = 128 + 2 * 3 * 8 * 8


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def info(name: str = "") -> SampledInfo:
    return SampledInfo(
        kind="video",
        num_frames=2,
        height=8,
        width=8,
        source_height=10,
        source_width=10,
        decoder="test",
        timestamps_seconds=(0.0, 0.5),
        frames_indices=(0, 12),
        notes=(name,),
    )


class Decoder:
    """Writes frames, counts, and can be made to wait."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.num_cancelled = 0
        self.began = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.failure: Exception | None = None

    async def __call__(self, path: Path, max_bytes: int | None) -> SampledInfo:
        self.num_calls += 1
        self.began.set()
        try:
            await self.may_go_on.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.failure is not None:
            path.write_bytes(b"half of it")  # noqa: ASYNC240 - a few bytes
            raise self.failure
        with path.open("wb") as file:
            np.save(file, np.full(SHAPE, self.num_calls, np.uint8))
        return info()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def entries(directory: Path) -> set[str]:
    return {path.stem for path in directory.glob("*.npy")}


async def joined(cache: FrameCache, number: int) -> None:
    """Wait until so many requests wait for another one's decode."""
    while cache.stats().num_joined < number:  # noqa: ASYNC110 - turns of the loop, not time
        await asyncio.sleep(0)


async def settle(cache: FrameCache) -> None:
    """Let evictions under way finish."""
    await cache.close()


def test_frames_are_decoded_once_and_then_found(tmp_path: Path) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, 1 << 20), Decoder()
        for expected in (False, True, True):
            with await cache.get_or_decode(key("a"), decoder) as lease:
                assert lease.is_hit is expected
                assert np.load(lease.path).shape == SHAPE
                assert lease.info == info()
        await settle(cache)
        stats = cache.stats()
        assert (decoder.num_calls, stats.num_disk_hits, stats.num_misses, stats.num_leases) == (1, 2, 1, 0)
        assert (stats.num_memory_hits, stats.memory_bytes) == (0, 0)
        assert names(tmp_path) == [f"{key('a')}.json", f"{key('a')}.npy"]

    asyncio.run(scenario())


def test_concurrent_requests_decode_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, 1 << 20), Decoder()
        decoder.may_go_on.clear()
        tasks = [asyncio.create_task(cache.get_or_decode(key("a"), decoder)) for _ in range(5)]
        await joined(cache, 4)
        decoder.may_go_on.set()
        leases = await asyncio.gather(*tasks)
        assert decoder.num_calls == 1
        for lease in leases:
            lease.release()
            lease.release()
        assert cache.stats().num_leases == 0
        await settle(cache)

    asyncio.run(scenario())


def test_the_others_get_it_when_the_first_leaves(tmp_path: Path) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, 1 << 20), Decoder()
        decoder.may_go_on.clear()
        first = asyncio.create_task(cache.get_or_decode(key("a"), decoder))
        await decoder.began.wait()
        second = asyncio.create_task(cache.get_or_decode(key("a"), decoder))
        await joined(cache, 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        decoder.may_go_on.set()
        with await second as lease:
            assert np.load(lease.path)[0, 0, 0, 0] == 1
        assert (decoder.num_calls, decoder.num_cancelled) == (1, 0)
        await settle(cache)

    asyncio.run(scenario())


def test_the_decode_stops_when_the_last_leaves_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, 1 << 20), Decoder()
        decoder.may_go_on.clear()
        tasks = [asyncio.create_task(cache.get_or_decode(key("a"), decoder)) for _ in range(3)]
        await decoder.began.wait()
        await joined(cache, 2)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        decoder.may_go_on.set()
        with await cache.get_or_decode(key("a"), decoder):  # a new request is not caught up in the old one's end
            assert (decoder.num_calls, decoder.num_cancelled) == (2, 1)
        await settle(cache)
        assert [name for name in names(tmp_path) if name.endswith(".part")] == []

    asyncio.run(scenario())


def test_cancelling_at_any_moment_leaks_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, 1 << 20), Decoder()
        await cache.start()
        before = num_open_files()
        for num_steps in range(12):
            task = asyncio.create_task(cache.get_or_decode(key(f"c{num_steps}"), decoder))
            for _ in range(num_steps):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await task).release()
        await settle(cache)
        assert [name for name in names(tmp_path) if name.endswith(".part")] == []
        assert num_open_files() == before

    asyncio.run(scenario())


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0  # noqa: PTH208 - not a folder of files


def test_a_failed_decode_fails_everyone_and_is_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, 1 << 20), Decoder()
        decoder.failure = DecodeFailure("decode_failed")
        decoder.may_go_on.clear()
        tasks = [asyncio.create_task(cache.get_or_decode(key("a"), decoder)) for _ in range(3)]
        await joined(cache, 2)
        decoder.may_go_on.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [DecodeFailure] * 3
        assert names(tmp_path) == []
        decoder.failure = None
        with await cache.get_or_decode(key("a"), decoder):
            assert decoder.num_calls == 2
        await settle(cache)

    asyncio.run(scenario())


async def fill(cache: FrameCache, decoder: Decoder, *entry_names: str) -> None:
    for order, name in enumerate(entry_names):
        with await cache.get_or_decode(key(name), decoder) as lease:
            os.utime(lease.path, (order, order))
    await settle(cache)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, 3 * ENTRY_BYTES), Decoder()
        await fill(cache, decoder, "a", "b", "c")
        with await cache.get_or_decode(key("a"), decoder):
            pass  # used again: now "b" is the oldest
        with await cache.get_or_decode(key("d"), decoder):
            pass
        await settle(cache)
        assert entries(tmp_path) == {key("a"), key("c"), key("d")}
        assert cache.stats().num_evictions == 1
        assert cache.stats().disk_bytes == 3 * ENTRY_BYTES

    asyncio.run(scenario())


def test_frames_in_use_are_never_evicted(tmp_path: Path) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, ENTRY_BYTES), Decoder()
        held = [await cache.get_or_decode(key(name), decoder) for name in "abc"]
        await settle(cache)
        assert len(entries(tmp_path)) == 3
        other = FrameCache(tmp_path, 0)  # another process with the same folder
        await other.start()
        assert len(entries(tmp_path)) == 3
        for lease in held:
            assert np.load(lease.path).shape == SHAPE
            lease.release()
        await settle(cache)
        assert len(entries(tmp_path)) == 1
        await other.start()
        assert names(tmp_path) == []

    asyncio.run(scenario())


def test_frames_released_while_a_trim_passes_over_them_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        cache, other, decoder = FrameCache(tmp_path, ENTRY_BYTES), FrameCache(tmp_path, 1 << 20), Decoder()
        mine = await cache.get_or_decode(key("a"), decoder)
        theirs = await other.get_or_decode(key("b"), decoder)
        await settle(cache)
        loop = asyncio.get_running_loop()
        original = frame_folder.is_used

        def is_used(path: Path) -> bool:
            answer = original(path)
            if path.stem == key("a") and answer:
                asyncio.run_coroutine_threadsafe(release(mine), loop).result(60)
            return answer

        monkeypatch.setattr(frame_folder, "is_used", is_used)
        cache._trim_soon()
        await settle(cache)
        assert entries(tmp_path) == {key("b")}
        theirs.release()
        await settle(other)

    asyncio.run(scenario())


async def release(lease: FrameLease) -> None:
    lease.release()


def test_without_any_space_frames_live_as_long_as_they_are_used(tmp_path: Path) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, 0), Decoder()
        lease = await cache.get_or_decode(key("a"), decoder)
        await settle(cache)
        assert lease.path.exists()
        lease.release()
        await settle(cache)
        assert names(tmp_path) == []

    asyncio.run(scenario())


def test_entries_survive_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        decoder = Decoder()
        await fill(FrameCache(tmp_path, 1 << 20), decoder, "a", "b")
        reborn = FrameCache(tmp_path, 1 << 20)
        await reborn.start()
        assert reborn.stats().disk_bytes == 2 * ENTRY_BYTES
        with await reborn.get_or_decode(key("a"), decoder) as lease:
            assert (lease.is_hit, lease.info, decoder.num_calls) == (True, info(), 2)
        await settle(reborn)

    asyncio.run(scenario())


def damage_truncated(frames: Path) -> None:
    os.truncate(frames, 200)


def damage_other_content(frames: Path) -> None:
    frames.write_bytes(b"x" * frames.stat().st_size)


def damage_no_sidecar(frames: Path) -> None:
    frames.with_suffix(".json").unlink()


def damage_sidecar_text(frames: Path) -> None:
    frames.with_suffix(".json").write_text("{")


def damage_sidecar_fields(frames: Path) -> None:
    frames.with_suffix(".json").write_text(json.dumps({"kind": "video"}))


def damage_sidecar_list(frames: Path) -> None:
    frames.with_suffix(".json").write_text("[]")


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncated,
        damage_other_content,
        damage_no_sidecar,
        damage_sidecar_text,
        damage_sidecar_fields,
        damage_sidecar_list,
    ],
)
def test_a_damaged_entry_is_decoded_again(tmp_path: Path, damage: object) -> None:
    async def scenario() -> None:
        decoder = Decoder()
        await fill(FrameCache(tmp_path, 1 << 20), decoder, "a")
        assert callable(damage)
        damage(tmp_path / f"{key('a')}.npy")
        cache = FrameCache(tmp_path, 1 << 20)
        with await cache.get_or_decode(key("a"), decoder) as lease:
            assert (lease.is_hit, decoder.num_calls) == (False, 2)
            assert np.load(lease.path)[0, 0, 0, 0] == 2
        await settle(cache)

    asyncio.run(scenario())


LEAVE_A_PART_AND_DIE = """
import asyncio, os, sys
from pathlib import Path
from tru_vlm.video.frame_cache import FrameCache
async def decode(path, max_bytes):
    path.write_bytes(b"half")
    os._exit(1)
asyncio.run(FrameCache(Path(sys.argv[1]), 1 << 20).get_or_decode("0" * 64, decode))
"""


def test_a_start_sweeps_the_parts_of_dead_processes_only(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVE_A_PART_AND_DIE, str(tmp_path)], check=False)
    assert len(names(tmp_path)) == 1

    async def scenario() -> None:
        living, decoder = FrameCache(tmp_path, 1 << 20), Decoder()
        decoder.may_go_on.clear()
        task = asyncio.create_task(living.get_or_decode(key("a"), decoder))
        await decoder.began.wait()
        await FrameCache(tmp_path, 1 << 20).start()
        assert [name[:64] for name in names(tmp_path)] == [key("a")]
        decoder.may_go_on.set()
        (await task).release()
        await settle(living)

    asyncio.run(scenario())


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "/"])
def test_keys_cannot_name_other_files(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ValueError, match="hex digits"):
        asyncio.run(FrameCache(tmp_path, 0).get(bad))


def test_closing_ends_decodes_in_flight(tmp_path: Path) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, 1 << 20), Decoder()
        decoder.may_go_on.clear()
        task: asyncio.Task[FrameLease] = asyncio.create_task(cache.get_or_decode(key("a"), decoder))
        await decoder.began.wait()
        await cache.close()
        with pytest.raises(Exception, match="shutting down"):
            await task
        assert names(tmp_path) == []

    asyncio.run(scenario())
