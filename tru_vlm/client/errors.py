"""What can go wrong for a client: one tree, read from the server's one error shape.

::

    ClientError                       catches everything below
    ├── TransportError                no answer: not reached, silent for too long, or the connection broke
    ├── ProtocolError                 what answers is not this server, or not a version that this client reads
    └── ApiError                      the server's own words, with status, type, code, param and request id
        ├── InvalidRequestError       400, 413, 415, 422   a field, the file or the URL is wrong; `param` names it
        ├── AuthenticationError       401, 403             the key is missing, wrong, or may not do this
        ├── NotFoundError             404
        ├── RateLimitError            429                  try again after `retry_after_seconds`
        ├── RequestTimeoutError       504                  the request's own deadline has passed
        └── ServerError               other 5xx            starting, draining, or a fault of the server
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any


class ClientError(Exception):
    """Base of everything that this client raises about a request."""


class TransportError(ClientError):
    """There is no answer: the server was not reached, was silent for too long, or the connection broke."""


class ProtocolError(ClientError):
    """What came is not an answer that this client reads."""


class ApiError(ClientError):
    """The server refused or failed, and said so.

    Attributes:
        message: a sentence for people.
        type: the family, for example ``"invalid_request_error"``.
        code: a stable word for programs, for example ``"unsupported_media"``.
        param: the field at fault, or None.
        request_id: what the server's log has, or None.
        status: the HTTP status; None for the error that ended a stream.
        retry_after_seconds: when to try again, as far as the server said.
    """

    def __init__(
        self,
        message: str,
        *,
        type: str,  # noqa: A002 - the name in the error shape
        code: str,
        param: str | None = None,
        request_id: str | None = None,
        status: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.request_id = request_id
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class InvalidRequestError(ApiError):
    """A field, the file or the URL is wrong."""


class AuthenticationError(ApiError):
    """The API key is missing, wrong, or may not do this."""


class NotFoundError(ApiError):
    """The named thing does not exist (any more)."""


class RateLimitError(ApiError):
    """Too much at once."""


class RequestTimeoutError(ApiError):
    """The request's own deadline has passed."""


class ServerError(ApiError):
    """The server starts, drains, or failed."""


_BY_STATUS = {401: AuthenticationError, 403: AuthenticationError}
_BY_TYPE: dict[str, type[ApiError]] = {
    "invalid_request_error": InvalidRequestError,
    "authentication_error": AuthenticationError,
    "permission_error": AuthenticationError,
    "not_found_error": NotFoundError,
    "rate_limit_error": RateLimitError,
    "timeout_error": RequestTimeoutError,
}


def api_error(body: Any, *, status: int | None = None, headers: Mapping[str, str] | None = None) -> ClientError:
    """The exception for the server's error shape.

    Args:
        body: the JSON that came.
        status: the HTTP status; None within a stream.
        headers: of the response.

    Returns:
        One of :class:`ApiError`, or a :class:`ProtocolError` where the shape is another.
    """
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not all(isinstance(error.get(key), str) for key in ("message", "type", "code")):
        at = f"HTTP status {status}" if status else "an error"
        return ProtocolError(f"The server answered with {at} and not in this server's error shape; is it one?")
    kind = _BY_STATUS.get(status or 0) or _BY_TYPE.get(error["type"], ServerError)
    return kind(
        error["message"],
        type=error["type"],
        code=error["code"],
        param=error.get("param"),
        request_id=error.get("request_id"),
        status=status,
        retry_after_seconds=retry_after_seconds(headers or {}),
    )


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What ``Retry-After`` asks for, in seconds from now: a number or a date (RFC 9110, 10.2.3); None without one."""
    text = headers.get("Retry-After", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
