"""The database's door: what is committed stays, what raises is undone, and a file is brought up to date once."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tru_vlm.database import Database, DatabaseError
from tru_vlm.errors import UnavailableError

ROOT = Path(__file__).parents[1]
FIRST = """
CREATE TABLE notes (text TEXT NOT NULL);
CREATE TRIGGER shout AFTER INSERT ON notes BEGIN
  UPDATE notes SET text = upper(text) WHERE rowid = new.rowid;
END;
"""
SECOND = "ALTER TABLE notes ADD COLUMN kind TEXT NOT NULL DEFAULT 'plain';"

COUNTING = """
import asyncio, sys
from pathlib import Path
from tru_vlm.database import Database

async def main():
    database = Database(Path(sys.argv[1]), [sys.argv[2]])
    await database.start()
    for number in range(10**6):
        await database.run(lambda connection: connection.execute("INSERT INTO notes(text) VALUES (?)", (str(number),)))
        print(number, flush=True)

asyncio.run(main())
"""


def in_database(path: Path, *scripts: str, work: Callable[[Database], Awaitable[object]]) -> object:
    async def run() -> object:
        database = Database(path, scripts)
        try:
            await database.start()
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def insert(text: str) -> Callable[[sqlite3.Connection], None]:
    return lambda connection: connection.execute("INSERT INTO notes(text) VALUES (?)", (text,)) and None


def texts(connection: sqlite3.Connection) -> list[str]:
    return [row["text"] for row in connection.execute("SELECT text FROM notes ORDER BY rowid")]


def test_a_write_is_there_after_a_restart_and_a_newer_release(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "notes.sqlite3"
    in_database(path, FIRST, work=lambda database: database.run(insert("one")))

    async def read_all(database: Database) -> list[tuple[str, str]]:
        return await database.read(lambda connection: [tuple(r) for r in connection.execute("SELECT * FROM notes")])

    assert in_database(path, FIRST, SECOND, work=read_all) == [("ONE", "plain")]


def test_what_raises_is_undone_whole(tmp_path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        insert("half")(connection)
        raise LookupError("no")

    async def work(database: Database) -> list[str]:
        with pytest.raises(LookupError):
            await database.run(half)
        await database.run(insert("whole"))
        return await database.read(texts)

    assert in_database(tmp_path / "db", FIRST, work=work) == ["WHOLE"]


def test_a_failed_migration_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "db"
    in_database(path, FIRST, work=lambda database: database.run(insert("kept")))
    with pytest.raises(DatabaseError, match=str(path)):
        in_database(path, FIRST, SECOND, "ALTER TABLE nothing ADD COLUMN x;", work=lambda _: asyncio.sleep(0))
    assert in_database(path, FIRST, SECOND, work=lambda database: database.read(texts)) == ["KEPT"]


def test_readers_go_on_beside_a_writer_and_see_whole_transactions(tmp_path: Path) -> None:
    async def work(database: Database) -> tuple[list[str], list[str]]:
        may_commit = threading.Event()
        has_written = threading.Event()

        def slow(connection: sqlite3.Connection) -> None:
            insert("late")(connection)
            has_written.set()
            assert may_commit.wait(30)

        writing = asyncio.create_task(database.run(slow))
        await asyncio.to_thread(has_written.wait, 30)
        before = await database.read(texts)
        may_commit.set()
        await writing
        return before, await database.read(texts)

    assert in_database(tmp_path / "db", FIRST, work=work) == ([], ["LATE"])


def test_a_writer_does_not_wait_for_readers_who_see_what_was_there_when_they_began(tmp_path: Path) -> None:
    async def work(database: Database) -> tuple[list[str], list[str]]:
        has_begun, may_go_on = threading.Event(), threading.Event()

        def slow(connection: sqlite3.Connection) -> list[str]:
            before = texts(connection)
            has_begun.set()
            assert may_go_on.wait(30)
            return before + texts(connection)

        reading = asyncio.create_task(database.read(slow))
        await asyncio.to_thread(has_begun.wait, 30)
        await asyncio.wait_for(database.run(insert("new")), 20)
        may_go_on.set()
        return await reading, await database.read(texts)

    assert in_database(tmp_path / "db", FIRST, work=work) == ([], ["NEW"])


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    in_database(tmp_path / "db", FIRST, SECOND, work=lambda _: asyncio.sleep(0))
    with pytest.raises(DatabaseError, match="newer release"):
        in_database(tmp_path / "db", FIRST, work=lambda _: asyncio.sleep(0))


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database" * 100)
    with pytest.raises(DatabaseError, match="cannot be used as a database"):
        in_database(tmp_path / "db", FIRST, work=lambda _: asyncio.sleep(0))


def test_a_full_disk_is_an_answer_for_the_client_and_the_next_write_works(tmp_path: Path) -> None:
    async def work(database: Database) -> list[str]:
        def limit(pages: int) -> Callable[[sqlite3.Connection], object]:
            return lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()

        await database.run(limit(1))
        with pytest.raises(UnavailableError, match="disk is full"):
            await database.run(insert("x" * 1_000_000))
        await database.run(limit(100_000))
        await database.run(insert("fits"))
        return await database.read(texts)

    assert in_database(tmp_path / "db", FIRST, work=work) == ["FITS"]


def test_a_killed_process_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNTING, str(tmp_path / "db"), FIRST]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        confirmed = 20 + process.stdout.read().count("\n")
    kept = in_database(tmp_path / "db", FIRST, work=lambda database: database.read(texts))
    assert isinstance(kept, list)
    assert kept[:confirmed] == [str(number) for number in range(confirmed)]
