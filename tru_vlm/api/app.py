"""Puts the server together: LitServe for processes, our routes, our service.  No logic of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from tru_vlm.api import openapi_chat, openapi_videos
from tru_vlm.api.error_response import install_error_handlers
from tru_vlm.api.lingering import LingeringClose
from tru_vlm.api.lit_api import VideoLitAPI
from tru_vlm.api.lit_loop import StepLoop
from tru_vlm.api.litserve_seams import OwnRoutesSpec, WorkerServer
from tru_vlm.api.observation import Observation
from tru_vlm.api.openapi import install_openapi
from tru_vlm.api.readings import Readings
from tru_vlm.api.routes import chat, docs, health, inference, metrics, pages, plan, video_media, videos
from tru_vlm.api.routes.static_files import VersionedStaticFiles
from tru_vlm.api.service import InferenceService
from tru_vlm.database import DatabaseError
from tru_vlm.paths import STATIC_DIR
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.settings import Settings
from tru_vlm.telemetry.metrics import Metrics
from tru_vlm.video.decode_pool import PoolStartError


@dataclass(frozen=True, slots=True)
class AppContext:
    """What routes are built from."""

    settings: Settings
    profile: ModelProfile
    service: InferenceService
    metrics: Metrics


class VideoServer(WorkerServer):
    """The whole server.  LitServe forks the HTTP process from it and spawns the workers."""

    def __init__(self, lit_api: VideoLitAPI, context_of: Any, **kwargs: Any) -> None:
        super().__init__(lit_api, **kwargs)
        self.context: AppContext = context_of(self.num_workers())
        _mount(self.app, self.context)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start and stop what lives in the HTTP process."""
        async with super().lifespan(app):
            orphan_watch = asyncio.create_task(self.end_with_parent())
            try:
                await self._start_service()
                yield
            finally:
                orphan_watch.cancel()
                await self.context.service.close()

    async def _start_service(self) -> None:
        try:
            await self.context.service.start()
        except Exception as error:
            is_told = isinstance(error, PoolStartError | DatabaseError)
            self.refuse_to_start(str(error) if is_told else "The HTTP process failed; the lines above say why.")
            raise


def build_server(settings: Settings, profile: ModelProfile, socket_directory: Path) -> VideoServer:
    """Compose the server.

    Args:
        settings: the configuration.
        profile: what the model accepts.
        socket_directory: an existing private folder for the links between processes.
    """
    lit_api = VideoLitAPI(
        settings,
        socket_directory,
        spec=OwnRoutesSpec("/predict"),
        loop=StepLoop(),
        max_batch_size=settings.max_batch_size,
    )

    def context_of(num_workers: int) -> AppContext:
        counted = Metrics()
        service = InferenceService(settings, profile, socket_directory, num_workers, metrics=counted)
        counted.read_from(lambda: Readings(service))
        return AppContext(settings, profile, service, counted)

    return VideoServer(
        lit_api,
        context_of,
        accelerator=settings.device,
        devices=settings.devices or "auto",
        workers_per_device=settings.workers_per_device,
        devices_per_worker=settings.vllm_tensor_parallel_size if settings.model_backend == "vllm" else 1,
    )


def _mount(app: FastAPI, context: AppContext) -> None:
    app.add_middleware(LingeringClose)
    install_error_handlers(app)
    app.include_router(pages.build_pages_router(context))
    app.include_router(docs.build_router())
    app.include_router(inference.build_router(context.service))
    app.include_router(plan.build_router(context.service))
    app.include_router(videos.build_router(context.service))
    app.include_router(video_media.build_router(context.service))
    app.include_router(chat.build_router(context.service))
    app.include_router(health.build_router(context.service))
    app.include_router(metrics.build_router(context.metrics))
    app.mount("/static", VersionedStaticFiles(directory=STATIC_DIR), name="static")
    install_openapi(app, (*openapi_chat.COMPONENT_BODIES, *openapi_videos.COMPONENT_BODIES))
    app.add_middleware(Observation, metrics=context.metrics)  # the last one added is the outermost
