"""Every private corner of LitServe that this project touches, in one place; nothing else may.

``tests/api/workers/test_litserve_seams.py`` fails clearly when a new LitServe changes one of them.
Written against 0.2.19.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import litserve
import litserve.server
from litserve.connector import _Connector, check_cuda_with_nvidia_smi
from litserve.specs.base import LitSpec
from litserve.utils import WorkerSetupStatus

from tru_vlm.api.workers.placement import Placement, StartError, group_devices

logger = logging.getLogger(__name__)

# Where the package mcp is installed (vLLM brings it), LitServe mounts a route /mcp that this server does not offer, and
# falls over, since it means the package fastmcp.
litserve.server._MCP_AVAILABLE = False

# LitServe sets up handlers of its own.  Its lines go where ours go, see tru_vlm/telemetry/logs.py.
litserve.server.configure_logging = lambda *_args, **_kwargs: None

_OWN_ROUTES = frozenset({"/", "/health", "/info", "/docs", "/docs/oauth2-redirect", "/redoc"})
_MONITOR_SECONDS = 0.5
_START_SECONDS = 0.05
_ORPHAN_CHECK_SECONDS = 1.0

FAREWELL_SECONDS = 10
"""How long after the drain those may be told whose answers are cut short."""

WORKER_SECONDS = 30.0
"""How long workers may take to end. vLLM's processes need 7 to 20 s for it where others use the cores too."""


def end_processes(processes: Sequence[BaseProcess], seconds: float) -> None:
    """Tell all at once to end, wait until they have, and kill those that are left when the time is over."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            logger.error("process %s did not end within %g s; it is killed", process.pid, seconds)
            process.kill()
            process.join()


def devices_of(place: Placement) -> list[Any]:
    """The devices of a model's workers, as LitServe names them: ``["cpu"]``, or of each worker a list of cards.

    Raises:
        StartError: if there are no such devices, or they cannot be shared out.
    """
    numbers = place.device_numbers
    connector = _Connector(accelerator=place.accelerator, devices=place.num_devices or "auto")
    if numbers is not None:
        num_cards = check_cuda_with_nvidia_smi() if connector.accelerator == "cuda" else 0
        if missing := [number for number in numbers if number >= num_cards]:
            raise StartError(
                f"MODELS: {place.model}.devices: there is no CUDA device {missing[0]}; this machine has {num_cards}."
            )
    if connector.accelerator == "cpu":
        return group_devices(["cpu"], place.devices_per_worker)
    cards = range(connector.devices) if numbers is None else numbers
    return group_devices([[f"{connector.accelerator}:{number}"] for number in cards], place.devices_per_worker)


def own_worker_id() -> int:
    """Which of its model's workers this process is, from 0."""
    return int(os.environ["LITSERVE_WORKER_ID"])


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
        lit_apis: of each model, what runs in its workers; their ``api_path`` tells them apart.
        placements: of each model, where they run.

    Raises:
        StartError: if there are no such devices, or they cannot be shared out so.
    """

    def __init__(self, lit_apis: Sequence[litserve.LitAPI], placements: Sequence[Placement]) -> None:
        super().__init__(
            list(lit_apis),
            accelerator=placements[0].accelerator,
            workers_per_device=[place.workers_per_device for place in placements],
            restart_workers=True,
            timeout=False,
        )
        self._places = {api.api_path: place for api, place in zip(lit_apis, placements, strict=True)}
        self._devices_of = {path: devices_of(place) for path, place in self._places.items()}
        self._main_pid = os.getpid()  # this object is built in the main process and copied into the others
        self.monitor_internal = _MONITOR_SECONDS
        self._refusal = multiprocessing.get_context("fork").SimpleQueue()
        self._num_signals = 0
        self._is_hurried = multiprocessing.get_context("fork").RawValue(ctypes.c_bool, False)
        self._sockets: list[socket.socket] = []
        self._drop_own_routes()

    def worker_devices(self) -> dict[str, list[list[str]]]:
        """Of each model by name, the devices of each of its workers."""
        return {
            place.model: [
                [name] if isinstance(name, str) else name for name in self._inference_workers_config_for_api(path)
            ]
            for path, place in self._places.items()
        }

    def _inference_workers_config_for_api(self, api_path: str) -> list[Any]:
        # LitServe has one list of devices for all models.
        devices: list[Any] = self._devices_of[api_path] * self._places[api_path].workers_per_device
        return devices

    def verify_worker_status(self) -> None:
        """Nothing to wait for: LitServe would open the port only when a model has loaded, and nobody could be told."""

    def _start_worker_monitoring(self, manager: Any, uvicorn_workers: Any) -> None:
        # LitServe starts a worker again as often as it ends; one that has never come up never will.
        self.wait_until_up()
        super()._start_worker_monitoring(manager, uvicorn_workers)

    def wait_until_up(self) -> None:
        """Wait until each model has a worker that is ready, or the server is told to stop.

        Raises:
            StartError: if one fails or dies first.
        """
        waiting = {path.rpartition("/")[-1]: place.model for path, place in self._places.items()}
        while not self._shutdown_event.is_set():
            states = [(key.rpartition("_")[0], state) for key, state in self.workers_setup_status.items()]
            for endpoint, state in states:
                if state == WorkerSetupStatus.READY:
                    waiting.pop(endpoint, None)
            if not waiting:
                return
            for endpoint, state in states:
                if state == WorkerSetupStatus.ERROR and endpoint in waiting:
                    raise StartError(f"A worker could not load the model {waiting[endpoint]}; the lines above say why.")
            if not all(worker.is_alive() for worker in self.inference_workers):
                names = " or ".join(waiting.values())
                raise StartError(f"A worker process died while it loaded the model {names} (out of memory?).")
            time.sleep(_START_SECONDS)

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
        """Run until SIGTERM or SIGINT, then drain: take nothing new, let running answers end, and stop the workers.

        A second signal cuts running answers short.

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
                    log_config=None,
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

    def _start_server(
        self, port: int, num_servers: int, log_level: str, sockets: list[socket.socket], *args: Any, **kwargs: Any
    ) -> Any:
        servers = super()._start_server(port, num_servers, log_level, sockets, *args, **kwargs)
        self._sockets = sockets
        # LitServe has one number for both: how long uvicorn drains, and when its process is killed.  It must have time
        # after the drain to tell those whose answers are cut short.
        self.uvicorn_graceful_timeout += FAREWELL_SECONDS
        self._on_started()
        return servers

    def _perform_graceful_shutdown(self, manager: Any, uvicorn_workers: Any, shutdown_reason: str = "normal") -> None:
        # LitServe's own ends the workers one after the other and gives each 5 s, in which vLLM does not end.
        self._transport.close(send_sentinel=shutdown_reason != "keyboard_interrupt")
        end_processes(list(uvicorn_workers.values()), self.uvicorn_graceful_timeout)
        # This process and the manager's hold the port, too: who connects while workers end would wait for them.
        for listening in self._sockets:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
        end_processes(self.inference_workers, WORKER_SECONDS)
        manager.shutdown()

    @contextlib.contextmanager
    def _terminate_gracefully(self) -> Iterator[None]:
        """Turn SIGTERM into what LitServe's ``run`` waits for; its default would orphan every child."""

        def on_signal(_signum: int, _frame: FrameType | None) -> None:
            if self._shutdown_event is None:
                raise KeyboardInterrupt
            self._num_signals += 1
            if self._num_signals > 1:
                self._is_hurried.value = True
            # Not from this thread: it waits on the same manager connection, which is one per thread.
            threading.Thread(target=self._shutdown_event.set, daemon=True).start()

        previous = {name: signal.signal(name, on_signal) for name in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)

    def is_hurried(self) -> bool:
        """In any process: whether the server has been told to stop more than once."""
        return bool(self._is_hurried.value)

    def _stop_processes(self) -> None:
        end_processes(self.inference_workers, WORKER_SECONDS)
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
