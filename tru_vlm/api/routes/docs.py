"""``/docs``: Swagger UI from our own static files, so that it works without any other host."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from tru_vlm.api.security.headers import DOCS_POLICY
from tru_vlm.paths import TEMPLATES_DIR


def build_router() -> APIRouter:
    """The documentation page."""
    router = APIRouter()
    templates = Jinja2Templates(directory=TEMPLATES_DIR)

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        """The API's reference, to read and to try."""
        return templates.TemplateResponse(request, "docs.html", headers={"Content-Security-Policy": DOCS_POLICY})

    return router
