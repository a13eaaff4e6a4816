"""``/login`` and ``/logout``: where a person gives a key to the page, and takes it back.  Works without scripts."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import parse_qs

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.status import HTTP_303_SEE_OTHER

from tru_vlm.api.keys import Keyring
from tru_vlm.api.page.html import PageRenderer
from tru_vlm.api.security.headers import PAGE_HEADERS
from tru_vlm.api.security.identity import MAX_KEY_CHARACTERS
from tru_vlm.api.security.sessions import Sessions
from tru_vlm.errors import InvalidRequestError, PayloadTooLargeError

_MAX_FORM_BYTES = 4096
_MAX_FORM_FIELDS = 8
_FORM = "application/x-www-form-urlencoded"


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
        key = await _field(request, "key")
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


async def _field(request: Request, name: str) -> str:
    """A field of a small form; empty if it is not there.

    Raises:
        TruError: if the body is no such form.
    """
    if not request.headers.get("content-type", "").startswith(_FORM):
        raise InvalidRequestError(f"This route accepts {_FORM}.", code="unsupported_content_type")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            raise PayloadTooLargeError(f"The form is larger than {_MAX_FORM_BYTES} bytes.")
    try:
        pairs = parse_qs(body.decode("utf-8", "replace"), max_num_fields=_MAX_FORM_FIELDS)
    except ValueError:
        text = f"The form has more than {_MAX_FORM_FIELDS} fields."
        raise InvalidRequestError(text, code="too_many_fields") from None
    return pairs.get(name, [""])[0]
