"""What goes wrong while visitors come: each fault is put on, and perhaps taken off.  Knows the server's processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import psutil

_FOLLOWS_SECONDS = 30
_ANSWER_SECONDS = 120  # a bound: at capacity a busy machine is slow


@dataclass(frozen=True)
class Target:
    """The server that faults are done to.

    Attributes:
        base: its address.
        pid: of its first process.
        folder: has its storage.
        is_small_disk: whether its storage is a file system of its own, which can be filled.
    """

    base: str
    pid: int
    folder: Path
    is_small_disk: bool


def health(target: Target) -> dict[str, Any]:
    """The whole of ``/v1/health/detailed``."""
    with urllib.request.urlopen(f"{target.base}/v1/health/detailed", timeout=_ANSWER_SECONDS) as answer:
        body: dict[str, Any] = json.load(answer)
    return body


def family(target: Target) -> list[psutil.Process]:
    """The server's processes."""
    first = psutil.Process(target.pid)
    return [first, *first.children(recursive=True)]


def kill_a_decode_child(target: Target) -> None:
    """In the middle of a file, as the kernel does when memory runs out."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while len(found := _decode_processes(target)) < 2:  # a cancelled decode's child is being replaced
        if time.monotonic() > deadline:
            raise RuntimeError("there is no decode child")
        time.sleep(0.05)
    with contextlib.suppress(psutil.NoSuchProcess):
        found[-1].kill()  # the oldest is the template, from which the others are forked


def _decode_processes(target: Target) -> list[psutil.Process]:
    """The template and its children, the youngest last."""
    found = []
    for process in family(target):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "tru_vlm.video.decode_template" in process.cmdline():
                found.append((process.create_time(), process.pid, process))
    return [process for *_, process in sorted(found)]


def kill_a_worker(target: Target) -> None:
    """With everything that it holds."""
    with contextlib.suppress(ProcessLookupError, IndexError):
        os.kill(next(worker["pid"] for worker in health(target)["workers"] if worker["pid"]), signal.SIGKILL)


def fill_the_disk(target: Target) -> None:
    """To the last byte."""
    storage = target.folder / "storage"
    with (storage / "filler").open("wb") as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"\0" * (1 << 20))
            filler.flush()


def free_the_disk(target: Target) -> None:
    """Again."""
    (target.folder / "storage" / "filler").unlink(missing_ok=True)


def clock_environment(folder: Path) -> dict[str, str]:
    """Variables for a server whose clock can be moved; see clock/sitecustomize.py."""
    clock = folder / "clock"
    clock.write_bytes(bytes(8))
    return {"PYTHONPATH": str(Path(__file__).parent / "clock"), "SOAK_CLOCK": str(clock)}


def set_the_clock(target: Target, seconds: float) -> None:
    """So far ahead of the right time, or behind it; fails if the server does not follow."""
    with (target.folder / "clock").open("r+b") as clock:
        clock.write(struct.pack("d", seconds))
    deadline = time.monotonic() + _FOLLOWS_SECONDS
    while abs(_server_time(target) - time.time() - seconds) > _FOLLOWS_SECONDS:
        if time.monotonic() > deadline:
            raise RuntimeError("the server's clock does not move")
        time.sleep(0.2)


def _server_time(target: Target) -> float:
    with urllib.request.urlopen(f"{target.base}/v1/health/live", timeout=_ANSWER_SECONDS) as answer:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[bool]:
    """A file system of its own at ``folder/storage``, if this process may mount one; says whether it did."""
    storage = folder / "storage"
    storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(storage)]
    done = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(storage)], check=True)
