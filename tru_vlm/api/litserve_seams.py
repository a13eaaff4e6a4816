"""Every private corner of LitServe that this project touches, in one place; nothing else may.

``tests/api/test_litserve_seams.py`` fails clearly when a new LitServe changes one of them.  Written against 0.2.19.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import litserve
import litserve.server
from litserve.specs.base import LitSpec
from litserve.utils import WorkerSetupStatus

logger = logging.getLogger(__name__)

# Where the package mcp is installed (vLLM brings it), LitServe mounts a route /mcp that this server does not offer, and
# falls over, since it means the package fastmcp.
litserve.server._MCP_AVAILABLE = False

_OWN_ROUTES = frozenset({"/", "/health", "/info", "/docs", "/docs/oauth2-redirect", "/redoc"})
_MONITOR_SECONDS = 0.5
_ORPHAN_CHECK_SECONDS = 1.0
_FAREWELL_SECONDS = 10


class StartError(RuntimeError):
    """The server cannot start; the text says why, for the operator."""


def group_devices(devices: list[Any], devices_per_worker: int) -> list[Any]:
    """LitServe's list of devices with several in the place of one.

    Args:
        devices: of each worker, a list of one name; ``["cpu"]`` where there are no cards.
        devices_per_worker: how many a worker shall have.

    Raises:
        StartError: if that leaves some over, or there are no cards.
    """
    if devices_per_worker == 1:
        return devices
    names = [name for names in devices for name in ([names] if isinstance(names, str) else names)]
    if len(names) % devices_per_worker or not all(name.startswith("cuda") for name in names):
        raise StartError(
            f"VLLM_TENSOR_PARALLEL_SIZE={devices_per_worker}: a worker needs as many CUDA devices, and the devices are "
            f"{', '.join(names)}. Set DEVICES to a multiple of it."
        )
    return [names[start : start + devices_per_worker] for start in range(0, len(names), devices_per_worker)]


class OwnRoutesSpec(LitSpec):
    """Tells LitServe that the LitAPI's routes are registered elsewhere (in ``api/routes``)."""

    def __init__(self, api_path: str) -> None:
        super().__init__()
        self.api_path = api_path

    @property
    def stream(self) -> bool:
        """Streaming, so that LitServe adds no gzip layer (which would hold events back)."""
        return True


class WorkerServer(litserve.LitServer):
    """LitServe for processes and devices; routes, queues and lifetimes of requests are ours.

    Args:
        lit_api: what runs in the workers.
        devices_per_worker: neighbouring devices that one worker has together.

    Raises:
        StartError: if the devices cannot be shared out so.
    """

    devices: list[Any]

    def __init__(self, lit_api: litserve.LitAPI, *, devices_per_worker: int = 1, **kwargs: Any) -> None:
        super().__init__(lit_api, restart_workers=True, timeout=False, **kwargs)
        self.devices = group_devices(self.devices, devices_per_worker)
        self._main_pid = os.getpid()  # this object is built in the main process and copied into the others
        self.monitor_internal = _MONITOR_SECONDS
        self._refusal = multiprocessing.get_context("fork").SimpleQueue()
        self._drop_own_routes()

    def num_workers(self) -> int:
        """How many worker processes this server runs, over all devices."""
        return sum(len(self._inference_workers_config_for_api(api.api_path)) for api in self.litapi_connector)

    def verify_worker_status(self) -> None:
        """Wait until one worker is ready.

        Raises:
            StartError: if one fails or dies first.  (LitServe's own would wait for ever for one that was killed.)
        """
        while True:
            states = self.workers_setup_status.values()
            if any(state == WorkerSetupStatus.READY for state in states):
                return
            if any(state == WorkerSetupStatus.ERROR for state in states):
                raise StartError("A worker could not load the model; the lines above say why.")
            if self._shutdown_event.is_set():
                raise StartError("Stopped while the model was loading.")
            if not all(worker.is_alive() for worker in self.inference_workers):
                raise StartError("A worker process died while it loaded the model (out of memory?).")
            time.sleep(0.05)

    def serve(
        self,
        *,
        host: str,
        port: int,
        drain_seconds: int,
        log_level: str,
        on_started: Callable[[], None],
        uvicorn_options: dict[str, Any],
    ) -> None:
        """Run until SIGTERM or SIGINT, then drain: stop accepting, let running answers end, and stop the workers.

        ``on_started`` is called once the HTTP process has been forked (no thread of ours may run before that);
        ``uvicorn_options`` are further arguments of ``uvicorn.Config``.

        Raises:
            StartError: if the workers or the HTTP process do not come up.
        """
        self.uvicorn_graceful_timeout = drain_seconds
        self._on_started = on_started
        try:
            with self._terminate_gracefully():
                self.run(
                    host=host,
                    port=port,
                    num_api_servers=1,
                    log_level=log_level,
                    generate_client_file=False,
                    access_log=False,
                    **uvicorn_options,
                )
        except StartError:
            self._stop_processes()
            raise
        if not self._refusal.empty():
            raise StartError(self._refusal.get())

    def _init_manager(self, num_api_servers: int) -> Any:
        # The manager's process inherits how signals are handled.  It must outlive a signal to the whole group, or
        # nobody could wait for the drain; it ends when this process tells it to.
        previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            return super()._init_manager(num_api_servers)
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _start_server(self, *args: Any, **kwargs: Any) -> Any:
        servers = super()._start_server(*args, **kwargs)
        # LitServe has one number for both: how long uvicorn drains, and when its process is killed.  It must have time
        # after the drain to tell those whose answers are cut short.
        self.uvicorn_graceful_timeout += _FAREWELL_SECONDS
        self._on_started()
        return servers

    @contextlib.contextmanager
    def _terminate_gracefully(self) -> Iterator[None]:
        """Turn SIGTERM into what LitServe's ``run`` waits for; its default would orphan every child."""

        def on_signal(_signum: int, _frame: FrameType | None) -> None:
            if self._shutdown_event is None:
                raise KeyboardInterrupt
            # Not from this thread: it waits on the same manager connection, which is one per thread.
            threading.Thread(target=self._shutdown_event.set, daemon=True).start()

        previous = {name: signal.signal(name, on_signal) for name in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)

    def _stop_processes(self) -> None:
        for worker in self.inference_workers:
            worker.terminate()
            worker.join()
        if self.transport_config.manager is not None:
            self.transport_config.manager.shutdown()

    def refuse_to_start(self, reason: str) -> None:
        """In the HTTP process: stop the server, which would wait for ever for an HTTP process that did not come up."""
        self._refusal.put(reason)
        self._shutdown_event.set()

    async def end_with_parent(self) -> None:
        """In the HTTP process: drain and stop when the parent was killed and cannot tell anybody any more."""
        manager = self.transport_config.manager._process.pid
        while os.getppid() == self._main_pid:  # noqa: ASYNC110 - nothing sets an event when a parent dies
            await asyncio.sleep(_ORPHAN_CHECK_SECONDS)
        logger.error("the main process is gone; stopping")
        with contextlib.suppress(ProcessLookupError):
            os.kill(manager, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _drop_own_routes(self) -> None:
        """Remove LitServe's and FastAPI's pages that ours replace; the first registered would win otherwise."""
        router = self.app.router
        router.routes[:] = [route for route in router.routes if getattr(route, "path", None) not in _OWN_ROUTES]
