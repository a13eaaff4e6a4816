"""Every error that a client can be told about: one tree, each with a code, an HTTP status and a type.

An error carries only text written here or by the code that raises it, never ``str()`` of a library's exception,
so nothing internal leaks into an answer.  It crosses the process boundary as plain data (:class:`ErrorInfo`).

::

    TruError                          500  server_error
    ├── InvalidRequestError           400  invalid_request_error   a field is wrong; `param` names it
    │   ├── UnsupportedMediaError     415  the file is not a video or image that can be read
    │   ├── PayloadTooLargeError      413  more bytes than the server accepts
    │   ├── ContextLengthError        400  prompt and frames do not fit into the model's context
    │   ├── FetchError                400  the URL cannot be fetched, or must not be
    │   ├── RangeError                416  the asked-for bytes lie behind the end of the file
    │   ├── ConflictError             409  what is there is not what the client believes
    │   ├── PreconditionError         412  a protocol's version that is not spoken here
    │   └── ChecksumError             460  the bytes are not those that the client sent
    ├── AuthenticationError           401  authentication_error    no valid key came
    ├── ForbiddenError                403  permission_error        it must not come from there
    ├── NotFoundError                 404  not_found_error
    ├── OverloadedError               429  rate_limit_error        try again after `retry_after_seconds`
    ├── RequestTimeoutError           504  timeout_error           the request's own deadline has passed
    │   └── SlowBodyError             408  the body came too slowly
    ├── UnavailableError              503  server_error            starting, draining, or the worker died
    ├── InsufficientStorageError      507  server_error            the store of videos has no room for this one
    └── InternalError                 500  server_error            a fault of ours; the log has the request id
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "timeout_error",
    "server_error",
]


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as data: what crosses processes and what a client reads.

    Attributes:
        type: the family, one of :data:`ErrorType` (OpenAI's words where they exist).
        code: a stable word for programs, for example ``"unsupported_media"``.
        message: a sentence for people: what was wrong, what came, what is accepted.
        param: the field at fault, dotted (``"video_params.fps"``), or None.
        status: the HTTP status.
        retry_after_seconds: for 429 and 503, when to try again; else None.
    """

    type: ErrorType
    code: str
    message: str
    param: str | None
    status: int
    retry_after_seconds: float | None = None


class TruError(Exception):
    """Base of every error that has an answer for the client."""

    type: ClassVar[ErrorType] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after_seconds = retry_after_seconds

    def info(self) -> ErrorInfo:
        """The error as data."""
        return ErrorInfo(
            type=self.type,
            code=self.code,
            message=self.message,
            param=self.param,
            status=self.status,
            retry_after_seconds=self.retry_after_seconds,
        )


class InvalidRequestError(TruError):
    """A field of the request is wrong; ``param`` names it and the message says what is accepted."""

    type = "invalid_request_error"
    default_code = "invalid_value"
    status = 400


class UnsupportedMediaError(InvalidRequestError):
    """The bytes are not a video or an image that this server reads."""

    default_code = "unsupported_media"
    status = 415


class PayloadTooLargeError(InvalidRequestError):
    """More bytes arrived, or were announced, than the server accepts."""

    default_code = "payload_too_large"
    status = 413


class ContextLengthError(InvalidRequestError):
    """Prompt, frames and the asked-for answer do not fit into the model's context."""

    default_code = "context_length_exceeded"


class FetchError(InvalidRequestError):
    """The URL must not be fetched (scheme, address), or could not be."""

    default_code = "url_not_fetched"


class AuthenticationError(TruError):
    """A key is needed, and none came or none that is known; the text does not tell which."""

    type = "authentication_error"
    default_code = "invalid_api_key"
    status = 401


class ForbiddenError(TruError):
    """The request must not come from where it comes from, whoever sends it."""

    type = "permission_error"
    default_code = "forbidden"
    status = 403


class RangeError(InvalidRequestError):
    """The bytes that were asked for lie behind the end of the file."""

    default_code = "range_not_satisfiable"
    status = 416


class ConflictError(InvalidRequestError):
    """What is there is not what the client believes; it has to look first."""

    default_code = "conflict"
    status = 409


class PreconditionError(InvalidRequestError):
    """The client speaks a version of a protocol that is not spoken here."""

    default_code = "unsupported_version"
    status = 412


class ChecksumError(InvalidRequestError):
    """The bytes are not those that the client sent (460 is tus's own status)."""

    default_code = "checksum_mismatch"
    status = 460


class NotFoundError(TruError):
    """The named thing does not exist (any more)."""

    type = "not_found_error"
    default_code = "not_found"
    status = 404


class OverloadedError(TruError):
    """The bounded queue is full; ``retry_after_seconds`` says when to try again."""

    type = "rate_limit_error"
    default_code = "queue_full"
    status = 429


class RequestTimeoutError(TruError):
    """The wall clock over the whole request has run out."""

    type = "timeout_error"
    default_code = "request_timeout"
    status = 504


class SlowBodyError(RequestTimeoutError):
    """The client sent its body too slowly, or stopped."""

    default_code = "body_timeout"
    status = 408


class UnavailableError(TruError):
    """The server starts, drains, or the worker that held the request died."""

    default_code = "unavailable"
    status = 503


class InsufficientStorageError(TruError):
    """There is no room for what should be kept, and waiting does not make any; the message has the numbers."""

    default_code = "library_full"
    status = 507


class InternalError(TruError):
    """A fault of ours.  The text is fixed; the log carries the cause under the request id."""

    def __init__(self, message: str = "The server failed on this request; its log has the details.") -> None:
        super().__init__(message)
