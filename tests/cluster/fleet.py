"""A Ray cluster on this machine, as its tests see it: nodes that come, and nodes that are killed."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

TIMEOUT = 120
NUM_SERVERS = 2
OBJECT_STORE_BYTES = 80 << 20


def wait_until(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
    """Look again and again until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


@dataclass
class Fleet:
    """The cluster, and the address of its gateway."""

    base: str
    storage: Path
    cluster: Any
    nodes: list[Any] = field(default_factory=list)

    def add_node(self) -> None:
        """A machine with room for one server."""
        self.nodes.append(
            self.cluster.add_node(
                num_cpus=1, resources={"server": 1}, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False
            )
        )

    def kill_node(self, node: Any) -> None:
        """As if its plug were pulled: the raylet, the actors in it and their servers are gone at once."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        family = [raylet, *raylet.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        # Those whose parent was killed may stay as zombies, where the first process of a container reaps nobody.
        wait_until(lambda: not any(map(_is_alive, family)), "the node's processes are gone")
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def node_of(self, address: str) -> Any:
        """The node on which the server at ``address`` runs."""
        port = int(address.rpartition(":")[2])
        for node in self.nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in raylet.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if any(c.laddr.port == port and c.status == "LISTEN" for c in process.net_connections("tcp")):
                        return node
        raise LookupError(address)

    def addresses(self) -> dict[str, str]:
        """The servers that are ready, by name."""
        from ray.exceptions import RayError

        found: dict[str, str] = {}
        for number in range(20):
            with contextlib.suppress(RayError):  # a server that has died is still known for a while
                residence = _residence(f"look {number}")
                found[residence.server] = residence.address
        return found

    def is_ready(self) -> bool:
        """Whether all servers are."""
        from ray import serve

        servers = serve.status().applications["tru"].deployments["server"]
        return servers.replica_states.get("RUNNING", 0) == NUM_SERVERS


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _residence(key: str) -> Any:
    from ray import serve

    from tru_vlm.cluster.visit import Visit

    stay = serve.get_deployment_handle("server", app_name="tru").options(stream=True).stay.remote(Visit(key))
    try:
        return next(iter(stay))
    finally:
        stay.cancel()
