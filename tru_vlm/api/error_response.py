"""The one error shape, and the one place that turns exceptions into HTTP answers."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tru_vlm.api.security.headers import BASE_HEADERS
from tru_vlm.errors import ErrorInfo, InternalError, TruError
from tru_vlm.telemetry.exchange import current_exchange, new_id

logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_UNAUTHORIZED = 401
_LOWEST_SERVER_ERROR = 500


def error_body(info: ErrorInfo, request_id: str) -> dict[str, Any]:
    """``{"error": {...}}`` as every client reads it, in JSON, SSE and WebSocket alike."""
    return {
        "error": {
            "type": info.type,
            "code": info.code,
            "message": info.message,
            "param": info.param,
            "request_id": request_id,
        }
    }


def error_response(info: ErrorInfo, request_id: str) -> Response:
    """An error as an HTTP answer with its status and, where it helps, ``Retry-After``."""
    note_error(info)
    headers = {"X-Request-Id": request_id}
    if info.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(info.retry_after_seconds)))
    if info.status == _UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="tru-vlm"'
    return JSONResponse(error_body(info, request_id), info.status, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Make every exception that reaches the app answer in the one shape."""

    @app.exception_handler(TruError)
    async def _own(_request: Request, error: TruError) -> Response:
        return error_response(error.info(), new_request_id())

    @app.exception_handler(RequestValidationError)
    async def _parameter(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        info = ErrorInfo("invalid_request_error", "invalid_value", f"{name}: {first['msg']}.", name, 400)
        return error_response(info, new_request_id())

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> Response:
        status = error.status_code
        phrase = HTTPStatus(status).phrase
        family = "server_error" if status >= _LOWEST_SERVER_ERROR else _TYPES.get(status, "invalid_request_error")
        info = ErrorInfo(family, phrase.lower().replace(" ", "_"), f"{phrase}.", None, status)  # type: ignore[arg-type]
        response = error_response(info, new_request_id())
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def _unexpected(_request: Request, error: Exception) -> Response:
        request_id = new_request_id()
        logger.error("request %s failed", request_id, exc_info=error)
        response = error_response(InternalError().info(), request_id)
        response.headers.update(BASE_HEADERS)  # Starlette sends this one past every middleware
        return response


def new_request_id() -> str:
    """The id of a request that never got as far as being opened."""
    exchange = current_exchange()
    return exchange.request_id if exchange and not exchange.is_connection else new_id()


def note_error(info: ErrorInfo) -> None:
    """Let the exchange know what its client is told, for metrics and the log."""
    if exchange := current_exchange():
        exchange.error = info
