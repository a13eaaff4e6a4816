"""A lock that one process has, and that ends with it, however it ends.  It knows nothing of what is locked."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class ProcessLock:
    """One of several processes may have it.

    A record lock (POSIX) and not ``flock``: children that are forked do not have it, and so cannot keep it.

    Args:
        path: the file; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def try_take(self) -> bool:
        """Take it; returns whether it is this process's."""
        if self._fd is None:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Give it back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
