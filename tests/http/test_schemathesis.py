"""Generated requests, in and out of what the description allows: no 500, and every answer is as described.

Seeded and few for each operation; `SCHEMATHESIS_EXAMPLES=200` asks for more.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support import ROOT, Server, free_port

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "4"))
TIMEOUT = 60
NOBODY = free_port()
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
DESCRIPTION = schemathesis.openapi.from_path(ROOT / "docs" / "openapi.json")
GENERATED = DESCRIPTION.exclude(path="/v1/inference/ws")  # a WebSocket; its own tests speak to it


@GENERATED.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_described(case: Case, server: Server) -> None:
    case.body = with_a_near_host(case.body)
    response = case.call(base_url=server.base, timeout=TIMEOUT)
    case.validate_response(response, checks=CHECKS)


def with_a_near_host(body: Any) -> Any:
    """The examples' videos, where nobody listens: without a network, a resolver takes long to find no example.com."""
    if isinstance(body, dict):
        return {name: with_a_near_host(value) for name, value in body.items()}
    if isinstance(body, list):
        return [with_a_near_host(value) for value in body]
    return body.replace("https://example.com/", f"http://127.0.0.1:{NOBODY}/") if isinstance(body, str) else body


def described(path: str, method: str, response: requests.Response) -> dict[str, Any]:
    """The answer of an accepted request, which is what the description says."""
    assert response.ok, response.text
    operation = DESCRIPTION[path][method]
    operation.validate_response(response)
    return response.json()


def test_accepted_requests_are_answered_as_described(server: Server, clips: dict[str, Path]) -> None:
    clip = clips["one"].read_bytes()
    kept = described("/v1/videos", "POST", requests.post(f"{server.base}/v1/videos", files={"video": clip}, timeout=60))
    video = {"type": "video_url", "video_url": {"video_id": kept["id"]}}
    question = {"prompt": "What happens in this video?", "generation_params": {"temperature": 0}}
    text = {"type": "text", "text": question["prompt"]}
    asked = [
        ("/predict", {"video_id": kept["id"], **question}),
        ("/v1/inference/url", {"video_id": kept["id"], **question}),
        ("/v1/plan", {"video_id": kept["id"], **question}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [video, text]}]}),
        ("/v1/responses", {"input": "Hello"}),
    ]
    for path, body in asked:
        answer = described(path, "POST", requests.post(server.base + path, json=body, timeout=TIMEOUT))
        assert "red circle" in json.dumps(answer) or path not in (
            "/predict",
            "/v1/inference/url",
            "/v1/chat/completions",
        )
    for path in ("/v1/videos", "/v1/models", "/v1/health", "/v1/health/detailed"):
        described(path, "GET", requests.get(server.base + path, timeout=TIMEOUT))
    of_video = "/v1/videos/{video_id}"
    for path in (of_video, f"{of_video}/frames"):
        url = server.base + path.format(video_id=kept["id"])
        described(path, "GET", requests.get(url, timeout=TIMEOUT))
