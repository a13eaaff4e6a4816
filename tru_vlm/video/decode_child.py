"""The process decodes files that nobody trusts, one at a time, and may be killed at any moment; it knows no HTTP.

Run as ``python -m tru_vlm.video.decode_child``.  Requests and answers are lines of JSON on an inherited socket (not on
stdout: libraries print there).  For each request it first says ``{"accepted": id}``, so that the parent knows whether
a death was the file's doing, then ``{"id", "result"}`` or ``{"id", "error"}``.  Frames go to the file that the request
names, never through the socket.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import logging
import math
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from tru_vlm.video.failures import DecodeFailure
from tru_vlm.video.media import EffectiveSampling

MEBIBYTE = 1 << 20
ROOM_BYTES = 256 * MEBIBYTE
"""Address space that must be left for files after the libraries have loaded."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000


def main(arguments: list[str] | None = None) -> int:
    """Serve requests until the parent closes the socket."""
    options = _parse(arguments)
    logging.disable(logging.CRITICAL)  # the parent logs what it is told; stderr leads nowhere
    _cut_off_network()
    _die_with_parent(options.parent_pid)
    channel = socket.socket(fileno=options.fd)
    try:
        decoder = _load(options)
        _limit_memory(options.memory_bytes)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must be told why there is no child
        _send(channel, {"ready": False, "reason": f"{type(error).__name__}: {error}"})
        return 1
    _send(channel, {"ready": True, "decoder": decoder.name, "states": decoder.states})
    with channel.makefile("rb") as lines:
        for line in lines:
            if not _serve(channel, decoder, json.loads(line)):
                break
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Decodes videos for its parent process; not for people.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--num-threads", type=int, required=True)
    parser.add_argument("--reader", required=True)
    return parser.parse_args(arguments)


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """The loaded libraries and what they said about themselves."""

    name: str
    states: dict[str, str]
    reader: str
    num_threads: int

    def work(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one request."""
        from tru_vlm.video import reader

        path = Path(request["path"])
        is_image = request["kind"] == "image"
        if request["op"] == "probe":
            probe = reader.probe_image(path) if is_image else reader.probe_video(path)
            return dataclasses.asdict(probe)
        sampling = EffectiveSampling(**request["sampling"])
        out_path = Path(request["out_path"])
        if is_image:
            limit = request["max_source_pixels"]
            return reader.sample_image(path, sampling, out_path, max_source_pixels=limit).as_dict()
        info = reader.sample_video(path, sampling, out_path, reader=self.reader, num_threads=self.num_threads)
        return info.as_dict()


def _load(options: argparse.Namespace) -> _Decoder:
    """Import the heavy libraries now, so that no request waits for it."""
    import av.logging
    import torch

    from tru_vlm.video import reader

    torch.set_num_threads(options.num_threads)
    av.logging.set_level(None)
    name = reader.choose_reader(options.reader)
    return _Decoder(
        name=name, states=reader.decoder_states(options.reader), reader=options.reader, num_threads=options.num_threads
    )


def _serve(channel: socket.socket, decoder: _Decoder, request: dict[str, Any]) -> bool:
    """Do one request and answer it; False when this process should not do another one."""
    _send(channel, {"accepted": request["id"]})
    _limit_cpu(request["cpu_seconds"])
    goes_on = True
    try:
        answer = {"result": decoder.work(request)}
    except DecodeFailure as failure:
        answer = {"error": _describe(failure)}
    except Exception as error:  # noqa: BLE001 - a fault of ours must reach the parent's log
        answer, goes_on = {"error": _describe(_unexpected(error))}, False
    _send(channel, {"id": request["id"], **answer})
    return goes_on


def _unexpected(error: Exception) -> DecodeFailure:
    """Memory that ran out, in the words of each library; anything else is a fault of ours."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "cannot allocate memory" in text:
        return DecodeFailure("decode_memory", stage="decode", cause=str(error))
    return DecodeFailure("internal", stage="decode", cause=traceback.format_exc())


def _describe(failure: DecodeFailure) -> dict[str, Any]:
    return {"code": failure.code, "detail": failure.detail, "stage": failure.stage, "cause": failure.cause}


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def _limit_memory(memory_bytes: int) -> None:
    """Bound the address space; a core dump would hold the user's video.

    Raises:
        ValueError: the libraries alone take nearly all of it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = _address_space_bytes()
    if used + ROOM_BYTES > memory_bytes:
        needed = math.ceil((used + ROOM_BYTES) / MEBIBYTE)
        raise ValueError(
            f"DECODE_MEMORY_BYTES is {memory_bytes}; the decoding libraries need at least {needed} MiB "
            f"({needed * MEBIBYTE})"
        )
    if sys.platform == "linux":  # macOS refuses to lower it
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _address_space_bytes() -> int:
    """Address space in use; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _limit_cpu(cpu_seconds: float) -> None:
    """Allow this many more seconds of CPU time, all threads together; beyond them the system ends the process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + cpu_seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _die_with_parent(parent_pid: int) -> None:
    """Be killed when the parent is (Linux); elsewhere the socket's end is what ends this process."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)


def _cut_off_network() -> None:
    """Live in a network namespace without interfaces, where the system allows it: a decoder has nothing to call.

    Must come before threads start: a user namespace is for single-threaded processes.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


if __name__ == "__main__":
    sys.exit(main())
