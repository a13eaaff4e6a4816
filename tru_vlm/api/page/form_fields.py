"""Reads a small form without files, as browsers send it by default.  It knows no field."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request

from tru_vlm.errors import InvalidRequestError, PayloadTooLargeError

_FORM = "application/x-www-form-urlencoded"


async def read_fields(request: Request, *, max_bytes: int, max_fields: int) -> dict[str, str]:
    """The fields of a form; text that is no UTF-8 has replacement characters.

    Args:
        request: its body is the form.
        max_bytes: of the body.
        max_fields: in it.

    Raises:
        InvalidRequestError: it is no such form, or has too many fields, or one twice.
        PayloadTooLargeError: it is larger than ``max_bytes``.
        ClientDisconnect: the browser left while it sent.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM:
        raise InvalidRequestError(f"The body is {kind!r}; this route accepts {_FORM}.", code="unsupported_content_type")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise PayloadTooLargeError(f"The form is larger than {max_bytes} bytes.")
    try:
        pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=max_fields)
    except ValueError:
        raise InvalidRequestError(f"The form has more than {max_fields} fields.", code="too_many_fields") from None
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidRequestError(f"The field {name!r} is given more than once.", param=name)
        fields[name] = value
    return fields
