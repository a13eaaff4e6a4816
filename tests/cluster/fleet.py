"""A Ray cluster on this machine, as its tests see it: nodes that come, and nodes that are killed."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

TIMEOUT = 400  # a bound for what hangs: a server on a new node imports PyTorch, beside what runs
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
    """The cluster, and the address of its gateway.

    It has as many servers as the requests in it want, which is one where there are none.
    """

    base: str
    storage: Path
    cluster: Any
    nodes: list[Any] = field(default_factory=list)
    _held: list[_Place] = field(default_factory=list)

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
        while True:
            with contextlib.suppress(RayError):  # a server that has died is still known for a while
                place = self._place(avoided=tuple(found))
                place.give_back()
                if place.residence.server in found:  # there is no other
                    return found
                found[place.residence.server] = place.residence.address

    def num_servers(self) -> int:
        """Those that are ready, where all are; 0 while one comes or goes."""
        from ray import serve

        states = serve.status().applications["tru"].deployments["server"].replica_states
        return states["RUNNING"] if set(states) == {"RUNNING"} else 0

    def hold(self) -> None:
        """Want all servers until :meth:`release`, also when one dies: two places are taken in each, for no question."""
        if self._held:
            return
        rush = [] if self.num_servers() == NUM_SERVERS else [self._place() for _ in range(2 * NUM_SERVERS)]
        wait_until(lambda: self.num_servers() == NUM_SERVERS, "all servers run")
        self._held = [self._place(server=name) for name in self.addresses() for _ in range(2)]
        for place in rush:
            place.give_back()

    def _place(self, **visit: Any) -> _Place:
        """As a request takes one."""
        from tru_vlm.cluster.visit import Visit

        return _Place(self._handle.options(stream=True).stay.remote(Visit(**visit)))

    @cached_property
    def _handle(self) -> Any:
        from ray import serve

        return serve.get_deployment_handle("server", app_name="tru")

    def close(self) -> None:
        """Stop what tells Ray of this process's places: it would start a cluster to do so when this one is gone."""
        self._handle.shutdown()

    def release(self) -> None:
        """Give the places back."""
        for place in self._held:
            place.give_back()
        self._held.clear()

    def ports(self) -> set[int]:
        """Those of the servers of which any process is left."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                environment = process.environ()
                if environment.get("STORAGE_DIR") == str(self.storage) and process.status() != psutil.STATUS_ZOMBIE:
                    found.add(int(environment["PORT"]))
        return found


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


class _Place:
    """A place in a server, until it is given back."""

    def __init__(self, stay: Any) -> None:
        self._stay = stay
        self.residence = next(iter(stay))

    def give_back(self) -> None:
        self._stay.cancel()
