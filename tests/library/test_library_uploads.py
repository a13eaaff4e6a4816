"""Uploads in pieces: what has come stays, what was to be checked counts only then, and one request works at a time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from library_shelf import DAY, PROBE, Shelf, digest, open_shelf

from tru_vlm.errors import (
    ChecksumError,
    ConflictError,
    InsufficientStorageError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
    UnsupportedMediaError,
)
from tru_vlm.intake.spool import FLUSH_BYTES, SpooledFile
from tru_vlm.library.uploads import Checksum, Upload, UploadStore

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def open_uploads(
    folder: Path, *, max_bytes: int = 1 << 30, floor: int = 0
) -> AsyncIterator[tuple[Shelf, UploadStore]]:
    async with open_shelf(folder, max_bytes=max_bytes) as shelf:
        uploads = UploadStore(
            folder,
            shelf.database,
            shelf.store,
            shelf.spool,
            ttl_seconds=DAY,
            free_space_floor=floor,
            clock=lambda: shelf.now[0],
        )
        await uploads.start()
        yield shelf, uploads


async def begin(uploads: UploadStore, size_bytes: int) -> Upload:
    return await uploads.create(size_bytes=size_bytes, filename="../a.mp4", metadata=None, owner="public")


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def append(uploads: UploadStore, upload: Upload, offset: int, *data: bytes, sha1: str | None = None) -> int:
    checksum = Checksum("sha1", bytes.fromhex(sha1)) if sha1 is not None else None
    after = await uploads.append(upload.id, "public", offset=offset, chunks=pieces(*data), checksum=checksum)
    return after.offset


def keeper(shelf: Shelf) -> Callable[[SpooledFile], object]:
    async def keep(file: SpooledFile) -> str:
        video, _ = await shelf.store.put(file, PROBE, filename=file.filename, owner="public")
        return video.content.sha256

    return keep


def test_pieces_become_a_video(tmp_path: Path) -> None:
    content = os.urandom(FLUSH_BYTES + 1000)

    async def scenario() -> None:
        async with open_uploads(tmp_path) as (shelf, uploads):
            upload = await begin(uploads, len(content))
            assert await append(uploads, upload, 0, content[:10], content[10:500]) == 500
            assert await append(uploads, upload, 500, content[500:]) == len(content)
            done = await uploads.finish(upload.id, "public", keeper(shelf))
            assert done.sha256 == digest(content)
            assert shelf.files() == {digest(content): content}
            assert list((tmp_path / "uploads").iterdir()) == []
            again = await uploads.settle(upload.id, "public")
            assert (again.sha256, again.offset) == (done.sha256, len(content))
            assert (await uploads.finish(upload.id, "public", keeper(shelf))).sha256 == done.sha256
            assert (await shelf.store.get(digest(content), "public")).filename == "a.mp4"
            assert (await shelf.store.stats()).used_bytes == len(content)

    asyncio.run(scenario())


def test_a_wrong_offset_or_too_many_bytes_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_uploads(tmp_path) as (_, uploads):
            upload = await begin(uploads, 10)
            await append(uploads, upload, 0, b"12345")
            for offset in (0, 4, 6, 10):
                with pytest.raises(ConflictError, match=f"is {offset}; the upload is at 5 of 10 bytes"):
                    await append(uploads, upload, offset, b"x")
            with pytest.raises(PayloadTooLargeError):
                await append(uploads, upload, 5, b"678901")
            assert await append(uploads, upload, 5, b"67890") == 10
            for owner, name in (("other", upload.id), ("public", "../library.sqlite3")):
                with pytest.raises(NotFoundError):
                    await uploads.get(name, owner)

    asyncio.run(scenario())


def test_bytes_with_a_wrong_checksum_do_not_count(tmp_path: Path) -> None:
    good, bad = (
        hashlib.sha1(b"67890", usedforsecurity=False).hexdigest(),
        hashlib.sha1(b"other", usedforsecurity=False).hexdigest(),
    )

    async def scenario() -> None:
        async with open_uploads(tmp_path) as (_, uploads):
            upload = await begin(uploads, 10)
            await append(uploads, upload, 0, b"12345")
            with pytest.raises(ChecksumError):
                await append(uploads, upload, 5, b"67890", sha1=bad)
            assert (await uploads.get(upload.id, "public")).offset == 5
            assert await append(uploads, upload, 5, b"67", b"890", sha1=good) == 10
            assert (tmp_path / "uploads" / upload.id).read_bytes() == b"1234567890"

    asyncio.run(scenario())


class GoneError(Exception):
    """The client has left."""


async def broken(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece
    raise GoneError


@pytest.mark.parametrize(("is_checked", "kept"), [(False, 3), (True, 0)])
def test_what_has_come_stays_when_the_client_leaves_unless_it_was_to_be_checked(
    tmp_path: Path, is_checked: bool, kept: int
) -> None:
    async def scenario() -> None:
        async with open_uploads(tmp_path) as (_, uploads):
            upload = await begin(uploads, 10)
            checksum = Checksum("sha256", b"x") if is_checked else None
            with pytest.raises(GoneError):
                await uploads.append(upload.id, "public", offset=0, chunks=broken(b"123"), checksum=checksum)
        async with open_uploads(tmp_path) as (_, uploads):
            assert (await uploads.settle(upload.id, "public")).offset == kept
            await append(uploads, upload, kept, b"1234567890"[kept:])
            assert (tmp_path / "uploads" / upload.id).read_bytes() == b"1234567890"

    asyncio.run(scenario())


def test_a_client_that_comes_back_takes_over_from_its_dead_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_uploads(tmp_path) as (_, uploads):
            upload = await begin(uploads, 10)
            is_hanging = asyncio.Event()

            async def hanging() -> AsyncIterator[bytes]:
                yield b"123"
                is_hanging.set()
                await asyncio.Event().wait()

            first = asyncio.ensure_future(
                uploads.append(upload.id, "public", offset=0, chunks=hanging(), checksum=None)
            )
            await is_hanging.wait()
            assert (await uploads.get(upload.id, "public")).offset == 0  # a look disturbs nobody
            assert not first.done()
            assert (await uploads.settle(upload.id, "public")).offset == 3
            with pytest.raises(ConflictError) as caught:
                await first
            assert caught.value.code == "upload_taken_over"
            assert await append(uploads, upload, 3, b"4567890") == 10

    asyncio.run(scenario())


def test_space_is_set_aside_for_whole_uploads(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_uploads(tmp_path, max_bytes=10) as (shelf, uploads):
            upload = await begin(uploads, 6)
            with pytest.raises(InsufficientStorageError, match="5 bytes; 6 of the 10 bytes"):
                await begin(uploads, 5)
            with pytest.raises(InsufficientStorageError):
                await shelf.put(b"12345")
            await uploads.remove(upload.id, "public")
            assert list((tmp_path / "uploads").iterdir()) == []
            await begin(uploads, 10)

    asyncio.run(scenario())


def test_a_disk_without_room_is_an_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_uploads(tmp_path, floor=1 << 60) as (_, uploads):
            with pytest.raises(UnavailableError) as caught:
                await begin(uploads, 6)
            assert caught.value.code == "storage_full"
        assert list((tmp_path / "uploads").iterdir()) == []

    asyncio.run(scenario())


def test_an_upload_expires_after_its_last_bytes_and_a_refused_one_at_once(tmp_path: Path) -> None:
    async def refuse(file: SpooledFile) -> str:
        raise UnsupportedMediaError("no")

    async def scenario() -> None:
        async with open_uploads(tmp_path) as (shelf, uploads):
            old, renewed, refused = [await begin(uploads, 4) for _ in range(3)]
            shelf.now[0] += DAY
            await append(uploads, renewed, 0, b"12")
            await append(uploads, refused, 0, b"1234")
            shelf.now[0] += 1
            assert await uploads.expire() == 1
            with pytest.raises(NotFoundError):
                await uploads.get(old.id, "public")
            with pytest.raises(UnsupportedMediaError):
                await uploads.finish(refused.id, "public", refuse)
            with pytest.raises(NotFoundError):
                await uploads.get(refused.id, "public")
            assert [path.name for path in (tmp_path / "uploads").iterdir()] == [renewed.id]

    asyncio.run(scenario())


def test_a_start_mends_rows_without_files_and_files_without_rows(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_uploads(tmp_path) as (_, uploads):
            lost, whole = await begin(uploads, 4), await begin(uploads, 4)
            (tmp_path / "uploads" / lost.id).unlink()
            (tmp_path / "uploads" / "orphan").write_bytes(b"x")
        async with open_uploads(tmp_path) as (_, uploads):
            assert [path.name for path in (tmp_path / "uploads").iterdir()] == [whole.id]
            with pytest.raises(NotFoundError):
                await uploads.get(lost.id, "public")

    asyncio.run(scenario())


ENDLESS = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_library_uploads import FLUSH_BYTES, Checksum, begin, open_uploads

async def main():
    async with open_uploads(Path(sys.argv[2])) as (_, uploads):
        upload = await begin(uploads, 1 << 29)
        await uploads.append(upload.id, "public", offset=0, chunks=one(b"12345"))
        print(upload.id, flush=True)
        checksum = Checksum("sha1", b"") if sys.argv[3] == "checked" else None
        await uploads.append(upload.id, "public", offset=5, chunks=many(), checksum=checksum)

async def one(piece):
    yield piece

async def many():
    for number in range(300):
        yield bytes([number % 251]) * FLUSH_BYTES
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["plain", "checked"])
def test_a_killed_process_loses_no_byte_that_has_come(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-c", ENDLESS, str(Path(__file__).parent), str(tmp_path), kind]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        upload_id = process.stdout.readline().strip()
        for _ in range(3):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        num_written = 3 + process.stdout.read().count("\n")

    async def scenario() -> None:
        async with open_uploads(tmp_path) as (_, uploads):
            upload = await uploads.settle(upload_id, "public")
            content = (tmp_path / "uploads" / upload_id).read_bytes()
            assert len(content) == upload.offset
            if kind == "checked":
                assert content == b"12345"
            else:
                assert upload.offset >= 5 + (num_written - 1) * FLUSH_BYTES
                expected = b"".join(bytes([number % 251]) * FLUSH_BYTES for number in range(num_written + 2))
                assert (b"12345" + expected).startswith(content)

    asyncio.run(scenario())
