"""The worker's loop: messages in, the LitAPI's four hooks, events out.  It never sees a tensor or an HTTP request.

It replaces LitServe's loops (it overrides ``__call__``), because those finish one batch before the next may begin,
lose errors and cannot be cancelled (design, section 3).  Here a request joins at the next step and leaves when done.
"""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from types import FrameType
from typing import Any

from litserve.loops.base import LitLoop

from tru_vlm.api.workers.link import Abort, Hello, Submit, ToWorker, WorkerLink, socket_path
from tru_vlm.api.workers.lit_api import VideoLitAPI
from tru_vlm.api.workers.record import WorkerRecord
from tru_vlm.engine.base import Engine, EngineEvent, EngineRequest, FailEvent, FinishEvent

logger = logging.getLogger(__name__)

_ORPHAN_CHECK_SECONDS = 5.0
_REPORT_SECONDS = 0.5
"""A long prefill yields no events for a while; this often the engine's state is told nevertheless."""


def hello(worker_id: int, engine: Engine) -> Hello:
    """Who this process is, and how its engine."""
    return Hello(worker_id, os.getpid(), engine.description, engine.stats())


class StepLoop(LitLoop):
    """One iteration takes what has arrived, runs one engine step, and sends what it produced."""

    _record: WorkerRecord

    def __call__(  # noqa: PLR0917 - LitServe's signature
        self,
        lit_api: VideoLitAPI,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        """Run until the process is terminated or its parent is gone.

        An exception that leaves the engine ends the process: every request it held gets an error through the closed
        link, and LitServe starts a fresh worker.
        """
        del device, request_queue, transport, workers_setup_status, callback_runner  # LitServe's; see docs/adr/0001
        link = WorkerLink(socket_path(lit_api.socket_directory, worker_id), partial(hello, worker_id, lit_api.engine))
        is_stopping = False
        self._record = WorkerRecord(lit_api.tracing)

        def stop(_signum: int, _frame: FrameType | None) -> None:
            nonlocal is_stopping
            is_stopping = True
            link.wake()

        # Ctrl-C and some supervisors signal every process of the group at once.  Running answers must be able to end:
        # a worker stops when it has been told to and the HTTP process has drained and gone.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, stop)
        try:
            while os.getppid() == lit_api.server_pid and (link.is_connected or not is_stopping):
                self._iterate(lit_api, link)
        except Exception as error:
            logger.exception("the engine failed; this worker ends")
            raise SystemExit(1) from error
        finally:
            link.close()
            lit_api.engine.close()
            lit_api.tracing.close()

    def _iterate(self, lit_api: VideoLitAPI, link: WorkerLink) -> None:
        engine = lit_api.engine
        if not engine.has_work():
            link.report()  # vLLM counts a step a moment after its last event
        # Busy: look without waiting.  Idle: sleep in select, waking only to see that the parent still lives.
        timeout_seconds = 0.0 if engine.has_work() else _ORPHAN_CHECK_SECONDS
        joining, events = self._take(lit_api, link, link.receive(timeout_seconds))
        if joining:
            link.flush()  # the next step may be a long one
        if joining or engine.has_work():
            events += lit_api.predict(lit_api.batch(joining))
        if events:
            self._record.happened(events)
            link.send([lit_api.encode_response(event) for event in events])
        else:
            link.flush()
            if engine.has_work() and link.seconds_since_told > _REPORT_SECONDS:
                link.report()
        for event in events:
            if isinstance(event, FinishEvent | FailEvent):
                link.forget(event.request_id)

    def _take(
        self, lit_api: VideoLitAPI, link: WorkerLink, messages: list[ToWorker]
    ) -> tuple[list[EngineRequest], list[EngineEvent]]:
        """Requests that join now, and the failures of those that cannot."""
        joining: dict[str, EngineRequest] = {}
        failed: list[EngineEvent] = []
        for message in messages:
            match message:
                case Submit(request):
                    self._record.taken(request)
                    admitted = lit_api.admit(request)
                    if isinstance(admitted, FailEvent):
                        failed.append(admitted)
                    else:
                        joining[request.id] = admitted
                case Abort(request_id):
                    if joining.pop(request_id, None) is None:
                        lit_api.engine.abort(request_id)
                    else:  # aborted before it joined: it never reaches the engine
                        self._record.dropped(request_id)
                        link.forget(request_id)
        return list(joining.values()), failed
