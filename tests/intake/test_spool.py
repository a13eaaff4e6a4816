"""Files arrive whole or not at all, and their space is accounted for."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from cancelling import at_every_wait, until

from tru_vlm.errors import PayloadTooLargeError, UnavailableError
from tru_vlm.intake.spool import FLUSH_BYTES, Spool, SpooledFile, display_name

GENEROUS = 1 << 40


def make_spool(directory: Path, *, max_bytes: int = GENEROUS, free_space_floor: int = 0) -> Spool:
    return Spool(directory / "spool", max_bytes, free_space_floor)


def spooled_paths(directory: Path) -> list[Path]:
    return [path for path in (directory / "spool").rglob("*") if path.is_file() and path.name != ".lock"]


async def chunks_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def test_a_file_is_written_hashed_and_removed(tmp_path: Path) -> None:
    content = os.urandom(3 * FLUSH_BYTES + 17)
    pieces = [content[i : i + 65536] for i in range(0, len(content), 65536)]

    async def scenario() -> None:
        spool = make_spool(tmp_path)
        file = await spool.write(chunks_of(*pieces), filename="../../etc/clip.mp4", max_bytes=len(content))
        assert file.path.read_bytes() == content
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert (file.size_bytes, file.filename) == (len(content), "clip.mp4")
        assert "clip" not in str(file.path), "names are made by the server"
        assert spool.used_bytes == len(content)
        await spool.remove(file)
        await spool.remove(file)
        assert spool.used_bytes == 0
        assert spooled_paths(tmp_path) == []

    asyncio.run(scenario())


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = await make_spool(tmp_path).write(chunks_of(), filename=None, max_bytes=10)
        assert (file.size_bytes, file.path.read_bytes()) == (0, b"")

    asyncio.run(scenario())


def test_the_limit_stops_the_sender_while_it_sends(tmp_path: Path) -> None:
    taken = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            taken.append(1)
            yield b"x" * 1000

    async def scenario() -> None:
        spool = make_spool(tmp_path)
        with pytest.raises(PayloadTooLargeError, match="at most 4500 bytes") as caught:
            await spool.write(endless(), filename=None, max_bytes=4500, param="video")
        assert caught.value.param == "video"
        assert len(taken) == 5
        assert (spool.used_bytes, spooled_paths(tmp_path)) == (0, [])

    asyncio.run(scenario())


def test_a_failing_sender_leaves_nothing(tmp_path: Path) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"x" * (2 * FLUSH_BYTES)
        assert spooled_paths(tmp_path) != []
        raise ConnectionResetError

    async def scenario() -> None:
        spool = make_spool(tmp_path)
        with pytest.raises(ConnectionResetError):
            await spool.write(breaking(), filename=None, max_bytes=GENEROUS)
        assert (spool.used_bytes, spooled_paths(tmp_path)) == (0, [])

    asyncio.run(scenario())


def test_a_cancelled_sender_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        spool = make_spool(tmp_path)
        sent = asyncio.Event()

        async def stalling() -> AsyncIterator[bytes]:
            yield b"x" * (2 * FLUSH_BYTES)
            sent.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(spool.write(stalling(), filename=None, max_bytes=GENEROUS))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (spool.used_bytes, spooled_paths(tmp_path)) == (0, [])

    asyncio.run(scenario())


def test_a_cancellation_in_the_middle_of_a_disk_write_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        spool = make_spool(tmp_path)
        for num_steps in range(6):  # cancel after 0, 1, 2 ... turns of the loop
            task = asyncio.create_task(
                spool.write(chunks_of(b"x" * FLUSH_BYTES, b"y" * FLUSH_BYTES), filename=None, max_bytes=GENEROUS)
            )
            for _ in range(num_steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await spool.run(lambda: None)
        assert (spool.used_bytes, spooled_paths(tmp_path)) == (0, [])

    asyncio.run(scenario())


def test_the_quota_holds_over_all_files(tmp_path: Path) -> None:
    async def scenario() -> None:
        spool = make_spool(tmp_path, max_bytes=1000)
        first = await spool.write(chunks_of(b"x" * 700), filename=None, max_bytes=GENEROUS)
        with pytest.raises(UnavailableError) as caught:
            await spool.write(chunks_of(b"x" * 400), filename=None, max_bytes=GENEROUS)
        assert caught.value.code == "storage_full"
        assert caught.value.retry_after_seconds
        await spool.remove(first)
        await spool.write(chunks_of(b"x" * 400), filename=None, max_bytes=GENEROUS)

    asyncio.run(scenario())


def test_the_disk_keeps_its_free_space(tmp_path: Path) -> None:
    async def scenario() -> None:
        spool = make_spool(tmp_path, free_space_floor=1 << 62)
        with pytest.raises(UnavailableError):
            await spool.write(chunks_of(b"x"), filename=None, max_bytes=GENEROUS)
        assert spooled_paths(tmp_path) == []

    asyncio.run(scenario())


LEAVE_A_FILE_AND_DIE = """
import asyncio, os, sys
from pathlib import Path
from tru_vlm.intake.spool import Spool
async def one():
    yield b"left behind"
asyncio.run(Spool(Path(sys.argv[1]), 1000, 0).write(one(), filename=None, max_bytes=1000))
os._exit(1)
"""


def test_a_start_sweeps_what_dead_processes_left_but_not_what_living_ones_use(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    subprocess.run([sys.executable, "-c", LEAVE_A_FILE_AND_DIE, str(directory)], check=False)
    assert [path.read_bytes() for path in spooled_paths(tmp_path)] == [b"left behind"]

    async def scenario() -> None:
        living = make_spool(tmp_path)
        file = await living.write(chunks_of(b"in use"), filename=None, max_bytes=1000)
        await make_spool(tmp_path).start()
        assert spooled_paths(tmp_path) == [file.path]
        await living.close()
        assert spooled_paths(tmp_path) == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, None),
        ("", None),
        ("clip.mp4", "clip.mp4"),
        ("C:\\Users\\me\\clip.mp4", "clip.mp4"),
        ("/etc/passwd", "passwd"),
        ("a\x00\x1b[31m\nb.mp4", "a[31mb.mp4"),
        ("x" * 1000, "x" * 255),
        ("..", ".."),
    ],
)
def test_a_senders_file_name_is_only_shown(given: str | None, shown: str | None) -> None:
    assert display_name(given) == shown


def test_a_file_that_is_given_up_at_any_wait_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        spool = make_spool(tmp_path)
        pieces = [b"x" * (FLUSH_BYTES + 1), b"y"]
        source = await spool.write(chunks_of(b"source"), filename=None, max_bytes=100)

        async def nothing_is_left() -> None:
            await until(lambda: spool.used_bytes == source.size_bytes)
            await until(lambda: spooled_paths(tmp_path) == [source.path])

        def write() -> Coroutine[Any, Any, SpooledFile]:
            return spool.write(chunks_of(*pieces), filename=None, max_bytes=GENEROUS)

        def link() -> Coroutine[Any, Any, SpooledFile]:
            return spool.link(source.path, size_bytes=source.size_bytes, sha256=source.sha256, filename=None)

        for make in (write, link):
            await at_every_wait(make, release=spool.remove, check=nothing_is_left)

    asyncio.run(scenario())
