"""``GET /metrics``: everything that is counted, as Prometheus reads it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tru_vlm.api.background_jobs.service import JobService
from tru_vlm.telemetry.metrics import Metrics

_EXAMPLE = 'tru_vlm_num_requests_running{model_name="demo",variant="demo",worker="0"} 1.0\n'
_RESPONSES = {200: {"content": {"text/plain": {"example": _EXAMPLE}}, "description": "All series."}}


def build_router(metrics: Metrics, jobs: JobService) -> APIRouter:
    """The route over ``metrics``, for which ``jobs`` are counted when somebody looks."""
    router = APIRouter(tags=["health"])

    @router.get("/metrics", response_class=Response, responses=_RESPONSES)  # type: ignore[arg-type]
    async def scrape(request: Request) -> Response:
        """Prometheus text, or OpenMetrics where the scraper asks for it; docs/metrics.md explains each name."""
        await jobs.count()
        body, content_type = metrics.export(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    return router
