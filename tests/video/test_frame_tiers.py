"""The cache's tier in memory: what lands there, what moves to the disk, that its bound holds and nothing is left."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from test_frame_cache import ENTRY_BYTES, SHAPE, Decoder, entries, info, key, names, num_open_files

from tru_vlm.video import frame_folder
from tru_vlm.video.failures import DecodeFailure
from tru_vlm.video.frame_cache import FrameCache, FrameLease, shared_memory_directory
from tru_vlm.video.frame_folder import MAX_HEADER_BYTES
from tru_vlm.video.media import SampledInfo

NUM_BYTES = int(np.prod(SHAPE))
ROOM_BYTES = NUM_BYTES + MAX_HEADER_BYTES
"""What one entry needs before it is decoded: the header's size is not known yet."""
LARGE = 1 << 20


@dataclass
class Tiers:
    """A cache with both tiers, and its folders."""

    root: Path

    @property
    def memory(self) -> Path:
        return self.root / "memory"

    @property
    def disk(self) -> Path:
        return self.root / "disk"

    def cache(self, memory_bytes: int = LARGE, disk_bytes: int = LARGE) -> FrameCache:
        return FrameCache(self.disk, disk_bytes, memory_directory=self.memory, memory_bytes=memory_bytes)

    def places(self, *entry_names: str) -> str:
        """Of each entry: (m)emory, (d)isk, (b)oth or (-)."""
        where = {(True, False): "m", (False, True): "d", (True, True): "b", (False, False): "-"}
        found = [key(name) for name in entry_names]
        return "".join(where[name in entries(self.memory), name in entries(self.disk)] for name in found)


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    return Tiers(tmp_path)


async def get(cache: FrameCache, name: str, decoder: Decoder) -> FrameLease:
    lease = await cache.get_or_decode(key(name), decoder, size=lambda: NUM_BYTES)
    assert np.load(lease.path).shape == SHAPE
    return lease


async def fill(cache: FrameCache, decoder: Decoder, entry_names: str) -> None:
    """Decode entries, each older than the one before it in the alphabet."""
    for name in entry_names:
        with await get(cache, name, decoder) as lease:
            os.utime(lease.path, (ord(name), ord(name)))
    await quiet(cache)


async def quiet(cache: FrameCache) -> None:
    """Let evictions under way finish."""
    while cache._pending:
        await asyncio.wait(cache._pending)


def test_frames_land_in_memory_and_hits_are_counted_by_tier(tiers: Tiers) -> None:
    async def scenario() -> None:
        cache, decoder = tiers.cache(), Decoder()
        await fill(cache, decoder, "aab")
        assert tiers.places("a", "b") == "mm"
        with await cache.get_or_decode(key("c"), decoder) as lease:  # of unknown size
            assert lease.path.parent == tiers.disk
        (await get(cache, "c", decoder)).release()
        stats = cache.stats()
        assert (stats.num_memory_hits, stats.num_disk_hits, stats.num_misses) == (1, 1, 3)
        await quiet(cache)
        stats = cache.stats()
        assert (stats.memory_bytes, stats.disk_bytes) == (2 * ENTRY_BYTES, ENTRY_BYTES)
        assert (stats.memory_state, stats.memory_limit_bytes, stats.disk_limit_bytes) == ("on", LARGE, LARGE)
        await cache.close()

    asyncio.run(scenario())


def test_the_least_recently_used_move_to_the_disk_with_their_age(tiers: Tiers) -> None:
    async def scenario() -> None:
        cache, decoder = tiers.cache(memory_bytes=2 * ENTRY_BYTES + ROOM_BYTES), Decoder()
        await fill(cache, decoder, "abc")
        assert tiers.places("a", "b", "c") == "mmm"
        (await get(cache, "a", decoder)).release()  # used again: now "b" is the oldest
        await fill(cache, decoder, "d")
        assert tiers.places("a", "b", "c", "d") == "mdmm"
        assert (tiers.disk / f"{key('b')}.npy").stat().st_mtime == ord("b")
        with await get(cache, "b", decoder) as lease:
            assert (lease.is_hit, lease.info, lease.path.parent) == (True, info(), tiers.disk)
        stats = cache.stats()
        assert (decoder.num_calls, stats.num_demotions, stats.num_evictions) == (4, 1, 0)
        await cache.close()

    asyncio.run(scenario())


def test_both_tiers_are_bounded(tiers: Tiers) -> None:
    async def scenario() -> None:
        cache, decoder = tiers.cache(ENTRY_BYTES + ROOM_BYTES, 2 * ENTRY_BYTES), Decoder()
        await fill(cache, decoder, "abcdef")
        assert tiers.places(*"abcdef") == "--ddmm"
        stats = cache.stats()
        assert (stats.num_demotions, stats.num_evictions) == (4, 2)
        await cache.close()

    asyncio.run(scenario())


def test_memory_alone(tiers: Tiers) -> None:
    async def scenario() -> None:
        cache, decoder = tiers.cache(ENTRY_BYTES + ROOM_BYTES, 0), Decoder()
        await fill(cache, decoder, "abc")
        assert tiers.places(*"abc") == "-mm"
        assert (cache.stats().num_demotions, cache.stats().num_evictions) == (0, 1)
        await cache.close()
        assert names(tiers.root) == ["disk"]

    asyncio.run(scenario())


def test_what_is_in_use_stays_and_new_frames_go_to_the_disk(tiers: Tiers) -> None:
    async def scenario() -> None:
        cache, decoder = tiers.cache(ENTRY_BYTES + ROOM_BYTES), Decoder()
        held = [await get(cache, name, decoder) for name in "abc"]
        assert tiers.places(*"abc") == "mmd"
        assert cache.stats().num_demotions == 0, "what cannot be moved is not copied either"
        for lease in held:
            assert np.load(lease.path).shape == SHAPE
            lease.release()
        await fill(cache, decoder, "d")
        assert tiers.places(*"abcd").count("m") == 2
        await cache.close()

    asyncio.run(scenario())


def test_frames_that_are_being_decoded_count(tiers: Tiers) -> None:
    async def scenario() -> None:
        cache, decoder = tiers.cache(ENTRY_BYTES + ROOM_BYTES), Decoder()
        decoder.may_go_on.clear()
        tasks = [asyncio.create_task(get(cache, name, decoder)) for name in "ab"]
        while decoder.num_calls < 2:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        assert sorted(len(names(folder)) for folder in (tiers.memory, tiers.disk)) == [1, 1]
        decoder.may_go_on.set()
        for task in tasks:
            (await task).release()
        await fill(cache, decoder, "c")  # a decode's room is given back at its end
        assert tiers.places("c") == "m"
        decoder.may_go_on.clear()
        cancelled = asyncio.create_task(get(cache, "d", decoder))
        while decoder.num_calls < 4:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await quiet(cache)
        assert cache._reserved_bytes == 0
        await cache.close()

    asyncio.run(scenario())


class Growing(Decoder):
    """A decoder that finds more frames than the header promised."""

    def __init__(self) -> None:
        super().__init__()
        self.bounds: list[int | None] = []

    async def __call__(self, path: Path, max_bytes: int | None) -> SampledInfo:
        self.bounds.append(max_bytes)
        if max_bytes is not None:
            raise DecodeFailure("storage_full")
        return await super().__call__(path, max_bytes)


def test_more_frames_than_promised_go_to_the_disk(tiers: Tiers) -> None:
    async def scenario() -> None:
        cache, decoder = tiers.cache(), Growing()
        await fill(cache, decoder, "a")
        assert (decoder.bounds, tiers.places("a")) == ([NUM_BYTES, None], "d")
        assert [name for name in names(tiers.memory) if name.endswith(".part")] == []
        assert cache._reserved_bytes == 0
        await cache.close()

    asyncio.run(scenario())


def test_another_failure_is_not_tried_again(tiers: Tiers) -> None:
    async def scenario() -> None:
        cache, decoder = tiers.cache(), Decoder()
        decoder.failure = DecodeFailure("decode_failed")
        with pytest.raises(DecodeFailure):
            await get(cache, "a", decoder)
        assert decoder.num_calls == 1
        await cache.close()

    asyncio.run(scenario())


def test_frames_on_their_way_to_the_disk_are_found(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is under way: the entry can be leased; then it stays where it is, and nothing is decoded again."""
    found = []

    async def scenario() -> None:
        cache, decoder = tiers.cache(2 * ENTRY_BYTES + ROOM_BYTES), Decoder()
        await fill(cache, decoder, "abc")
        loop = asyncio.get_running_loop()
        original = shutil.copyfile

        def copy(source: Path, target: Path) -> None:
            if source.stem == key("a"):
                found.append(asyncio.run_coroutine_threadsafe(get(cache, "a", decoder), loop).result(60))
            original(source, target)

        monkeypatch.setattr(frame_folder.shutil, "copyfile", copy)
        await fill(cache, decoder, "d")
        monkeypatch.undo()
        (lease,) = found
        assert (lease.is_hit, lease.path.parent, decoder.num_calls) == (True, tiers.memory, 4)
        assert tiers.places(*"abcd") == "bdmm", "the next one went in its place"
        lease.release()
        await cache.close()
        assert tiers.places(*"abcd") == "dddd"

    asyncio.run(scenario())


def test_a_disk_that_is_full_costs_the_entry_and_nothing_else(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    async def scenario() -> None:
        cache, decoder = tiers.cache(ENTRY_BYTES + ROOM_BYTES), Decoder()
        await fill(cache, decoder, "ab")
        before = num_open_files()
        monkeypatch.setattr(frame_folder.shutil, "copyfile", full)
        await fill(cache, decoder, "c")
        assert (tiers.places(*"abc"), names(tiers.disk)) == ("-mm", [])
        assert num_open_files() == before
        await cache.close()

    asyncio.run(scenario())


def test_a_normal_end_leaves_nothing_in_memory_and_loses_nothing(tiers: Tiers) -> None:
    async def scenario() -> None:
        cache, decoder = tiers.cache(), Decoder()
        await fill(cache, decoder, "abc")
        await cache.close()
        assert names(tiers.root) == ["disk"]
        reborn = tiers.cache()
        with await get(reborn, "a", decoder) as lease:
            assert (lease.is_hit, lease.path.parent, decoder.num_calls) == (True, tiers.disk, 3)
        await reborn.close()

    asyncio.run(scenario())


KILLED = """
import asyncio, os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from test_frame_tiers import Decoder, Tiers, fill, get
async def main():
    cache, decoder = Tiers(Path(sys.argv[1])).cache(), Decoder()
    await fill(cache, decoder, "ab")
    decoder.may_go_on.clear()
    asyncio.create_task(get(cache, "c", decoder))
    while decoder.num_calls < 3:
        await asyncio.sleep(0)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


@pytest.mark.parametrize("memory_bytes", [LARGE, ROOM_BYTES, 0])
def test_what_a_killed_server_left_in_memory_is_kept_within_the_bound(tiers: Tiers, memory_bytes: int) -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parents[1]), str(here.parent), str(here)])
    command = [sys.executable, "-c", KILLED, str(tiers.root), str(here)]
    subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path})
    assert len(names(tiers.memory)) == 5, "two entries and a part"

    async def scenario() -> None:
        cache, decoder = tiers.cache(memory_bytes), Decoder()
        await cache.start()
        assert [name for name in names(tiers.root) if name == "memory"] == (["memory"] if memory_bytes else [])
        assert tiers.places(*"abc") == {LARGE: "mm-", ROOM_BYTES: "mm-", 0: "dd-"}[memory_bytes]
        if not memory_bytes:
            assert cache.stats().memory_state == "off: its size is set to 0"
        with await get(cache, "a", decoder):
            assert decoder.num_calls == 0
        await cache.close()
        assert names(tiers.root) == ["disk"]
        assert tiers.places(*"ab") == "dd"

    asyncio.run(scenario())


def open_to_others(memory: Path) -> None:
    memory.mkdir()
    memory.chmod(0o755)


def a_link(memory: Path) -> None:
    (memory.parent / "elsewhere").mkdir(mode=0o700)
    memory.symlink_to(memory.parent / "elsewhere")


def a_file(memory: Path) -> None:
    memory.touch(mode=0o700)


@pytest.mark.parametrize("prepare", [open_to_others, a_link, a_file])
def test_a_folder_that_is_not_ours_alone_is_not_used(tiers: Tiers, prepare: object) -> None:
    assert callable(prepare)
    prepare(tiers.memory)

    async def scenario() -> None:
        cache, decoder = tiers.cache(), Decoder()
        with await get(cache, "a", decoder) as lease:
            assert lease.path.parent == tiers.disk
        state = cache.stats().memory_state
        assert state.startswith("off: ")
        assert str(tiers.memory) in state
        await cache.close()

    asyncio.run(scenario())


def test_a_folder_taken_away_and_made_by_somebody_else_is_not_used(tiers: Tiers) -> None:
    async def scenario() -> None:
        cache, decoder = tiers.cache(), Decoder()
        await fill(cache, decoder, "a")
        shutil.rmtree(tiers.memory)
        await fill(cache, decoder, "b")
        assert tiers.places("b") == "m", "taken away only: it is made again"
        shutil.rmtree(tiers.memory)
        open_to_others(tiers.memory)
        await fill(cache, decoder, "c")
        assert (tiers.places("c"), names(tiers.memory)) == ("d", [])
        await cache.close()

    asyncio.run(scenario())


def test_two_servers_share_both_folders(tiers: Tiers) -> None:
    async def scenario() -> None:
        one, other, decoder = tiers.cache(), tiers.cache(), Decoder()
        await other.start()
        await fill(one, decoder, "a")
        lease = await get(other, "a", decoder)
        assert (lease.is_hit, decoder.num_calls) == (True, 1)
        await one.close()
        assert tiers.places("a") == "m", "the other one uses it where it is"
        assert np.load(lease.path).shape == SHAPE
        lease.release()
        await other.close()
        assert names(tiers.root) == ["disk"]
        await fill(other, decoder, "b")  # the folder that the last one removed is made again
        assert tiers.places(*"ab") == "dm"
        await other.close()

    asyncio.run(scenario())


def test_only_what_nobody_claims_is_removed_from_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of other storage folders: a living server's, a killed one's, and one that is not ours to open."""
    monkeypatch.setattr("tru_vlm.video.frame_cache.SHARED_MEMORY", tmp_path)

    def cache(name: str) -> FrameCache:
        disk = tmp_path / name
        return FrameCache(disk, LARGE, memory_directory=shared_memory_directory(disk), memory_bytes=LARGE)

    async def scenario() -> None:
        living, decoder = cache("living"), Decoder()
        await fill(living, decoder, "a")
        folder = shared_memory_directory(tmp_path / "living")
        killed = shared_memory_directory(tmp_path / "killed")
        assert folder is not None
        assert killed is not None
        killed.mkdir(mode=0o700)
        (killed / f"{key('b')}.npy").write_bytes(b"x" * 1000)
        linked = killed.with_name(f"{killed.name}-link")
        linked.symlink_to(tmp_path / "living")
        starting = cache("starting")
        await starting.start()
        assert (killed.exists(), linked.is_symlink(), entries(folder)) == (False, True, {key("a")})
        shutil.rmtree(folder)
        await fill(living, decoder, "c")  # the folder that it makes again is claimed again
        await starting.start()
        assert entries(folder) == {key("c")}
        await living.close()
        await starting.close()
        linked.unlink()
        assert [name for name in names(tmp_path) if name.startswith("tru-vlm-")] == []

    before = num_open_files()
    asyncio.run(scenario())
    assert num_open_files() == before


class DiskUsage(NamedTuple):
    total: int
    used: int
    free: int


def test_only_half_of_what_is_free_is_taken(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small shared memory, as in many containers: the usual rule of age holds in the half that is ours."""
    size = 4 * ENTRY_BYTES + 2 * ROOM_BYTES

    def usage(directory: Path) -> DiskUsage:
        used = sum(path.stat().st_size for path in directory.glob("*.npy"))
        return DiskUsage(size, used, size - used)

    async def scenario() -> None:
        monkeypatch.setattr(frame_folder.shutil, "disk_usage", usage)
        cache, decoder = tiers.cache(), Decoder()
        await fill(cache, decoder, "abcd")
        assert tiers.places(*"abcd") == "dmmm"
        assert cache.stats().memory_limit_bytes == size // 2
        await cache.close()

    asyncio.run(scenario())


def test_frames_leave_disk_space_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, LARGE, min_free_bytes=1000), Decoder()
        for name in "abc":
            with await cache.get_or_decode(key(name), decoder) as lease:
                os.utime(lease.path, (ord(name), ord(name)))
            await quiet(cache)
        free = 1000 - ENTRY_BYTES - 1  # one byte more than two entries' worth is missing, with what one gives back
        monkeypatch.setattr(frame_folder.shutil, "disk_usage", lambda _: DiskUsage(0, 0, free))
        await cache.start()
        assert entries(tmp_path) == {key("c")}
        assert cache.stats().disk_limit_bytes == 3 * ENTRY_BYTES + free - 1000
        await cache.close()

    asyncio.run(scenario())


def test_without_shared_memory_there_is_one_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tru_vlm.video.frame_cache.SHARED_MEMORY", tmp_path / "nowhere")
    assert shared_memory_directory(tmp_path) is None

    async def scenario() -> None:
        cache, decoder = FrameCache(tmp_path, LARGE, memory_directory=None, memory_bytes=LARGE), Decoder()
        with await get(cache, "a", decoder) as lease:
            assert lease.path.parent == tmp_path
        assert cache.stats().memory_state.startswith("off: there is no ")
        await cache.close()

    asyncio.run(scenario())


def test_each_storage_folder_has_its_own_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tru_vlm.video.frame_cache.SHARED_MEMORY", tmp_path)
    one, same, other = (shared_memory_directory(tmp_path / name) for name in ("a", "a", "b"))
    assert one == same != other
    assert one is not None
    assert one.parent == tmp_path


def size_of_entries(folder: Path) -> int:
    """Bytes of all entries; some may be on their way out."""
    total = 0
    for path in folder.glob("*.npy"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("seed", range(3))
def test_at_any_time_the_bounds_hold_and_every_lease_can_be_read(tiers: Tiers, seed: int) -> None:
    """Requests come and go at random, some of them hold on to their frames."""
    chance = random.Random(seed)
    bound = 3 * ENTRY_BYTES + ROOM_BYTES

    async def scenario() -> None:
        cache = tiers.cache(memory_bytes=bound, disk_bytes=3 * ENTRY_BYTES)
        made = {name: Decoder() for name in "abcdefghij"}
        held: list[tuple[str, FrameLease]] = []
        for _ in range(100):
            wanted = chance.choices(list(made), k=3)
            leases = await asyncio.gather(*(get(cache, name, made[name]) for name in wanted))
            held += zip(wanted, leases, strict=True)
            assert size_of_entries(tiers.memory) <= bound
            chance.shuffle(held)
            for name, lease in held:
                assert np.load(lease.path)[0, 0, 0, 0] <= made[name].num_calls % 256
            while len(held) > chance.randrange(6):
                held.pop()[1].release()
        for _, lease in held:
            lease.release()
        await quiet(cache)
        assert len(entries(tiers.disk)) <= 3
        stats = cache.stats()
        assert stats.num_leases == cache._reserved_bytes == 0
        assert min(stats.num_memory_hits, stats.num_disk_hits, stats.num_demotions, stats.num_evictions) > 0
        await cache.close()
        assert names(tiers.root) == ["disk"]

    asyncio.run(scenario())
