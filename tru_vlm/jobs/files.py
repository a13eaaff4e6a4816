"""Videos that jobs need stay while they do: each job has links of its own to them.  It knows no database.

``videos/<job id>/<sha256>`` is a hard link to the library's file (a copy where the disk has no links).  So a video can
be deleted, or expire, and a job that was accepted still has it, also after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from tru_vlm.durable import flush
from tru_vlm.intake.spool import Spool, SpooledFile, link_or_copy

_SETTLED_SECONDS = 600.0
"""A folder that no job is known for may belong to one that is being accepted, but not for as long as this."""


class JobFiles:
    """The videos of all jobs.

    Args:
        directory: the folder; made when needed.
        spool: where borrowed files lie, on the same disk.
    """

    def __init__(self, directory: Path, spool: Spool) -> None:
        self._folder = directory
        self._spool = spool

    async def keep(self, job_id: str, file: SpooledFile) -> None:
        """Keep a file for a job; it stays the caller's as well."""
        await asyncio.shield(asyncio.to_thread(self._keep, job_id, file))

    async def borrow(self, job_id: str, sha256: str) -> SpooledFile:
        """A job's video, under a name of the caller's own, who removes it from the spool.

        Raises:
            FileNotFoundError: somebody has removed it.
        """
        path = self._folder / job_id / sha256
        size_bytes = (await asyncio.to_thread(path.stat)).st_size
        return await self._spool.borrow(path, size_bytes=size_bytes, sha256=sha256, filename=None)

    async def remove(self, job_id: str) -> None:
        """A job needs its videos no more."""
        await asyncio.to_thread(shutil.rmtree, self._folder / job_id, ignore_errors=True)

    async def sweep(self, known: Collection[str]) -> None:
        """Remove what belongs to no job: what a process left that was killed, or could not remove."""
        await asyncio.to_thread(self._sweep, known)

    def _keep(self, job_id: str, file: SpooledFile) -> None:
        folder = self._folder / job_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        target, unfinished = folder / file.sha256, folder / f"{file.sha256}.part"
        if not target.exists():
            unfinished.unlink(missing_ok=True)
            link_or_copy(file.path, unfinished)
            unfinished.rename(target)
        for path in (target, folder, self._folder):  # a job must not outlive what it needs
            flush(path)

    def _sweep(self, known: Collection[str]) -> None:
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if folder.name not in known and folder.stat().st_mtime < time.time() - _SETTLED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
