"""``POST /ui/estimate``: the page's line that tells what the form's question would take, or why it would be refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from tru_vlm.api import schemas
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST
from tru_vlm.api.page.form import page_fields
from tru_vlm.api.security.identity import principal_of
from tru_vlm.api.service import InferenceService
from tru_vlm.errors import TruError

if TYPE_CHECKING:
    from tru_vlm.api.page.html import PageRenderer


def add_estimate(
    router: APIRouter, service: InferenceService, renderer: PageRenderer, headers: Mapping[str, str]
) -> None:
    """The route of the estimate."""

    @router.post("/ui/estimate", include_in_schema=False)
    async def estimate(request: Request) -> Response:
        """The plan of the form's question, as a line; what would be refused is said in it, not answered as an error."""
        principal = principal_of(request)
        try:
            fields = await page_fields(service, request)
            plan = await service.plan(schemas.parse_form(fields, None, service.settings, is_plan=True), principal)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except TruError as error:
            return HTMLResponse(renderer.estimate(None, error.info().message), headers=headers)
        return HTMLResponse(renderer.estimate(plan, plan.refusal or ""), headers=headers)
