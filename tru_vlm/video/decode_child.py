"""The process decodes files that nobody trusts, one at a time, and may be killed at any moment; it knows no HTTP.

It is a fork of the template (see :mod:`tru_vlm.video.decode_template`), which has loaded the libraries.  Requests and
answers are lines of JSON on a socket (not on stdout: libraries print there).  For each request it first says
``{"accepted": id}``, so that the server knows whether a death was the file's doing, then ``{"id", "result"}`` or
``{"id", "error"}``.  Frames go to the file that the request names, never through the socket.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import traceback
from pathlib import Path
from typing import Any

from tru_vlm.video.decode_confinement import limit_cpu, limit_memory
from tru_vlm.video.failures import DecodeFailure, DecodeSetupError
from tru_vlm.video.media import DecodeDevice, EffectiveSampling


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What decodes; its libraries are loaded."""

    name: str
    device: DecodeDevice
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
        target = reader.FramesFile(Path(request["out_path"]), request["max_bytes"])
        limit = request["max_source_pixels"]
        if is_image:
            return reader.sample_image(path, sampling, target, max_source_pixels=limit).as_dict()
        return reader.sample_video(
            path,
            sampling,
            target,
            reader=self.name,
            num_threads=self.num_threads,
            device=self.device,
            max_source_pixels=limit,
            max_video_seconds=request["max_video_seconds"],
        ).as_dict()


def serve(channel: socket.socket, decoder: Decoder, *, memory_bytes: int) -> int:
    """Serve requests until the server closes the socket; returns the exit status."""
    import torch

    from tru_vlm.video import reader

    try:
        # Here, not in the template: neither threads nor CUDA survive a fork.
        torch.set_num_threads(decoder.num_threads)
        limit_memory(memory_bytes, decoder.device)
        reader.check_device(decoder.device)
    except Exception as error:  # noqa: BLE001 - whatever it is, the server must be told why there is no child
        send(channel, unready(error))
        return 1
    send(channel, {"ready": True, "pid": os.getpid(), "decoder": decoder.name})
    with channel.makefile("rb") as lines:
        for line in lines:
            if not _serve_one(channel, decoder, json.loads(line)):
                break
    return 0


def _serve_one(channel: socket.socket, decoder: Decoder, request: dict[str, Any]) -> bool:
    """Do one request and answer it; False when this process should not do another one."""
    send(channel, {"accepted": request["id"]})
    limit_cpu(request["cpu_seconds"])
    goes_on = True
    try:
        answer = {"result": decoder.work(request)}
    except DecodeFailure as failure:
        answer = {"error": _describe(failure)}
    except Exception as error:  # noqa: BLE001 - a fault of ours must reach the server's log
        answer, goes_on = {"error": _describe(_unexpected(error))}, False
    send(channel, {"id": request["id"], **answer})
    return goes_on


def _unexpected(error: Exception) -> DecodeFailure:
    """Memory that ran out, in the words of each library; anything else is a fault of ours."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "cannot allocate memory" in text:
        return DecodeFailure("decode_memory", stage="decode", cause=str(error))
    return DecodeFailure("internal", stage="decode", cause=traceback.format_exc())


def _describe(failure: DecodeFailure) -> dict[str, Any]:
    return {"code": failure.code, "detail": failure.detail, "stage": failure.stage, "cause": failure.cause}


def unready(error: Exception) -> dict[str, Any]:
    """The greeting of a process that cannot work."""
    told = isinstance(error, DecodeSetupError)
    return {"ready": False, "reason": str(error) if told else f"{type(error).__name__}: {error}"}


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Write one line of JSON."""
    channel.sendall(json.dumps(message).encode() + b"\n")
