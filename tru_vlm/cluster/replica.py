"""A server as a Ray Serve replica: started, watched and stopped here.  Requests reach it by its own port, not here.

What passes through Serve is a *stay*: a call that lasts as long as a request does.  By it Serve chooses the replica,
counts what is going on in it, scales, and tells when its node is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import httpx
import ray
import ray.util
from ray import serve

from tru_vlm.cluster.ports import free_port
from tru_vlm.cluster.visit import Visit

logger = logging.getLogger("ray.serve")

_POLL_SECONDS = 0.2
_PROBE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Residence:
    """Where a request was sent.

    Attributes:
        server: the replica's name.
        address: of its server, ``http://host:port``.
    """

    server: str
    address: str


class ServerReplica:
    """One whole server: HTTP, decoding and engine, with the devices that Ray gave to this actor.

    Args:
        settings: the server's settings by the names of their variables; they win over the node's environment.
        start_seconds: longest time until its model has loaded.
        stop_seconds: longest time in which it ends by itself.
        stay_seconds: longest time that a request is counted.
    """

    def __init__(
        self, settings: Mapping[str, str], *, start_seconds: float, stop_seconds: float, stay_seconds: float
    ) -> None:
        host = ray.util.get_node_ip_address()
        bound = host if host == "127.0.0.1" else "::" if ":" in host else "0.0.0.0"  # noqa: S104 - the gateways' way in
        port = free_port(bound)
        self._stop_seconds, self._stay_seconds = stop_seconds, stay_seconds
        self._residence = Residence(serve.get_replica_context().replica_tag, _address(host, port))
        environment = {
            **os.environ,
            "STORAGE_SHARED": "true",
            **_device_settings(len(ray.get_gpu_ids())),
            **settings,
            "HOST": bound,
            "PORT": str(port),
        }
        # The end of its input kills it, see guarded.py; `communicate` ends it, and waits.
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tru_vlm.cluster.guarded"], stdin=subprocess.PIPE, env=environment
        )
        self._wait_until_ready(start_seconds)

    def _wait_until_ready(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check_running()
            try:
                if httpx.get(f"{self._residence.address}/v1/health/ready", trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(_POLL_SECONDS)
        self._server.communicate()
        raise RuntimeError(f"The server did not become ready within {seconds:g} s.")

    def _check_running(self) -> None:
        if (status := self._server.poll()) is not None:
            raise RuntimeError(f"The server has ended with status {status}; its log says why.")

    async def stay(self, visit: Visit) -> AsyncIterator[Residence]:
        """Tell where the server is, and go on until the caller cancels this, or for as long as a request may last."""
        del visit  # the router has read it
        yield self._residence
        await asyncio.sleep(self._stay_seconds)

    async def check_health(self) -> None:
        """Called by Serve; what it raises makes Serve replace this replica."""
        self._check_running()
        async with httpx.AsyncClient(trust_env=False, timeout=_PROBE_SECONDS) as client:
            (await client.get(f"{self._residence.address}/v1/health/live")).raise_for_status()

    def __del__(self) -> None:
        """Called by Serve when the stays have ended: the server drains what is left, and ends."""
        server = getattr(self, "_server", None)
        if server is None or server.poll() is not None:
            return
        server.terminate()
        try:
            server.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            logger.warning("the server did not end within %g s; it is killed", self._stop_seconds)
        server.communicate()


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _device_settings(num_gpus: int) -> dict[str, str]:
    """CUDA shows an actor its own cards only; the server must not count those of the whole machine."""
    return {"DEVICE": "cuda", "DEVICES": str(num_gpus)} if num_gpus else {"DEVICE": "cpu"}
