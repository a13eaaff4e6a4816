"""How the tests talk to a server: plain requests, and server-sent events read as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

TIMEOUT = 240
"""A bound for what hangs; on a busy machine a worker that starts again needs more than a minute."""

QUESTION = "What happens in this video?"


def upload(base: str, path: Path, *, route: str = "/v1/inference/upload", **fields: Any) -> requests.Response:
    """Ask about a file."""
    data = {"prompt": QUESTION, "temperature": "0", **{name: str(value) for name, value in fields.items()}}
    with path.open("rb") as file:
        return requests.post(base + route, files={"video": (path.name, file)}, data=data, timeout=TIMEOUT)


def upload_stream(base: str, path: Path, **fields: Any) -> requests.Response:
    """Ask about a file and leave the answer's stream open."""
    data = {"prompt": QUESTION, "temperature": "0", "stream": "true", **{name: str(v) for name, v in fields.items()}}
    with path.open("rb") as file:
        return requests.post(
            base + "/v1/inference/upload", files={"video": file}, data=data, timeout=TIMEOUT, stream=True
        )


def events(response: requests.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of each server-sent event."""
    name = ""
    for line in response.iter_lines(chunk_size=None):
        text = line.decode()
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("data: "):
            yield name, json.loads(text.removeprefix("data: "))


def error_of(response: requests.Response) -> dict[str, Any]:
    """The error in the one shape; fails if it has another."""
    body = response.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"type", "code", "message", "param", "request_id"}, body
    assert response.headers["X-Request-Id"] == body["error"]["request_id"]
    return body["error"]
