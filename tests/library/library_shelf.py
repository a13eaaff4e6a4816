"""A library in a folder, with a clock that the test sets."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tru_vlm.database import Database
from tru_vlm.intake.spool import Spool, SpooledFile
from tru_vlm.library import catalog
from tru_vlm.library.store import VideoLibrary
from tru_vlm.video.media import MediaProbe

PROBE = MediaProbe("video", "MP4", "h264", 320, 240, 4.0, 24.0, 96, 0)
DAY = 24 * 3600.0


@dataclass
class Shelf:
    """A library and what it is made of."""

    folder: Path
    store: VideoLibrary
    spool: Spool
    database: Database
    now: list[float] = field(default_factory=lambda: [1_000_000.0])

    async def spooled(self, content: bytes) -> SpooledFile:
        async def chunks() -> AsyncIterator[bytes]:
            yield content

        return await self.spool.write(chunks(), filename="a.mp4", max_bytes=1 << 20)

    async def put(self, content: bytes, *, owner: str = "public", filename: str | None = "a.mp4") -> str:
        file = await self.spooled(content)
        try:
            video, _ = await self.store.put(file, PROBE, filename=filename, owner=owner)
        finally:
            await self.spool.remove(file)
        return video.content.sha256

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "videos").iterdir()}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.asynccontextmanager
async def open_shelf(
    folder: Path, *, max_bytes: int = 1 << 20, ttl_seconds: float = DAY, start: bool = True
) -> AsyncIterator[Shelf]:
    now = [1_000_000.0]
    spool = Spool(folder / "spool", 1 << 30, 0)
    database = Database(folder / "library.sqlite3", catalog.MIGRATIONS)
    store = VideoLibrary(folder, database, spool, max_bytes=max_bytes, ttl_seconds=ttl_seconds, clock=lambda: now[0])
    await database.start()
    if start:
        await store.start()
    try:
        yield Shelf(folder, store, spool, database, now)
    finally:
        await database.close()
        await spool.close()
