"""The page's form as it arrives: its question, how it is asked, and which video; files were uploaded before it."""

from __future__ import annotations

from starlette.requests import Request

from tru_vlm.api.page.form_fields import read_fields
from tru_vlm.api.service import InferenceService

_MAX_FIELDS = 64


async def page_fields(service: InferenceService, request: Request) -> dict[str, str]:
    """The form's fields.

    Raises:
        TruError: it is no such form, or too large.
        ClientDisconnect: the browser left while it sent.
    """
    return await read_fields(request, max_bytes=service.settings.max_json_bytes, max_fields=_MAX_FIELDS)
