"""One process looks after jobs and webhooks; when it ends, however it ends, another one does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import ROOT

from tru_vlm.errors import UnavailableError
from tru_vlm.jobs.bell import Bell
from tru_vlm.jobs.process_lock import ProcessLock
from tru_vlm.jobs.watch import LOOK_SECONDS, Watch

HOLDER = """
import sys
from pathlib import Path
from tru_vlm.jobs.process_lock import ProcessLock
print(ProcessLock(Path(sys.argv[1])).try_take(), flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process has the lock."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


class Tried(ProcessLock):
    """Tells of each try that another process's hold makes fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.refusals: asyncio.Queue[None] = asyncio.Queue()

    def try_take(self) -> bool:
        is_mine = super().try_take()
        if not is_mine:
            self.refusals.put_nowait(None)
        return is_mine


def test_the_one_with_the_lock_looks_and_a_killed_one_is_followed(tmp_path: Path) -> None:
    async def run() -> None:
        bell, lock = Bell(), Tried(tmp_path / "a.lock")
        looks: asyncio.Queue[None] = asyncio.Queue()

        async def look() -> float:
            looks.put_nowait(None)
            return LOOK_SECONDS

        watch = Watch("things", look, lock=lock, bell=bell)
        with held(tmp_path / "a.lock") as other:
            watch.start()
            for _ in range(3):
                await lock.refusals.get()
                bell.ring()
            assert looks.empty()
            other.kill()
            other.wait()
        await looks.get()
        bell.ring()
        await looks.get()
        await watch.close([])
        with held(tmp_path / "a.lock"):
            pass

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("error", [UnavailableError("full"), RuntimeError("a fault")])
def test_a_look_that_fails_is_followed_by_another(tmp_path: Path, error: Exception) -> None:
    async def run() -> None:
        looks: asyncio.Queue[None] = asyncio.Queue()

        async def look() -> float:
            looks.put_nowait(None)
            raise error

        bell = Bell()
        watch = Watch("things", look, lock=ProcessLock(tmp_path / "a.lock"), bell=bell)
        watch.start()
        for _ in range(3):
            await looks.get()
            bell.ring()
        begun = asyncio.create_task(asyncio.Event().wait())
        await watch.close([begun])
        assert begun.cancelled()

    asyncio.run(asyncio.wait_for(run(), 60))
