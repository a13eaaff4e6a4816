"""Is the server alive, and what is it made of."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, PlainTextResponse, Response

import tru_vlm
from tru_vlm.api.readings import Readings
from tru_vlm.api.service import InferenceService
from tru_vlm.api.workers import WorkerState

_READY = {200: {"content": {"application/json": {"example": {"status": "ok"}}}}}


def build_router(service: InferenceService) -> APIRouter:
    """The health routes over ``service``."""
    router = APIRouter(tags=["health"])

    def status() -> str:
        states = service.workers.states()
        if all(state.is_ready for state in states):
            return "ok"
        return "degraded" if any(state.is_ready for state in states) else "unavailable"

    @router.get("/v1/health", responses=_READY)  # type: ignore[arg-type]
    async def health() -> Response:
        """200 while at least one worker can answer, else 503."""
        now = status()
        return JSONResponse({"status": now}, 503 if now == "unavailable" else 200)

    @router.get("/health", include_in_schema=False)
    async def litserve_health() -> Response:
        """Where LitServe's own tools look."""
        is_up = status() != "unavailable"
        return PlainTextResponse("ok" if is_up else "not ready", 200 if is_up else 503)

    @router.get("/v1/health/detailed", responses={200: {"description": "Model, workers, queue, decoders, limits."}})
    async def detailed() -> dict[str, Any]:
        """Model, backend, device memory, queue depth, worker states, decoder backends, limits.

        `metrics` has what `/metrics` reads at each look, under the same words.
        """
        return {
            "status": status(),
            "version": tru_vlm.__version__,
            "model": _model(service),
            "workers": [_worker(state) for state in service.workers.states()],
            "queue": {
                "num_open": service.num_open,
                "num_running": service.workers.num_running,
                "num_waiting": service.workers.num_waiting,
                "max_queued_requests": service.settings.max_queued_requests,
            },
            "affinity": dataclasses.asdict(service.workers.affinity_stats()),
            "video": dataclasses.asdict(service.videos.stats()),
            "metrics": Readings(service).by_word(),
            "library": dataclasses.asdict(await service.library.store.stats()),
            "limits": {
                "max_new_tokens": service.settings.max_new_tokens,
                "max_upload_bytes": service.settings.max_upload_bytes,
                "max_video_seconds": service.settings.max_video_seconds,
                "max_video_frames": service.settings.max_video_frames,
                "request_timeout_seconds": service.settings.request_timeout_seconds,
            },
        }

    return router


def _model(service: InferenceService) -> dict[str, Any]:
    profile = service.profile
    return {
        "name": service.model_name,
        "is_demo": profile.is_demo,
        "model_type": profile.model_type,
        "context_tokens": profile.context_tokens,
        "backend": service.settings.model_backend,
    }


def _worker(state: WorkerState) -> dict[str, Any]:
    hello, stats = state.hello, state.stats
    return {
        "worker_id": state.worker_id,
        "state": "ready" if state.is_ready else "starting",
        "restarts": state.restarts,
        "num_requests": state.num_requests,
        "num_requests_total": state.num_requests_total,
        "pid": hello.pid if hello else None,
        "engine": dataclasses.asdict(hello.description) if hello else None,
        "stats": dataclasses.asdict(stats) if stats else None,
    }
