"""Puts the server together: LitServe for processes, our routes, our service.  No logic of its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from tru_vlm.api.background_jobs import openapi as jobs_openapi
from tru_vlm.api.background_jobs import webhook_message
from tru_vlm.api.background_jobs.service import JobService
from tru_vlm.api.context import AppContext
from tru_vlm.api.error_response import install_error_handlers
from tru_vlm.api.kept_videos import videos_openapi
from tru_vlm.api.keys import Keyring
from tru_vlm.api.observation import Observation
from tru_vlm.api.openai_compatible import chat_openapi, responses_openapi
from tru_vlm.api.openapi.description import install_openapi
from tru_vlm.api.page import login, pages
from tru_vlm.api.page.html import PageRenderer
from tru_vlm.api.readings import Readings
from tru_vlm.api.routes import (
    chat,
    chats,
    docs,
    health,
    inference,
    job_results,
    jobs,
    metrics,
    plan,
    responses,
    turns,
    uploads,
    video_media,
    videos,
    websocket,
)
from tru_vlm.api.routes.static_files import VersionedStaticFiles
from tru_vlm.api.security.install import install_door
from tru_vlm.api.service import HostedModel, InferenceService
from tru_vlm.api.settled import settle_memory
from tru_vlm.api.stopping import Drain
from tru_vlm.api.stored_chats import openapi as chats_openapi
from tru_vlm.api.stored_chats.turns import Chats
from tru_vlm.api.websocket import openapi as websocket_openapi
from tru_vlm.api.workers.lit_api import VideoLitAPI
from tru_vlm.api.workers.lit_loop import StepLoop
from tru_vlm.api.workers.litserve_seams import OwnRoutesSpec, WorkerServer
from tru_vlm.api.workers.placement import Placement, StartError, check_host_memory, check_shared_cards, num_cpu_workers
from tru_vlm.database import DatabaseError
from tru_vlm.paths import STATIC_DIR, TEMPLATES_DIR
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.served_models import ServedModels
from tru_vlm.settings import Settings
from tru_vlm.telemetry.metrics import Metrics
from tru_vlm.telemetry.spans import Tracing, trace_target
from tru_vlm.video.decode_pool import PoolStartError

if TYPE_CHECKING:
    from tru_vlm.api.mcp.endpoint import McpEndpoint


class VideoServer(WorkerServer):
    """The whole server.  LitServe forks the HTTP process from it and spawns the workers."""

    def __init__(self, lit_apis: Sequence[VideoLitAPI], placements: Sequence[Placement], context_of: Any) -> None:
        super().__init__(lit_apis, placements)
        self.context: AppContext = context_of({name: len(workers) for name, workers in self.worker_devices().items()})
        _mount(self.app, self.context)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start and stop what lives in the HTTP process."""
        async with super().lifespan(app), self.context.drain.on_signal(self.is_hurried):
            orphan_watch = asyncio.create_task(self.end_with_parent())
            try:
                self.context.tracing.start("http")
                await self._start_service()
                settle_memory()
                async with self.context.mcp.running() if self.context.mcp else contextlib.nullcontext():
                    yield
            finally:
                orphan_watch.cancel()
                await self.context.jobs.close()
                await self.context.service.close()
                await self.context.chats.close()
                await asyncio.to_thread(self.context.tracing.close)

    async def _start_service(self) -> None:
        try:
            await self.context.service.start()
            await self.context.chats.start()
            await self.context.jobs.start()
        except Exception as error:
            is_told = isinstance(error, PoolStartError | DatabaseError | ConnectionError)
            self.refuse_to_start(str(error) if is_told else "The HTTP process failed; the lines above say why.")
            raise


def build_server(
    settings: Settings,
    served: ServedModels,
    profiles: Mapping[str, ModelProfile],
    keyring: Keyring,
    socket_directory: Path,
) -> VideoServer:
    """Compose the server.

    Args:
        settings: the configuration.
        served: the models.
        profiles: of each model by name, what it accepts.
        keyring: who may use it.
        socket_directory: an existing private folder for the links between processes.

    Raises:
        StartError: if the models' workers cannot be placed as the settings say, or have too little memory.
    """
    folders = {model.name: socket_directory / str(number) for number, model in enumerate(served.models)}
    for folder in folders.values():
        folder.mkdir(mode=0o700)
    lit_apis = [
        VideoLitAPI(
            model.settings,
            folders[model.name],
            # LitServe tells its APIs apart by their paths; there is no such route.
            spec=OwnRoutesSpec(f"/models/{number}"),
            loop=StepLoop(),
            max_batch_size=model.settings.max_batch_size,
        )
        for number, model in enumerate(served.models)
    ]

    def context_of(num_workers: Mapping[str, int]) -> AppContext:
        hosted = [
            HostedModel(model.name, model.settings, profiles[model.name], folders[model.name], num_workers[model.name])
            for model in served.models
        ]
        counted = Metrics()
        service = InferenceService(settings, hosted, aliases=served.aliases, default=served.default, metrics=counted)
        counted.read_from(lambda: Readings(service))
        drain = Drain(settings.drain_seconds)
        chats, jobs = Chats(settings, service.library), JobService(service, counted, drain)
        tracing = Tracing(trace_target(settings))
        return AppContext(settings, service, chats, jobs, keyring, counted, tracing, _mcp(service), drain)

    server = VideoServer(lit_apis, [Placement.of(model) for model in served.models], context_of)
    devices = server.worker_devices()
    check_shared_cards(served.models, devices)
    check_host_memory(served.models, devices)
    for lit_api in lit_apis:
        lit_api.num_cpu_engines = num_cpu_workers(devices)
    return server


def _mcp(service: InferenceService) -> McpEndpoint | None:
    """The endpoint for assistants, where it is wanted; the package is loaded only then."""
    if not service.settings.mcp_endpoint:
        return None
    if importlib.util.find_spec("mcp") is None:
        raise StartError("MCP_ENDPOINT=true: the package mcp is not installed. Install it: pip install 'tru-vlm[mcp]'.")
    from tru_vlm.api.mcp.endpoint import McpEndpoint

    return McpEndpoint(service)


def _mount(app: FastAPI, context: AppContext) -> None:
    sessions = install_door(app, context.settings, context.keyring, context.service.rates, context.drain)
    # The last one added is the outermost.
    app.add_middleware(Observation, metrics=context.metrics, tracing=context.tracing)
    install_error_handlers(app)
    app.include_router(pages.build_pages_router(context))
    app.include_router(login.build_router(context.keyring, sessions, PageRenderer(TEMPLATES_DIR, STATIC_DIR)))
    app.include_router(docs.build_router())
    app.include_router(inference.build_router(context.service))
    app.include_router(websocket.build_router(context.service))
    app.include_router(plan.build_router(context.service))
    app.include_router(videos.build_router(context.service))
    app.include_router(video_media.build_router(context.service))
    app.include_router(uploads.build_router(context.service))
    app.include_router(chat.build_router(context.service))
    app.include_router(chats.build_router(context.service, context.chats))
    app.include_router(turns.build_router(context.service, context.chats))
    app.include_router(responses.build_router(context.service))
    app.include_router(job_results.build_router(context.jobs))
    app.include_router(jobs.build_router(context.service, context.jobs))
    app.include_router(health.build_router(context.service, context.jobs, context.drain))
    app.include_router(metrics.build_router(context.metrics, context.jobs))
    if context.mcp is not None:
        app.router.routes.extend(context.mcp.routes)
    app.mount("/static", VersionedStaticFiles(directory=STATIC_DIR), name="static")
    modules = (chat_openapi, chats_openapi, responses_openapi, jobs_openapi, videos_openapi, websocket_openapi)
    bodies = [body for module in (*modules, webhook_message) for body in module.COMPONENT_BODIES]
    install_openapi(app, bodies, webhook_message.WEBHOOKS)
