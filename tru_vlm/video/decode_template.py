"""The process loads the decoding libraries once and forks children that have them; it never opens a file.

Run as ``python -m tru_vlm.video.decode_template``.  Orders come from the server as frames of eight bytes on an
inherited socket: ``FORK``, with one end of the new child's channel attached (SCM_RIGHTS), and ``KILL``.  Lines of JSON
go back: ``{"ready": true}`` once, then ``{"ended": number, "status": exit status or -signal}`` for each child.

Children are named by the server's numbers, and only this process kills them: it alone knows which process ids it has
not reaped yet, so that no signal can reach a stranger who got the id of a dead child.

A fork copies one thread only.  That is safe because there is one: nothing is computed here, and the environment sets
the thread pools of the libraries to one (``OMP_NUM_THREADS``); children ask for theirs after the fork.  Nor is CUDA
touched here, which works in no fork of a process that has used it.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, Final, NoReturn

from tru_vlm.video.decode_child import Decoder, send, serve, unready
from tru_vlm.video.decode_confinement import confine, die_with_parent
from tru_vlm.video.media import DecodeDevice

ORDER: Final = struct.Struct("!4sI")
"""A verb and a child's number."""
FORK: Final = b"fork"
KILL: Final = b"kill"


def main(arguments: list[str] | None = None) -> int:
    """Fork children until the server closes the socket."""
    options = _parse(arguments)
    logging.disable(logging.CRITICAL)  # the server logs what it is told; stderr leads nowhere
    confine()
    die_with_parent(options.parent_pid)
    control = socket.socket(fileno=options.fd)
    try:
        decoder = _load(options.reader, options.device, num_threads=options.num_threads)
    except Exception as error:  # noqa: BLE001 - whatever it is, the server must be told why there is no template
        send(control, unready(error))
        return 1
    gc.freeze()  # children's collections would copy every page of the libraries' objects
    send(control, {"ready": True})
    Template(control, decoder, memory_bytes=options.memory_bytes).run()
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Forks video decoders for its parent process; not for people.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--num-threads", type=int, required=True)
    parser.add_argument("--reader", required=True)
    parser.add_argument("--device", required=True)
    return parser.parse_args(arguments)


def _load(reader_setting: str, device: DecodeDevice, *, num_threads: int) -> Decoder:
    """Import the heavy libraries now, so that no child and no request waits for it."""
    import av.logging
    from PIL import Image

    from tru_vlm.video import reader

    av.logging.set_level(None)
    Image.preinit()
    return Decoder(name=reader.choose_reader(reader_setting, device), device=device, num_threads=num_threads)


class Template:
    """Obeys the server's orders and tells it of its children's ends."""

    def __init__(self, control: socket.socket, decoder: Decoder, *, memory_bytes: int) -> None:
        self._control = control
        self._decoder = decoder
        self._memory_bytes = memory_bytes
        self._pids: dict[int, int] = {}
        """Of each child that is not reaped yet, by its number."""
        self._wakeup, self._alarm = socket.socketpair()

    def run(self) -> None:
        """Work until the server closes the socket, or is gone; then no child is left."""
        self._wakeup.setblocking(False)
        self._alarm.setblocking(False)
        signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _noted)  # a handler of Python's must exist for the wakeup to be written
        try:
            while True:
                ready, _, _ = select.select([self._control, self._wakeup], [], [])
                if self._wakeup in ready:
                    self._wakeup.recv(4096)
                    self._reap()
                if self._control in ready and not self._obey():
                    return
        except ConnectionError:  # the server is gone
            return
        finally:
            for pid in self._pids.values():
                os.kill(pid, signal.SIGKILL)

    def _obey(self) -> bool:
        """Carry out one order; False when there will be no more."""
        data, fds, _, _ = socket.recv_fds(self._control, ORDER.size, 1, socket.MSG_WAITALL)
        if len(data) < ORDER.size:
            return False
        verb, number = ORDER.unpack(data)
        if verb == FORK:
            with socket.socket(fileno=fds[0]) as channel:
                self._fork(number, channel)
        elif number in self._pids:  # not reaped, so the id is still this child's
            os.kill(self._pids[number], signal.SIGKILL)
        return True

    def _fork(self, number: int, channel: socket.socket) -> None:
        parent_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            with suppress(ConnectionError):  # nobody waits for it any more
                send(channel, unready(error))
            self._tell({"ended": number, "status": 1})
            return
        if pid == 0:
            self._live(channel, parent_pid)
        self._pids[number] = pid

    def _live(self, channel: socket.socket, parent_pid: int) -> NoReturn:
        """Be a child.  It ends here, whatever happens: it must never go on as a second template."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for inherited in (self._control, self._wakeup, self._alarm):
                inherited.close()
            os.setsid()
            die_with_parent(parent_pid)
            status = serve(channel, self._decoder, memory_bytes=self._memory_bytes)
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Take note of every child that has ended."""
        for number, pid in list(self._pids.items()):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                del self._pids[number]
                self._tell({"ended": number, "status": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: dict[str, Any]) -> None:
        send(self._control, message)


def _noted(*_: object) -> None:
    """Nothing: the wakeup's byte says it."""


if __name__ == "__main__":
    sys.exit(main())
