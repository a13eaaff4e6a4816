"""What a server holds: processes, descriptors, memory, temporary files.

After a load it must hold what it held before.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil

from soak.faults import Target, family, health

MEMORY_SLACK_BYTES = 200 << 20
"""Allocators keep some of what they had; a leak of a frame or a file per request is far above it in minutes."""
DESCRIPTOR_SLACK = 16
NUM_DECODE_PROCESSES = 2


@dataclass(frozen=True)
class Holdings:
    """At one moment, when nothing runs.

    ``num_missing`` counts workers and decode processes that are not ready: one that was killed while it had nothing to
    do is replaced when it is wanted.
    """

    num_processes: int
    num_missing: int
    num_descriptors: int
    own_memory_bytes: int
    num_spooled_files: int
    num_open: int

    @classmethod
    def of(cls, target: Target) -> Holdings:
        """Look at a server."""
        processes = descriptors = memory = 0
        for process in family(target):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                descriptors += process.num_fds()
                memory += process.memory_full_info().uss
                processes += 1
        body = health(target)
        queue = body["queue"]
        num_unready = sum(worker["state"] != "ready" for worker in body["workers"])
        return cls(
            num_processes=processes,
            num_missing=num_unready + NUM_DECODE_PROCESSES - body["video"]["pool"]["num_processes"],
            num_descriptors=descriptors,
            own_memory_bytes=memory,
            num_spooled_files=len(spooled_files(target.folder / "storage")),
            num_open=queue["num_open"] + queue["num_running"] + queue["num_waiting"],
        )

    def leaks(self, before: Holdings) -> list[str]:
        """What there is more of than before, in sentences."""
        found = []
        if self.num_open:
            found.append(f"{self.num_open} requests are open")
        if self.num_spooled_files > before.num_spooled_files:
            found.append(f"{self.num_spooled_files} temporary files, {before.num_spooled_files} before")
        if self.num_processes > before.num_processes:
            found.append(f"{self.num_processes} processes, {before.num_processes} before")
        if self.num_descriptors > before.num_descriptors + DESCRIPTOR_SLACK:
            found.append(f"{self.num_descriptors} descriptors, {before.num_descriptors} before")
        if self.own_memory_bytes > before.own_memory_bytes + MEMORY_SLACK_BYTES:
            found.append(f"{self.own_memory_bytes >> 20} MiB of own memory, {before.own_memory_bytes >> 20} before")
        return found


def spooled_files(storage: Path) -> list[Path]:
    """Files of requests in progress."""
    return [path for path in (storage / "spool").rglob("*") if path.is_file() and path.name != ".lock"]
