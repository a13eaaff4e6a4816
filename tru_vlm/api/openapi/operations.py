"""What the description says of every operation: who may call, what the door and the parameters' checks answer.

FastAPI describes a 422 of its own for wrong parameters, which this server never sends, and drops the nulls of examples.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from tru_vlm.api.security.door import OPEN_PATHS
from tru_vlm.api.security.sessions import COOKIE

_FASTAPI_ONLY = ("HTTPValidationError", "ValidationError")
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of `API_KEYS`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key of `API_KEYS`."},
    "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "A browser that signed in."},
}
_ANYBODY: dict[str, list[str]] = {}
_WITH_BODY = ("post", "patch")
_COUNTED = ("post", "delete")
_JSON_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
_WRONG, _UNKNOWN, _ELSEWHERE, _SLOW, _BUSY = "400", "401", "403", "408", "429"
_TEXTS = {
    _WRONG: "A parameter is wrong; `param` names it. Or the Host header is not one of this server's names.",
    _UNKNOWN: "A key is needed, and none came that is known.",
    _ELSEWHERE: "It comes from a page of another site, which `ALLOWED_ORIGINS` does not list.",
    _SLOW: "The body came too slowly, or not at all.",
    _BUSY: "Too many requests; `Retry-After` says when to try again.",
}


def complete(schema: dict[str, Any], routes: Iterable[BaseRoute]) -> None:
    """Add to ``schema`` what all operations have in common, and give the examples of ``routes`` their nulls back."""
    for name in _FASTAPI_ONLY:
        schema["components"]["schemas"].pop(name, None)
    schema["components"]["securitySchemes"] = copy.deepcopy(_SCHEMES)
    schema["servers"] = [{"url": "/", "description": "This server."}]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            _complete_operation(operation, method, needs_key=path not in OPEN_PATHS)
    for route in _own_routes(routes):
        if route.include_in_schema:
            for method in route.methods or ():
                _restore_examples(schema["paths"][route.path_format][method.lower()], route)


def _own_routes(routes: Iterable[BaseRoute]) -> Iterator[APIRoute]:
    """All of FastAPI's routes; its newer releases keep an included router as one entry, with its routes behind it."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif (included := getattr(route, "original_router", None)) is not None:
            yield from _own_routes(included.routes)


def _complete_operation(operation: dict[str, Any], method: str, *, needs_key: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    statuses = [_WRONG]
    if needs_key:
        operation["security"] = [_ANYBODY, *({name: []} for name in _SCHEMES)]
        statuses.append(_UNKNOWN)
    else:
        operation["security"] = []
    if method != "get":
        statuses.append(_ELSEWHERE)
    if method in _WITH_BODY:
        statuses.append(_SLOW)
    if method in _COUNTED:
        statuses.append(_BUSY)
    for status in statuses:
        responses.setdefault(status, {"description": _TEXTS[status], "content": copy.deepcopy(_JSON_ERROR)})
    if method == "head":
        for response in responses.values():  # a HEAD's answer has no body, whatever it says
            response.pop("content", None)
    operation["responses"] = dict(sorted(responses.items()))


def _restore_examples(operation: dict[str, Any], route: APIRoute) -> None:
    for status, response in route.responses.items():
        described = operation["responses"][str(status)].get("content", {})
        for kind, content in response.get("content", {}).items():
            for word in ("example", "examples"):
                if word in content:
                    described[kind][word] = content[word]
