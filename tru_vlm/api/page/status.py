"""The page's word on the server: ``GET /ui/status``, as far as it helps who waits for an answer.  It knows no HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from tru_vlm.api.pipeline.models import Model
from tru_vlm.api.security.headers import PAGE_HEADERS
from tru_vlm.api.service import InferenceService

if TYPE_CHECKING:
    from tru_vlm.api.page.html import PageRenderer


@dataclass(frozen=True, slots=True)
class ShownModel:
    """A model and its workers.

    Attributes:
        name: as it is asked for.
        is_demo: whether it is the bundled one.
        num_workers, num_ready: all of them, and those that answer.
        devices: where they run, and by which engine.
        num_running, num_waiting: requests.
        memory_bytes: of all workers, on their devices; 0 while it is not known.
    """

    name: str
    is_demo: bool
    num_workers: int
    num_ready: int
    devices: tuple[str, ...]
    num_running: int
    num_waiting: int
    memory_bytes: int


def show_model(model: Model) -> ShownModel:
    """How a model is now."""
    states = model.workers.states()
    engines = [state.hello.description for state in states if state.hello]
    return ShownModel(
        name=model.name,
        is_demo=model.profile.is_demo,
        num_workers=len(states),
        num_ready=sum(state.is_ready for state in states),
        devices=tuple(sorted({f"{engine.backend} on {engine.device}" for engine in engines})),
        num_running=model.workers.num_running,
        num_waiting=model.workers.num_waiting,
        memory_bytes=sum(state.stats.device_memory_bytes for state in states if state.stats),
    )


def add_status_route(router: APIRouter, service: InferenceService, renderer: PageRenderer) -> None:
    """Add the route."""

    @router.get("/ui/status", include_in_schema=False)
    async def status() -> Response:
        """How the server is now."""
        shown = [show_model(model) for model in service.models]
        return HTMLResponse(renderer.status(shown, service.settings.max_queued_requests), headers=PAGE_HEADERS)
