"""A process that outlives its maker by a moment, and clears away the children and the files that the maker left behind.

vLLM starts processes that do not notice when the worker that started them is killed: they would keep the card.  All of
them have a mark in their environment.  The files of their sockets stay even after an orderly end.  Run by path with the
mark and a folder as its arguments, this file waits until the other end of its standard input is closed, which the
system does however the maker ends; then it kills whoever bears the mark and removes the folder.

It knows nothing of vLLM, and of this project's other modules.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MARK = "TRU_VLM_CHILD_OF"
_PROC = Path("/proc")
_ROUNDS = 50
_PAUSE_SECONDS = 0.1
_LEFT_BEHIND = 3
"""The exit status that tells of children that had to be killed."""


class Guardian:
    """The guardian of one process's children, as their maker sees it.

    Args:
        mark: tells the children from everybody else's.
        parent: where to make the children's folder; None takes the system's folder for temporary files.

    Attributes:
        folder: for the children's files: nobody else's, and removed when they have ended.
    """

    def __init__(self, mark: str, parent: str | None = None) -> None:
        # A short name: what lies in it are Unix sockets, whose whole path has room for 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="vllm-", dir=parent)).absolute()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter and this file
                [sys.executable, "-I", "-S", __file__, mark, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # what is sent to the maker's group is not for it
            )
        except OSError:
            self.folder.rmdir()
            raise

    def close(self) -> bool:
        """Have it end the children that are left and remove the folder, and wait for it; whether any were left."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._process.stdin.close()
        return self._process.wait() == _LEFT_BEHIND


def marked(mark: str) -> list[int]:
    """The processes whose environment has the mark when they start; not this one."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:  # gone, or another user's
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


def _watch(mark: str, folder: str) -> int:
    """The exit status: 0 when nobody was left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    status = 0
    for _ in range(_ROUNDS):  # one that is just starting another is seen in the next round
        left = marked(mark)
        if not left:
            break
        status = _LEFT_BEHIND
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(_PAUSE_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(_watch(sys.argv[1], sys.argv[2]))
