"""The template: children are forks of it, it and they may die at any moment, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_decode_pool import SAMPLING, assert_works, start_hanging
from video_clips import MEMORY_BYTES, Local

from tru_vlm.video import decode_nursery
from tru_vlm.video.decode_pool import DecodePool
from tru_vlm.video.failures import DecodeFailure

Run = Callable[[Coroutine[Any, Any, Any]], Any]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def pair(run: Run) -> Iterator[DecodePool]:
    """Two decode processes of two threads each; PyAV is loaded beside TorchCodec."""
    pool = DecodePool(2, 600, MEMORY_BYTES, "torchcodec", num_threads=2)
    run(pool.start())
    yield pool
    run(pool.close())


def open_files(pid: int) -> list[str]:
    names = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder's own descriptor, when the process is this one
            names.append(str(link.readlink()).split(":")[0])
    return sorted(names)


async def forked_anew(pool: DecodePool, pid: int) -> psutil.Process:
    """Wait until the pool's only process is another one."""
    async with asyncio.timeout(60):
        while pool.pids() in ([], [pid]):  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
    return psutil.Process(pool.pids()[0])


@on_linux
def test_a_template_has_one_thread_and_children_have_one_socket(run: Run, pair: DecodePool) -> None:
    template = psutil.Process(pair.template_pid)
    assert template.num_threads() == 1, "a fork copies no other thread, but the locks that it holds"
    assert open_files(template.pid) == ["/dev/null"] * 3 + ["socket"] * 3, "orders, and both ends of the wakeup"
    assert {child.pid for child in template.children()} == set(pair.pids())
    for pid in pair.pids():
        assert open_files(pid) == ["/dev/null"] * 3 + ["socket"]
        assert os.getsid(pid) == pid
    status = Path(f"/proc/{pair.pids()[0]}/status").read_text()
    assert "NoNewPrivs:\t1" in status


def test_two_children_decode_at_once_with_threads(run: Run, pair: DecodePool, clip: Local, tmp_path: Path) -> None:
    """The frames are resized, which runs on PyTorch's threads: they must start in a fork."""
    paths = [tmp_path / f"{index}.npy" for index in range(6)]

    async def scenario() -> None:
        async with asyncio.timeout(120):
            await asyncio.gather(*(pair.sample(clip.path, sampling=SAMPLING, out_path=path) for path in paths))

    run(scenario())
    first = np.load(paths[0])
    assert all(np.array_equal(np.load(path), first) for path in paths)
    if sys.platform == "linux":
        assert max(psutil.Process(pid).num_threads() for pid in pair.pids()) > 1


def test_a_killed_child_is_replaced_by_a_fork_of_the_same_template(run: Run, pool: DecodePool, tmp_path: Path) -> None:
    async def scenario() -> None:
        await assert_works(pool, tmp_path)
        template, (pid,) = pool.template_pid, pool.pids()
        os.kill(pid, signal.SIGKILL)
        await assert_works(pool, tmp_path)
        _, hanging = await start_hanging(pool, tmp_path)
        (second,) = pool.pids()
        hanging.cancel()
        await asyncio.wait([hanging])
        third = await forked_anew(pool, second)
        assert len({pid, second, third.pid}) == 3
        assert pool.template_pid == template == third.ppid()

    run(scenario())


def test_a_killed_template_costs_the_files_in_work_only(run: Run, pair: DecodePool, tmp_path: Path) -> None:
    async def scenario() -> None:
        await assert_works(pair, tmp_path)
        file, hanging = await start_hanging(pair, tmp_path)
        template = psutil.Process(pair.template_pid)
        children = [psutil.Process(pid) for pid in pair.pids()]
        template.kill()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.wait(60)  # and the loop does not turn: the pool does not know
        assert pair.template_pid == template.pid
        await assert_works(pair, tmp_path)  # with the idle child's successor
        with pytest.raises(DecodeFailure) as caught:
            await hanging
        assert caught.value.code == "internal"
        await file.let_go()
        assert pair.template_pid not in (None, template.pid)
        assert not template.is_running()

    run(scenario())


def test_a_template_that_hangs_is_replaced(
    run: Run, pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        await assert_works(pool, tmp_path)
        template, child = psutil.Process(pool.template_pid), psutil.Process(pool.pids()[0])
        template.suspend()
        child.kill()
        with monkeypatch.context() as patch:
            patch.setattr(decode_nursery, "FORK_SECONDS", 0.2)
            with pytest.raises(DecodeFailure, match="no decode process can be started"):
                await assert_works(pool, tmp_path)
        await assert_works(pool, tmp_path)
        assert not template.is_running()

    run(scenario())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_polite_signals_change_nothing(run: Run, pool: DecodePool, tmp_path: Path, number: signal.Signals) -> None:
    """They reach whole process groups, while the server still drains."""

    async def scenario() -> None:
        await assert_works(pool, tmp_path)
        pids = pool.template_pid, pool.pids()
        for pid in (pool.template_pid or 0, *pool.pids()):
            os.kill(pid, number)
        await assert_works(pool, tmp_path)
        assert (pool.template_pid, pool.pids()) == pids

    run(scenario())


@on_linux
def test_deaths_leave_no_files_and_the_end_leaves_nothing(run: Run, pair: DecodePool, tmp_path: Path) -> None:
    async def scenario() -> None:
        await assert_works(pair, tmp_path)
        await asyncio.gather(*(slot.child() for slot in pair._slots))
        before = open_files(os.getpid()).count("socket")
        os.kill(pair.pids()[0], signal.SIGKILL)
        _, hanging = await start_hanging(pair, tmp_path)
        hanging.cancel()
        await asyncio.wait([hanging])
        template = psutil.Process(pair.template_pid)
        async with asyncio.timeout(60):
            # The death of the killed one may not have been heard of yet: until then its slot still names it.
            while len(family := [template, *template.children()]) != 3 or len(set(pair.pids())) != 2:
                await asyncio.gather(*(slot.child() for slot in pair._slots))
                await asyncio.sleep(0.02)
        await asyncio.gather(*pair._endings)
        await asyncio.sleep(0)  # transports close on the loop's next turn
        assert open_files(os.getpid()).count("socket") == before
        await pair.close()
        await asyncio.sleep(0)
        assert (pair.template_pid, pair.pids()) == (None, [])
        assert not [process for process in family if process.is_running()]
        assert open_files(os.getpid()).count("socket") == before - 3, "orders, and two channels"

    run(scenario())
