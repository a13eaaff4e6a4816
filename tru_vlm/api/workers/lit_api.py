"""The LitAPI: LitServe's four hooks over an engine.  It knows no HTTP and no sockets; the loop calls it.

The hooks keep LitServe's names and order, with the meaning that iteration-level batching gives them:

* ``decode_request``: a submitted request (paths and numbers) becomes a model input (mapped frames);
* ``batch``: the inputs that join at this step;
* ``predict``: one step of the engine for all running rows;
* ``encode_response``: one row's event, as it is sent.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import litserve
import numpy as np

from tru_vlm.api.settled import settle_memory
from tru_vlm.api.workers.litserve_seams import own_worker_id
from tru_vlm.api.workers.orphans import ends_with_parent
from tru_vlm.api.workers.start_progress import StartNote, StartProgress, note_path
from tru_vlm.engine import create_engine
from tru_vlm.engine.base import Engine, EngineEvent, EngineRequest, FailEvent, MediaInput
from tru_vlm.errors import InternalError, TruError
from tru_vlm.settings import Settings
from tru_vlm.telemetry.exchange import on_behalf_of
from tru_vlm.telemetry.logs import adopt_libraries, configure_logs
from tru_vlm.telemetry.spans import Tracing, trace_target
from tru_vlm.types import FramesRef, WorkerRequest

logger = logging.getLogger(__name__)


class VideoLitAPI(litserve.LitAPI):
    """Answers questions about videos; one instance lives in each worker process.

    Args:
        settings: the server's configuration.
        socket_directory: private folder in which the worker listens.

    Attributes:
        num_cpu_engines: how many workers share the CPU, all models together; None counts this one's.
    """

    engine: Engine
    tracing: Tracing
    num_cpu_engines: int | None = None

    def __init__(self, settings: Settings, socket_directory: Path, **kwargs: object) -> None:
        super().__init__(stream=True, **kwargs)
        self.settings = settings
        self.socket_directory = socket_directory
        self.server_pid = os.getpid()  # built by the server, then copied into the workers

    def setup(self, device: str | Sequence[str]) -> None:
        """Load the model onto ``device`` (``"cpu"``, ``"cuda:0"``, ``"mps:0"``, or several cards); once per worker.

        Raises:
            ValueError: if the model cannot be loaded there; the text names the setting.
            InternalError: if it can, and answers nothing.
        """
        configure_logs(self.settings.log_format, self.settings.log_level)
        note = StartNote(note_path(self.socket_directory, own_worker_id()), self.settings.model_path)
        try:
            with ends_with_parent(self.server_pid):
                self.engine = self._started_engine(device, note)
        finally:
            note.remove()
        self.tracing = Tracing(trace_target(self.settings))
        self.tracing.start("worker")
        adopt_libraries()
        settle_memory()
        logger.info("worker %d answers with %s on %s", os.getpid(), self.engine.description.model_path, device)

    def _started_engine(self, device: str | Sequence[str], note: StartNote) -> Engine:
        begun = time.monotonic()
        logger.info("worker %d loads %s", os.getpid(), self.settings.model_path)
        note.tell(StartProgress("loading"))
        engine = create_engine(self.settings, device, num_cpu_engines=self.num_cpu_engines, on_loaded=note.loaded)
        loaded = time.monotonic()
        note.tell(StartProgress("warming_up", 1.0))
        engine.warm_up()
        logger.info("loaded in %.1f s, warmed up in %.1f s", loaded - begun, time.monotonic() - loaded)
        return engine

    def decode_request(self, request: WorkerRequest, **_: object) -> EngineRequest:
        """Map the frames of ``request`` into memory; pixels are read when the engine needs them.

        Raises:
            InternalError: if the frames are gone.
        """
        try:
            media = tuple(_open_media(ref) for ref in request.media)
        except OSError as error:
            logger.exception("request %s: frames cannot be opened", request.id)
            raise InternalError from error
        return EngineRequest(
            id=request.id,
            messages=request.messages,
            media=media,
            generation=request.generation,
            cache_salt=request.cache_salt,
            origin=request.origin,
        )

    def batch(self, inputs: Sequence[EngineRequest]) -> list[EngineRequest]:
        """What joins the running batch at this step."""
        return list(inputs)

    def predict(self, x: Sequence[EngineRequest], **_: object) -> list[EngineEvent]:
        """Take new requests in, advance every running row by one step, and return what happened, in order."""
        refused: list[EngineEvent] = []
        for request in x:
            with on_behalf_of(request.origin):
                if (error := self._submit(request)) is not None:
                    refused.append(FailEvent(request.id, error.info()))
        return [*refused, *self.engine.step()]

    def _submit(self, request: EngineRequest) -> TruError | None:
        """Hand a request to the engine; why it does not take it, or None."""
        try:
            self.engine.submit(request)
        except TruError as error:
            return error
        except Exception:
            logger.exception("request %s: the engine refused it", request.id)
            return InternalError()
        return None

    def encode_response(self, output: EngineEvent, **_: object) -> EngineEvent:
        """One row's event, as it crosses to the HTTP process."""
        return output

    def admit(self, request: WorkerRequest) -> EngineRequest | FailEvent:
        """``decode_request`` with its errors as data, so that they stay with their own request."""
        with on_behalf_of(request.origin):
            try:
                return self.decode_request(request)
            except TruError as error:
                return FailEvent(request.id, error.info())
            except Exception:
                logger.exception("request %s: decode_request failed", request.id)
                return FailEvent(request.id, InternalError().info())


def _open_media(ref: FramesRef) -> MediaInput:
    frames = np.load(ref.path, mmap_mode="r", allow_pickle=False)
    expected = (ref.num_frames, 3, ref.height, ref.width)
    if frames.dtype != np.uint8 or frames.shape != expected:
        raise OSError(f"frames of shape {frames.shape}, expected {expected}")
    return MediaInput(
        kind=ref.kind,
        frames=frames,
        content_key=ref.content_key,
        timestamps_seconds=ref.timestamps_seconds,
        frames_indices=ref.frames_indices,
        source_fps=ref.source_fps,
    )
