"""Reads the body of a question, or of one that is to be planned: JSON, or a form whose file goes straight to disk."""

from __future__ import annotations

from starlette.requests import Request

from tru_vlm.api.inference_request import InferenceRequest
from tru_vlm.api.security.identity import principal_of
from tru_vlm.api.service import InferenceService
from tru_vlm.errors import InvalidRequestError, PayloadTooLargeError

_MULTIPART = "multipart/form-data"


async def read_any(service: InferenceService, request: Request, *, is_plan: bool = False) -> InferenceRequest:
    """A body of either kind, as its content type says.

    Raises:
        TruError: whatever is wrong with it; nothing is left on disk.
        ClientDisconnect: the client left while it sent.
    """
    read = read_form if content_type_of(request).startswith(_MULTIPART) else read_json
    return await read(service, request, is_plan=is_plan)


async def read_json(service: InferenceService, request: Request, *, is_plan: bool = False) -> InferenceRequest:
    """A JSON body.  Raises as :func:`read_any`."""
    return service.parse_json(await receive_json(service, request), is_plan=is_plan)


async def receive_json(service: InferenceService, request: Request) -> bytes:
    """The bytes of a JSON body.  Raises as :func:`read_any`."""
    content_type = content_type_of(request)
    if content_type and not content_type.startswith("application/json"):
        raise InvalidRequestError(
            f"The body is {content_type.partition(';')[0]!r}; this route accepts application/json.",
            code="unsupported_content_type",
        )
    limit = service.settings.max_json_bytes
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise PayloadTooLargeError(f"The JSON body is larger than {limit} bytes.")
    return bytes(body)


async def read_form(service: InferenceService, request: Request, *, is_plan: bool = False) -> InferenceRequest:
    """A multipart form.  Raises as :func:`read_any`."""
    content_type = content_type_of(request)
    if not content_type.startswith(_MULTIPART):
        raise InvalidRequestError(
            f"The body is {content_type.partition(';')[0]!r}; this route accepts multipart/form-data.",
            code="unsupported_content_type",
        )
    form = await service.receive_form(request.stream(), content_type, principal_of(request), is_plan=is_plan)
    return await service.parse_form(form, is_plan=is_plan)


def content_type_of(request: Request) -> str:
    """The body's type, as the client tells it."""
    return request.headers.get("content-type", "")


def owner_of(request: Request) -> str:
    """Whose kept videos a request may see: its tenant's."""
    return principal_of(request).tenant
