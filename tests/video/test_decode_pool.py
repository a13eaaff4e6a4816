"""Decode processes: their limits, their deaths, and that the next request notices nothing.

A named pipe is a file that hangs the reader: opening its other end returns exactly when a decode process has opened
it, which tells that the request is under way, without sleeping.
"""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from support import require
from video_clips import MEMORY_BYTES, Local, image_bytes, local_bytes

import qwen_vl_utils
from tru_vlm.video import decode_pool
from tru_vlm.video.decode_pool import DecodePool, PoolStartError
from tru_vlm.video.decode_process import failure_of
from tru_vlm.video.failures import DecodeFailure
from tru_vlm.video.media import EffectiveSampling, MediaProbe

Run = Callable[[Coroutine[Any, Any, Any]], Any]

SAMPLING = EffectiveSampling(
    kind="video", patch_size=16, min_pixels=1024, max_pixels=16384, fps=2.0, min_frames=4, max_frames=64
)


class HangingFile:
    """A file whose reader waits for ever."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "pipe"
        os.mkfifo(self.path)
        self._fd = -1

    async def opened(self) -> None:
        """Wait until a process has opened it."""
        self._fd = await asyncio.to_thread(os.open, self.path, os.O_WRONLY)

    async def let_go(self) -> None:
        """Wait until no process has it open any more."""
        poll = select.poll()
        poll.register(self._fd, select.POLLERR)
        await asyncio.to_thread(poll.poll)
        os.close(self._fd)


async def start_hanging(pool: DecodePool, directory: Path) -> tuple[HangingFile, asyncio.Task[MediaProbe]]:
    file = HangingFile(directory)
    task = asyncio.create_task(pool.probe(file.path, kind="image"))
    await file.opened()
    return file, task


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


async def assert_works(pool: DecodePool, directory: Path) -> None:
    image = local_bytes(directory, image_bytes("PNG"))
    probe = await pool.probe(image.path, kind="image")
    assert (probe.width, probe.height, probe.codec) == (200, 100, "png")


def test_frames_are_written_to_the_file_and_only_numbers_come_back(
    run: Run, pool: DecodePool, clip: Local, tmp_path: Path
) -> None:
    async def scenario() -> None:
        probe = await pool.probe(clip.path, kind="video")
        assert (probe.width, probe.height, probe.num_frames, probe.duration_seconds) == (160, 96, 50, 2.0)
        info = await pool.sample(clip.path, sampling=SAMPLING, out_path=tmp_path / "frames.npy")
        frames = np.load(tmp_path / "frames.npy")
        assert frames.dtype == np.uint8
        assert frames.shape == (info.num_frames, 3, info.height, info.width) == (4, 3, 96, 160)
        assert info.frames_indices == (0, 16, 33, 49)
        assert info.timestamps_seconds == pytest.approx([0.0, 0.64, 1.32, 1.96])
        levels = frames.mean(axis=(1, 2, 3))
        assert np.abs(levels - [20 + index * 4 for index in info.frames_indices]).max() < 4

    run(scenario())


def test_a_file_that_cannot_be_read_costs_no_process(run: Run, pool: DecodePool, tmp_path: Path) -> None:
    async def scenario() -> None:
        pids = pool.pids()
        for kind in ("video", "image"):
            with pytest.raises(DecodeFailure) as caught:
                await pool.probe(local_bytes(tmp_path, b"no media at all").path, kind=kind)
            assert caught.value.code in ("not_a_video", "unreadable_image")
        assert pool.pids() == pids
        await assert_works(pool, tmp_path)

    run(scenario())


def test_a_cancelled_request_kills_its_process_at_once(run: Run, pool: DecodePool, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = pool.stats()
        file, task = await start_hanging(pool, tmp_path)
        (pid,) = pool.pids()
        assert pool.stats().num_busy == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await file.let_go()  # the process, which was the only reader, is gone
        await assert_works(pool, tmp_path)
        assert pid not in pool.pids()
        after = pool.stats()
        assert (after.num_busy, after.num_waiting) == (0, 0)
        assert (after.num_killed - before.num_killed, after.num_restarts - before.num_restarts) == (1, 1)

    run(scenario())


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (signal.SIGSEGV, "decoder_crashed"),
        (signal.SIGABRT, "decoder_crashed"),
        (signal.SIGBUS, "decoder_crashed"),
        (signal.SIGXCPU, "decode_timeout"),
        (signal.SIGKILL, "internal"),
        (signal.SIGTERM, "internal"),
    ],
)
def test_what_the_end_of_a_process_means(ending: signal.Signals, code: str) -> None:
    assert failure_of(-ending).code == code


def test_a_process_that_dies_over_a_file_costs_that_request_only(run: Run, pool: DecodePool, tmp_path: Path) -> None:
    async def scenario() -> None:
        file, task = await start_hanging(pool, tmp_path)
        waiting = asyncio.create_task(assert_works(pool, tmp_path))
        os.kill(pool.pids()[0], signal.SIGSEGV)
        with pytest.raises(DecodeFailure) as caught:
            await task
        assert caught.value.code == "decoder_crashed"
        await file.let_go()
        await waiting

    run(scenario())


def test_a_process_that_died_while_idle_is_replaced_unnoticed(run: Run, pool: DecodePool, tmp_path: Path) -> None:
    async def scenario() -> None:
        await assert_works(pool, tmp_path)
        (pid,) = pool.pids()
        os.kill(pid, signal.SIGKILL)
        await assert_works(pool, tmp_path)
        assert pid not in pool.pids()

    run(scenario())


def test_a_process_that_hangs_is_killed_when_its_time_is_over(
    run: Run, pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        await assert_works(pool, tmp_path)
        (pid,) = pool.pids()
        process = psutil.Process(pid)
        process.suspend()  # as if a decoder hung with the interpreter's lock
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_timeout_seconds", 0.2)
            with pytest.raises(DecodeFailure) as caught:
                await pool.probe(local_bytes(tmp_path, image_bytes("PNG")).path, kind="image")
        assert caught.value.code == "decode_timeout"
        with suppress(psutil.NoSuchProcess):
            process.wait(60)
        await assert_works(pool, tmp_path)

    run(scenario())


def test_a_file_that_takes_too_much_cpu_ends_in_its_own_error(
    run: Run, pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_heavy_clip(tmp_path / "heavy.avi")

    async def scenario() -> None:
        killed = pool.stats().num_killed
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_cpu_seconds", 0)
            with pytest.raises(DecodeFailure) as caught:
                await pool.sample(clip, sampling=replace(SAMPLING, fps=25.0), out_path=tmp_path / "out.npy")
        assert caught.value.code == "decode_timeout"
        assert pool.stats().num_killed == killed, "the system ended it, not the wall clock"
        await assert_works(pool, tmp_path)

    run(scenario())


def write_heavy_clip(path: Path) -> Path:
    """Sixty-four pictures of 4096 x 4096: many seconds of work for one thread."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 4096
        stream.pix_fmt = "yuvj420p"
        (packet,) = stream.encode(av.VideoFrame.from_ndarray(np.zeros((4096, 4096, 3), np.uint8), format="rgb24"))
        for number in range(64):
            packet.pts = packet.dts = number
            output.mux(packet)
    return path


def test_limits_of_a_process(run: Run, pool: DecodePool, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("limits are read from /proc")

    async def scenario() -> None:
        await assert_works(pool, tmp_path)
        (pid,) = pool.pids()
        process = psutil.Process(pid)
        assert process.rlimit(psutil.RLIMIT_AS) == (MEMORY_BYTES, MEMORY_BYTES)
        assert process.rlimit(psutil.RLIMIT_FSIZE) == (MEMORY_BYTES, MEMORY_BYTES)
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        soft, _ = process.rlimit(psutil.RLIMIT_CPU)
        most = 600 * (len(os.sched_getaffinity(0)) + 1)
        assert most < soft < most + 200, "600 s of wall clock on each core, and a core to spare, above the start's"
        assert os.getsid(pid) == pid, "Ctrl-C reaches the server, not its decoders"
        names = set(process.environ())
        assert not {name for name in names if "KEY" in name or "PROXY" in name.upper() or "TOKEN" in name}

    run(scenario())


def test_environment_keeps_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "secret")
    monkeypatch.setenv("https_proxy", "http://secret")
    assert "secret" not in str(decode_pool._environment())


def test_a_file_that_swells_ends_in_its_own_error(
    run: Run, pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of 60,000 x 60,000 needs more than the process may have."""

    async def scenario() -> None:
        sampling = EffectiveSampling(kind="image", patch_size=16, min_pixels=1024, max_pixels=16384)
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_max_source_pixels", 1 << 60)
            with pytest.raises(DecodeFailure) as caught:
                await pool.sample(swelling_png(tmp_path), sampling=sampling, out_path=tmp_path / "out.npy")
        assert caught.value.code in ("decode_memory", "image_too_large")
        with pytest.raises(DecodeFailure) as caught:
            await pool.sample(swelling_png(tmp_path), sampling=sampling, out_path=tmp_path / "out.npy")
        assert caught.value.code == "image_too_large"

    run(scenario())


def swelling_png(directory: Path) -> Path:
    """A PNG of a few bytes whose header promises 60,000 x 60,000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0)
    path = directory / "swelling.png"
    data = zlib.compress(bytes(1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def test_a_full_disk_is_told_as_such(run: Run, pool: DecodePool, clip: Local) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")

    async def scenario() -> None:
        with pytest.raises(DecodeFailure) as caught:
            await pool.sample(clip.path, sampling=SAMPLING, out_path=Path("/dev/full"))
        assert caught.value.code == "storage_full"

    run(scenario())


def test_no_more_files_at_once_than_processes(run: Run, pool: DecodePool, tmp_path: Path) -> None:
    async def scenario() -> None:
        _, hanging = await start_hanging(pool, tmp_path)
        waiting = [asyncio.create_task(assert_works(pool, tmp_path)) for _ in range(3)]
        while pool.stats().num_waiting < 3:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        waiting[0].cancel()  # leaving the line touches no process
        hanging.cancel()
        results = await asyncio.gather(hanging, *waiting, return_exceptions=True)
        assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
        assert results[2:] == [None, None]

    run(scenario())


def test_too_little_memory_is_said_at_the_start(run: Run) -> None:
    pool = DecodePool(1, 600, 64 << 20, "pyav", num_threads=1)
    with pytest.raises(PoolStartError, match="DECODE_MEMORY_BYTES is 67108864; the decoding libraries need at least"):
        run(pool.start())


def test_a_decoder_that_does_not_load_is_said_at_the_start(run: Run) -> None:
    pool = DecodePool(1, 600, MEMORY_BYTES, "no-such-decoder", num_threads=1)  # type: ignore[arg-type]
    with pytest.raises(PoolStartError, match=r"^VIDEO_READER=no-such-decoder: .* What loads here: .*pyav"):
        run(pool.start())


def test_a_card_that_is_not_there_is_said_at_the_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    require(qwen_vl_utils.backend_status()["torchcodec"] == "available", "torchcodec needs FFmpeg's libraries")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pool = DecodePool(1, 600, MEMORY_BYTES, device="cuda", num_threads=1)
    with pytest.raises(PoolStartError, match=r"^VIDEO_DECODE_DEVICE=cuda: PyTorch sees no CUDA device\.$"):
        run(pool.start())


def test_a_closed_pool_has_no_processes_and_takes_nothing(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = descendants()
        pool = DecodePool(1, 600, MEMORY_BYTES, "pyav", num_threads=1)
        starting = asyncio.create_task(pool.start())
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(PoolStartError):
            await starting
        assert pool.pids() == []
        with pytest.raises(DecodeFailure):
            await assert_works(pool, tmp_path)
        assert descendants() <= before

    run(scenario())


PARENT = """
import asyncio, os, sys
from tru_vlm.video.decode_pool import DecodePool
async def main():
    pool = DecodePool(1, 600, 8 << 30, "pyav", num_threads=1)
    await pool.start()
    print(pool.template_pid, *pool.pids(), flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


def test_processes_do_not_outlive_a_killed_server() -> None:
    parent = subprocess.run([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, check=False)
    for pid in map(int, parent.stdout.split()):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(60)


def test_core_dumps_stay_as_they_are_in_the_server() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    import tru_vlm.video.decode_child  # noqa: F401

    assert resource.getrlimit(resource.RLIMIT_AS) == before
