"""``/login`` and ``/logout``: where a person gives a key to the page, and takes it back.  Works without scripts."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.status import HTTP_303_SEE_OTHER

from tru_vlm.api.keys import Keyring
from tru_vlm.api.page.form_fields import read_fields
from tru_vlm.api.page.html import PageRenderer
from tru_vlm.api.security.headers import PAGE_HEADERS
from tru_vlm.api.security.identity import MAX_KEY_CHARACTERS
from tru_vlm.api.security.sessions import Sessions

_MAX_FORM_BYTES = 4096
_MAX_FORM_FIELDS = 8


def build_router(keyring: Keyring, sessions: Sessions, renderer: PageRenderer) -> APIRouter:
    """The two routes."""
    router = APIRouter(include_in_schema=False)

    def page(message: str, status: int = HTTPStatus.OK) -> Response:
        return HTMLResponse(renderer.login(message), status, PAGE_HEADERS)

    @router.get("/login")
    async def form() -> Response:
        """The form; nobody needs it where there are no keys."""
        return page("") if keyring else RedirectResponse("./", HTTP_303_SEE_OTHER)

    @router.post("/login")
    async def login(request: Request) -> Response:
        """Take a key; the browser gets a session, never the key back."""
        fields = await read_fields(request, max_bytes=_MAX_FORM_BYTES, max_fields=_MAX_FORM_FIELDS)
        key = fields.get("key", "")
        entry = keyring.find(key.strip()) if len(key) <= MAX_KEY_CHARACTERS else None
        if entry is None:
            return page("The server does not know this key. Was all of it copied?", HTTPStatus.UNAUTHORIZED)
        response = RedirectResponse("./", HTTP_303_SEE_OTHER)
        sessions.begin(entry, request, response)
        return response

    @router.post("/logout")
    async def logout() -> Response:
        """End the browser's session."""
        response = RedirectResponse("login", HTTP_303_SEE_OTHER)
        sessions.end(response)
        return response

    return router
