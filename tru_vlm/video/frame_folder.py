"""A folder of sampled frames: its entries, their locks, their age.  Everything here blocks; it knows no event loop.

The folder is its own index: an entry is ``<key>.npy`` with its numbers in ``<key>.json``; its age is the file's
modification time, renewed at each use.  So it survives a restart, several processes may share the folder, and nothing
can go out of step.  Who uses an entry holds a shared ``flock`` on the frames; whoever removes it needs the exclusive
one.  Frames are written as ``<key>.<random>.part`` under a lock and renamed when complete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tru_vlm.video.failures import DecodeFailure
from tru_vlm.video.media import SampledInfo

logger = logging.getLogger(__name__)

PART_SUFFIX = ".part"
NPY_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry and the descriptor whose lock keeps it."""

    path: Path
    info: SampledInfo
    fd: int


Rescue = Callable[[Path], bool]
"""Is shown an entry before it is removed, and says whether it has put it elsewhere."""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What trimming did.

    Attributes:
        used_bytes: bytes of the entries that remain.
        limit: the most that they may be, now.
        num_rescued, num_lost: entries that were put elsewhere, and that are gone.
    """

    used_bytes: int
    limit: int
    num_rescued: int
    num_lost: int


class FrameFolder:
    """Entries by key, in one folder of one file system.

    Attributes:
        directory: where; nothing is touched before :meth:`start`.
        max_bytes: most bytes of all entries.
        min_free_bytes: bytes of the file system that entries leave free.
        max_share: most of what the file system would have free without them that they take, 0 to 1.
        is_private: the folder lies where anybody may make one: ours must be ours alone.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        *,
        min_free_bytes: int = 0,
        max_share: float = 1.0,
        is_private: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self.max_bytes = max_bytes
        self.min_free_bytes = min_free_bytes
        self.max_share = max_share
        self.is_private = is_private
        self._claim_fd = -1

    def start(self) -> None:
        """Make the folder, and remove what dead processes left unfinished.

        Raises:
            PermissionError: it is to be private and is somebody else's, or open to others.
        """
        self.prepare()
        for part in self.directory.glob(f"*{PART_SUFFIX}"):
            remove_unlocked(part)
        for sidecar in self.directory.glob("*.json"):
            if not sidecar.with_suffix(".npy").exists():
                sidecar.unlink(missing_ok=True)

    def prepare(self) -> None:
        """Make the folder if it is not there; a private one is claimed: :func:`remove_abandoned` leaves it alone.

        Raises:
            PermissionError: it is to be private and is somebody else's, or open to others.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.is_private:
            return
        status = self.directory.lstat()
        is_open = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or is_open:
            raise PermissionError(errno.EPERM, "it is not this user's alone")
        if self._claim_fd < 0 or os.fstat(self._claim_fd).st_ino != status.st_ino:
            self._claim()

    def end(self) -> None:
        """Give up the claim, and remove the folder if nothing is in it."""
        with contextlib.suppress(OSError):
            self.directory.rmdir()
        self._unclaim()

    def open(self, key: str) -> Entry | None:
        """The entry under a key, locked against removal; a damaged one is removed."""
        path = self._path(key)
        fd = _lock_shared(path)
        if fd is None:
            return None
        info = _read_info(path, fd)
        if info is None:
            os.close(fd)
            logger.warning("a damaged entry of the frame cache is removed: %s", key)
            remove_unlocked(path)
            return None
        os.utime(fd)
        return Entry(path=path, info=info, fd=fd)

    def create(self, key: str) -> tuple[Path, int]:
        """A new, empty part and the descriptor whose lock says that somebody works on it.

        Raises:
            DecodeFailure: ``storage_full``.
        """
        part = self.directory / f"{key}.{secrets.token_hex(8)}{PART_SUFFIX}"
        with _full_is_told():
            try:
                fd = _create_locked(part)
            except FileNotFoundError:  # the folder has gone: another server that shared it has ended
                self.prepare()
                fd = _create_locked(part)
        return part, fd

    def publish(self, key: str, part: Path, info: SampledInfo, fd: int) -> Entry:
        """Turn a finished part into an entry; its lock becomes the entry's.

        Raises:
            DecodeFailure: ``storage_full``.
        """
        path = self._path(key)
        sidecar_part = part.with_name(f"{part.name}.json{PART_SUFFIX}")
        try:
            with _full_is_told():
                fcntl.flock(fd, fcntl.LOCK_SH)
                sidecar_part.write_text(json.dumps(info.as_dict()))
                sidecar_part.replace(path.with_suffix(".json"))
                part.replace(path)
        except BaseException:
            sidecar_part.unlink(missing_ok=True)
            raise
        return Entry(path=path, info=info, fd=fd)

    def trim(self, *, room: int = 0, rescue: Rescue | None = None) -> Trimmed:
        """Remove the least recently used entries that nobody uses until the rest, and ``room`` bytes more, fit."""
        self.prepare()
        found = self._oldest_first()
        used_bytes = sum(size for _, size, _ in found)
        free_bytes = shutil.disk_usage(self.directory).free
        ours = int((used_bytes + free_bytes) * self.max_share) - self.min_free_bytes
        limit = max(0, min(self.max_bytes, ours))
        return self._remove(found, used_bytes, limit=limit, room=room, rescue=rescue)

    def empty(self, *, rescue: Rescue | None = None) -> Trimmed:
        """Remove every entry that nobody uses."""
        found = self._oldest_first()
        return self._remove(found, sum(size for _, size, _ in found), limit=0, room=0, rescue=rescue)

    def _remove(
        self, found: list[tuple[int, int, Path]], used_bytes: int, *, limit: int, room: int, rescue: Rescue | None
    ) -> Trimmed:
        num_rescued, num_lost = 0, 0
        for _, size, path in found:
            if used_bytes + room <= limit:
                break
            if is_used(path):
                continue
            is_rescued = rescue is not None and rescue(path)
            if remove_unlocked(path):
                num_rescued += is_rescued
                num_lost += not is_rescued
            used_bytes -= 0 if path.exists() else size
        return Trimmed(used_bytes=used_bytes, limit=limit, num_rescued=num_rescued, num_lost=num_lost)

    def adopt(self, path: Path) -> bool:
        """Copy another folder's entry, with its age; whether it is here now.  It may be used meanwhile."""
        key = path.stem
        if self._path(key).exists():
            return True
        source_fd = _lock_shared(path)
        if source_fd is None:
            return False
        try:
            info = _read_info(path, source_fd)
            if info is None or path.stat().st_size > self.max_bytes:
                return False
            self._copy(key, path, info)
        except (OSError, DecodeFailure) as error:
            logger.warning("frames cannot be moved to %s: %s", self.directory, error)
            return False
        finally:
            os.close(source_fd)
        return True

    def _copy(self, key: str, path: Path, info: SampledInfo) -> None:
        part, fd = self.create(key)
        try:
            shutil.copyfile(path, part)
            shutil.copystat(path, part)  # the age
            if not self._path(key).exists():  # else another process was quicker, and somebody may use it already
                self.publish(key, part, info, fd)
        finally:
            part.unlink(missing_ok=True)
            os.close(fd)

    def _claim(self) -> None:
        self._unclaim()
        self._claim_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._claim_fd, fcntl.LOCK_SH)

    def _unclaim(self) -> None:
        if self._claim_fd >= 0:
            os.close(self._claim_fd)
            self._claim_fd = -1

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.npy"

    def _oldest_first(self) -> list[tuple[int, int, Path]]:
        """(age, bytes, path) of each entry."""
        found = []
        for path in self.directory.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        return sorted(found)


def remove_abandoned(directories: Iterable[Path]) -> None:
    """Remove private folders that no process has claimed, with what is in them."""
    for directory in directories:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # just gone, or somebody else's
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory)
        except OSError as error:
            logger.debug("%s stays: %s", directory, error)
        finally:
            os.close(fd)


def _create_locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


@contextlib.contextmanager
def _full_is_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DecodeFailure("storage_full", cause=str(error)) from error
        raise


def _lock_shared(path: Path) -> int | None:
    """A descriptor that keeps the file from being removed; None if it is not there, or is just going."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == path.stat().st_ino:
            return fd
    except OSError:  # being removed, or removed between opening and locking
        pass
    os.close(fd)
    return None


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[int | None]:
    """A descriptor with nobody else's lock on the file; None if it is not there, or somebody has it locked."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = True
    except OSError:
        is_ours = False
    try:
        yield fd if is_ours else None
    finally:
        os.close(fd)


def is_used(path: Path) -> bool:
    """Whether somebody has the file locked."""
    with _exclusive(path) as fd:
        return fd is None and path.exists()


def remove_unlocked(path: Path) -> bool:
    """Remove a file that nobody has locked, and its sidecar; whether it was removed."""
    with _exclusive(path) as fd:
        try:
            if fd is None or os.fstat(fd).st_ino != path.stat().st_ino:
                return False
            path.unlink()
            if path.suffix == ".npy":
                path.with_suffix(".json").unlink(missing_ok=True)
        except OSError:
            return False
    return True


def _read_info(path: Path, fd: int) -> SampledInfo | None:
    """An entry's numbers; None when they or the frames are damaged."""
    try:
        data = json.loads(path.with_suffix(".json").read_bytes())
        info = SampledInfo.from_dict(data)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    header_bytes = os.fstat(fd).st_size - info.num_bytes
    is_whole = 0 < header_bytes <= MAX_HEADER_BYTES and os.pread(fd, len(NPY_MAGIC), 0) == NPY_MAGIC
    return info if is_whole else None
