"""Is the server alive, and what is it made of."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, PlainTextResponse, Response

import tru_vlm
from tru_vlm.api.background_jobs.service import JobService
from tru_vlm.api.pipeline.models import Model, Models
from tru_vlm.api.readings import Readings
from tru_vlm.api.service import InferenceService
from tru_vlm.api.stopping import Drain
from tru_vlm.api.workers.affinity import AffinityStats
from tru_vlm.api.workers.pool import WorkerState
from tru_vlm.api.workers.start_progress import StartProgress
from tru_vlm.engine.base import EngineStats

_UP = {"content": {"application/json": {"example": {"status": "ok"}}}}
_DOWN = {
    "description": (
        "No worker can answer yet, or any more. `status` is `starting`, `loading` or `warming_up`, of the model that "
        "is behind the others; `weights_loaded` is the share of its weights that has been read, where that is known. "
        "It is `draining` when the server has been told to stop: what runs goes on, and nothing new is taken."
    ),
    "content": {"application/json": {"example": {"status": "loading", "weights_loaded": 0.42}}},
}
_READY: dict[int | str, dict[str, Any]] = {200: _UP, 503: _DOWN}
_LIVE: dict[int | str, dict[str, Any]] = {200: _UP}


def build_router(service: InferenceService, jobs: JobService, drain: Drain) -> APIRouter:
    """The health routes over ``service``."""
    router = APIRouter(tags=["health"])

    def status() -> str:
        return "draining" if drain.has_begun else _overall(service.models)

    def readiness() -> Response:
        now = status()
        if now == "unavailable":
            return JSONResponse(_start(service.models), 503)
        return JSONResponse({"status": now}, 503 if now == "draining" else 200)

    @router.get("/v1/health", responses=_READY)
    async def health() -> Response:
        """503 until every model has come up; then 200 while at least one worker can answer, and the server takes work.

        A model whose workers are all gone is told of by `/v1/health/detailed`; the others go on.
        """
        return readiness()

    @router.get("/v1/health/live", responses=_LIVE)
    async def live() -> Response:
        """Whether the process answers: 200 also while every worker loads its model again, or it drains.  Needs no key.

        Who gets no answer may restart the server.
        """
        return JSONResponse({"status": "ok"})

    @router.get("/v1/health/ready", responses=_READY)
    async def ready() -> Response:
        """Whether to send requests here: 503 until every model has come up, while no worker can answer, and in a drain.

        A model has come up when a worker has loaded it and has answered a first question of its own.

        Needs no key.  A server that has been told to stop says `draining` from that moment on.
        """
        return readiness()

    @router.get("/health", include_in_schema=False)
    async def litserve_health() -> Response:
        """Where LitServe's own tools look."""
        is_up = status() not in {"unavailable", "draining"}
        return PlainTextResponse("ok" if is_up else "not ready", 200 if is_up else 503)

    @router.get("/v1/health/detailed", responses={200: {"description": "Model, workers, queue, decoders, limits."}})
    async def detailed() -> dict[str, Any]:
        """Models, backends, device memory, queue depth, worker states, decoder backends, limits.

        `model` is the first of `models`; `workers` are those of all models; `metrics` has what `/metrics` reads at
        each look, under the same words.
        """
        return {
            "status": status(),
            "version": tru_vlm.__version__,
            "model": _identity(next(iter(service.models))),
            "models": [_model(model) for model in service.models],
            "aliases": service.models.aliases,
            "default_model": service.models.default,
            "workers": [_worker(model, state) for model in service.models for state in model.workers.states()],
            "queue": {
                "num_open": service.num_open,
                "num_running": sum(model.workers.num_running for model in service.models),
                "num_waiting": sum(model.workers.num_waiting for model in service.models),
                "max_queued_requests": service.settings.max_queued_requests,
            },
            "affinity": _sum([model.workers.affinity_stats() for model in service.models]),
            "video": dataclasses.asdict(service.videos.stats()),
            "metrics": Readings(service).by_word(),
            "library": dataclasses.asdict(await service.library.store.stats()),
            "jobs": await jobs.stats(),
            "limits": {
                "max_new_tokens": service.settings.max_new_tokens,
                "max_upload_bytes": service.settings.max_upload_bytes,
                "max_video_seconds": service.settings.max_video_seconds,
                "max_video_frames": service.settings.max_video_frames,
                "request_timeout_seconds": service.settings.request_timeout_seconds,
            },
        }

    return router


def _overall(models: Models) -> str:
    if not all(model.workers.has_met for model in models):
        return "unavailable"  # still starting
    return _status([state for model in models for state in model.workers.states()])


def _status(states: Sequence[WorkerState]) -> str:
    if all(state.is_ready for state in states):
        return "ok"
    return "degraded" if any(state.is_ready for state in states) else "unavailable"


def _start(models: Iterable[Model]) -> dict[str, Any]:
    """How far the start is of the model that is behind the others, of those that cannot answer."""
    starts = [_furthest(model.workers.states()) for model in models]
    last = min((start for start in starts if start is not None), key=lambda start: start.rank)
    return _progress(last)


def _furthest(states: Sequence[WorkerState]) -> StartProgress | None:
    """The start of the worker that will be there first; None where one is."""
    starts = [state.start for state in states if state.start is not None]
    return None if len(starts) < len(states) else max(starts, key=lambda start: start.rank)


def _progress(start: StartProgress) -> dict[str, Any]:
    told = {"status": start.stage, "weights_loaded": start.weights_loaded}
    return {name: value for name, value in told.items() if value is not None}


def _identity(model: Model) -> dict[str, Any]:
    profile = model.profile
    return {
        "name": model.name,
        "is_demo": profile.is_demo,
        "model_type": profile.model_type,
        "context_tokens": profile.context_tokens,
        "backend": model.settings.model_backend,
    }


def _model(model: Model) -> dict[str, Any]:
    states = model.workers.states()
    engines = [state.hello.description for state in states if state.hello]
    return {
        **_identity(model),
        "status": _status(states),
        "quantization": model.settings.quantization,
        "devices": sorted({engine.device for engine in engines}),
        "num_workers": len(states),
        "num_workers_ready": sum(state.is_ready for state in states),
        "weight_bytes": sum(engine.weight_bytes for engine in engines),
        "stats": _sum([state.stats for state in states if state.stats]),
        "queue": {
            "num_open": model.places.num_taken,
            "num_running": model.workers.num_running,
            "num_waiting": model.workers.num_waiting,
            "max_queued_requests": model.settings.max_queued_requests,
        },
        "affinity": dataclasses.asdict(model.workers.affinity_stats()),
    }


def _sum(counts: Sequence[EngineStats | AffinityStats]) -> dict[str, int]:
    """Numbers of several engines or pools, added up by name."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(dataclasses.asdict(one))
    return dict(total)


def _worker(model: Model, state: WorkerState) -> dict[str, Any]:
    hello, stats = state.hello, state.stats
    return {
        "model": model.name,
        "worker_id": state.worker_id,
        "state": "ready" if state.start is None else state.start.stage,
        "weights_loaded": state.start.weights_loaded if state.start else 1.0,
        "restarts": state.restarts,
        "num_requests": state.num_requests,
        "num_requests_total": state.num_requests_total,
        "pid": hello.pid if hello else None,
        "engine": dataclasses.asdict(hello.description) if hello else None,
        "stats": dataclasses.asdict(stats) if stats else None,
    }
