"""The library: one file for one content, a quota with numbers, expiry, and rows that agree with files after any end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from library_shelf import DAY, PROBE, digest, open_shelf
from soak.faults import Target, fill_the_disk, small_disk

from tru_vlm.errors import InsufficientStorageError, NotFoundError, UnavailableError

ROOT = Path(__file__).parents[2]


def test_the_same_content_is_one_file_and_one_video(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path) as shelf:
            first = await shelf.put(b"one", filename="../../etc/first.mp4")
            shelf.now[0] += 10
            assert await shelf.put(b"one", filename="second.mp4") == first == digest(b"one")
            (video,) = await shelf.store.page("public", limit=10)
            assert (video.filename, video.content.media_type) == ("first.mp4", "video/mp4")
            assert video.used_at == video.created_at + 10
            assert shelf.files() == {first: b"one"}
            assert shelf.spool.used_bytes == 0

    asyncio.run(scenario())


def test_many_at_once_put_the_same_content(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path) as shelf:
            files = [await shelf.spooled(b"same") for _ in range(16)]
            kept = await asyncio.gather(*(shelf.store.put(file, PROBE, filename="a", owner="public") for file in files))
            assert sorted(is_new for _, is_new in kept) == [False] * 15 + [True]
            assert len({video.number for video, _ in kept}) == 1
            assert list(shelf.files()) == [digest(b"same")]

    asyncio.run(scenario())


def test_owners_see_their_own_and_share_the_bytes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path, max_bytes=4) as shelf:
            it = await shelf.put(b"four", owner="ada")
            with pytest.raises(NotFoundError):
                await shelf.store.get(it, "bob")
            assert await shelf.put(b"four", owner="bob") == it  # the quota has no room for it twice
            await shelf.store.delete(it, "ada")
            with pytest.raises(NotFoundError) as caught:
                await shelf.store.borrow(it, "ada", param="video_id")
            assert (caught.value.param, caught.value.code) == ("video_id", "video_not_found")
            assert (await shelf.store.get(it, "bob")).owner == "bob"
            assert shelf.files() == {it: b"four"}
            await shelf.store.delete(it, "bob")
            assert shelf.files() == {}
            assert (await shelf.store.stats()).used_bytes == 0

    asyncio.run(scenario())


def test_the_list_has_pages_that_new_and_deleted_videos_do_not_shift(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path) as shelf:
            ids = [await shelf.put(bytes([number])) for number in range(7)]
            first = await shelf.store.page("public", limit=3)
            await shelf.store.delete(first[-1].content.sha256, "public")
            await shelf.put(b"new")
            second = await shelf.store.page("public", below=first[-1].number, limit=10)
            assert [video.content.sha256 for video in first + second] == ids[::-1]

    asyncio.run(scenario())


def test_a_full_library_says_the_numbers_and_keeps_what_it_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path, max_bytes=10) as shelf:
            it = await shelf.put(b"123456")
            with pytest.raises(InsufficientStorageError, match="5 bytes; 6 of the 10 bytes") as caught:
                await shelf.put(b"abcde")
            assert (caught.value.status, caught.value.param) == (507, "video")
            assert shelf.files() == {it: b"123456"}
            assert await shelf.put(b"123456") == it  # what is there needs no room
            await shelf.put(b"abcd")

    asyncio.run(scenario())


def test_what_has_expired_makes_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path, max_bytes=10) as shelf:
            await shelf.put(b"123456")
            shelf.now[0] += DAY + 1
            it = await shelf.put(b"abcde")
            assert shelf.files() == {it: b"abcde"}

    asyncio.run(scenario())


def test_use_begins_a_videos_life_anew_and_the_others_expire(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path) as shelf:
            used, unused = await shelf.put(b"used"), await shelf.put(b"unused")
            shelf.now[0] += DAY / 2
            for it, is_use in ((used, True), (unused, False)):  # to look at a picture of it is no use
                _, file = await shelf.store.borrow(it, "public", is_use=is_use)
                await shelf.spool.remove(file)
            shelf.now[0] += DAY / 2
            assert await shelf.store.expire() == 0  # at the last moment it is still there
            shelf.now[0] += 1
            assert await shelf.store.expire() == 1
            assert list(shelf.files()) == [used]
            with pytest.raises(NotFoundError):
                await shelf.store.get(unused, "public")
            video = await shelf.store.get(used, "public")
            assert shelf.store.expires_at(video) == 1_000_000 + 1.5 * DAY

    asyncio.run(scenario())


def test_without_a_lifetime_nothing_expires(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path, ttl_seconds=0) as shelf:
            it = await shelf.put(b"one")
            shelf.now[0] += 10_000 * DAY
            assert await shelf.store.expire() == 0
            assert shelf.store.expires_at(await shelf.store.get(it, "public")) is None

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["deleted", "expired"])
def test_what_is_borrowed_stays_whole_when_the_video_goes(tmp_path: Path, end: str) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path) as shelf:
            it = await shelf.put(b"in use")
            _, file = await shelf.store.borrow(it, "public")
            assert file.path.samefile(tmp_path / "videos" / it)  # no second copy
            assert (file.sha256, file.size_bytes, shelf.spool.used_bytes) == (it, 6, 0)
            if end == "deleted":
                await shelf.store.delete(it, "public")
            else:
                shelf.now[0] += DAY + 1
                await shelf.store.expire()
            assert shelf.files() == {}
            assert file.path.read_bytes() == b"in use"
            await shelf.spool.remove(file)
            assert not file.path.exists()
            assert shelf.spool.used_bytes == 0

    asyncio.run(scenario())


def test_a_start_mends_rows_without_files_and_files_without_rows(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path) as shelf:
            whole, lost, cut = [await shelf.put(content) for content in (b"whole", b"lost", b"cut")]
            (tmp_path / "videos" / lost).unlink()
            (tmp_path / "videos" / cut).write_bytes(b"c")
            (tmp_path / "videos" / digest(b"orphan")).write_bytes(b"orphan")
        async with open_shelf(tmp_path) as shelf:
            assert shelf.files() == {whole: b"whole"}
            assert [video.content.sha256 for video in await shelf.store.page("public", limit=9)] == [whole]
            assert await shelf.put(b"lost") == lost
            assert shelf.files() == {whole: b"whole", lost: b"lost"}

    asyncio.run(scenario())


CHURN = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from library_shelf import open_shelf

async def main():
    async with open_shelf(Path(sys.argv[2])) as shelf:
        for number in range(10**6):
            await shelf.put(b"kept %d" % number)
            it = await shelf.put(b"gone %d" % number)
            await shelf.store.delete(it, "public")
            print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("num_lines", [3, 5, 8])
def test_a_killed_process_leaves_what_it_confirmed_and_nothing_else(tmp_path: Path, num_lines: int) -> None:
    command = [sys.executable, "-c", CHURN, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(num_lines):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        confirmed = num_lines + process.stdout.read().count("\n")

    async def scenario() -> None:
        async with open_shelf(tmp_path) as shelf:
            rows = {video.content.sha256 for video in await shelf.store.page("public", limit=10**6)}
            assert rows == set(shelf.files())
            assert all(digest(content) == name for name, content in shelf.files().items())
            kept = {digest(b"kept %d" % number) for number in range(confirmed)}
            assert kept <= rows
            assert len(rows - kept) <= 2  # of the one round that was under way
            assert not rows & {digest(b"gone %d" % number) for number in range(confirmed)}

    asyncio.run(scenario())


def test_a_full_disk_does_not_keep_a_video(tmp_path: Path) -> None:
    """Removing it makes room, but the database needs room first."""

    async def run(folder: Path) -> None:
        async with open_shelf(folder, max_bytes=4 << 20) as shelf:
            videos = [await shelf.put(bytes([number]) * (1 << 20)) for number in range(2)]
            fill_the_disk(target)
            with pytest.raises(UnavailableError, match="disk is full"):
                await shelf.store.rename(videos[0], "public", "b.mp4")
            for video in videos:
                await shelf.store.delete(video, "public")
            assert shelf.files() == {}
            assert await shelf.put(b"new" * 1000) == digest(b"new" * 1000), "there is room"
            assert (folder / "library.sqlite3-reserve").stat().st_size == 1 << 20, "and some is set aside again"

    target = Target("", 0, tmp_path, is_small_disk=True)
    with small_disk(tmp_path, 8 << 20) as is_small_disk:
        if not is_small_disk:
            pytest.skip("only root may mount a small disk")
        asyncio.run(run(tmp_path / "storage"))


def test_a_use_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with open_shelf(tmp_path) as shelf:

            async def use() -> None:
                shelf.now[0] += DAY / 4
                _, file = await shelf.store.borrow(it, "public")
                assert file.path.read_bytes() == b"one"
                await shelf.spool.remove(file)
                told.append(len(caplog.records))

            async def set_read_only(switch: str) -> None:
                connection = shelf.database._connection
                run = asyncio.get_running_loop().run_in_executor
                await run(
                    shelf.database._writer, lambda: connection().execute(f"PRAGMA query_only = {switch}") and None
                )

            told: list[int] = []
            it = await shelf.put(b"one")
            await use()
            await set_read_only("ON")
            await use()
            await use()
            with pytest.raises(UnavailableError, match="its disk is read-only"):
                await shelf.put(b"two")
            await set_read_only("OFF")
            await use()
            assert (await shelf.store.get(it, "public")).used_at == shelf.now[0]
            await set_read_only("ON")
            await use()
            assert told == [0, 1, 1, 1, 2]

    asyncio.run(scenario())
