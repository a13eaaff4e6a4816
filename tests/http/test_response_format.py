"""JSON answers over HTTP: the same field in a form and in JSON, right answers, and clear refusals."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events, upload, upload_stream
from support import Server

from demo_model.generator import ACTIONS

SENTENCES = [f"A red circle {action}." for action in ACTIONS]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": SENTENCES}},
    "required": ["answer"],
    "additionalProperties": False,
}
RIGHT = {"answer": "A red circle moves left."}


def form(schema: object) -> str:
    return json.dumps({"type": "json_schema", "json_schema": {"name": "clip", "schema": schema}})


def test_an_upload_is_answered_in_the_schema(server: Server, clips: dict[str, Path]) -> None:
    body = upload(server.base, clips["one"], response_format=form(SCHEMA)).json()
    assert (json.loads(body["text"]), body["finish_reason"]) == (RIGHT, "stop")


def test_a_stream_is_as_well(server: Server, clips: dict[str, Path]) -> None:
    received = list(events(upload_stream(server.base, clips["one"], response_format=form(SCHEMA))))
    assert json.loads("".join(data["text"] for name, data in received if name == "delta")) == RIGHT


@pytest.mark.parametrize("route", ["/predict", "/v1/inference/url"])
def test_json_takes_it_among_the_generation_params(server: Server, clips: dict[str, Path], route: str) -> None:
    response = ask_json(server, clips["one"], json.loads(form(SCHEMA)), route=route)
    assert json.loads(response.json()["text"]) == RIGHT


def ask_json(
    server: Server, clip: Path, response_format: object, *, route: str = "/v1/inference/url"
) -> requests.Response:
    body = {
        "video_url": "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode(),
        "prompt": QUESTION,
        "generation_params": {"temperature": 0, "response_format": response_format},
    }
    return requests.post(server.base + route, json=body, timeout=TIMEOUT)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strang"},
        {"not": {}},
        {"anyOf": [{"type": "integer", "multipleOf": index + 9001} for index in range(300)]},
        {"enum": ["x" * 1000] * 100},
    ],
)
@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_schema_that_cannot_be_followed_is_refused_beside_others(
    server: Server, clips: dict[str, Path], schema: dict, stream: str
) -> None:
    with ThreadPoolExecutor(2) as pool:
        free = pool.submit(upload, server.base, clips["one"])
        bad = upload(server.base, clips["one"], response_format=form(schema), stream=stream)
    assert bad.status_code == 400, bad.text
    assert (error_of(bad)["param"] or "").startswith("response_format")
    assert free.result().json()["text"] == RIGHT["answer"]


def test_json_names_the_field_where_it_is(server: Server, clips: dict[str, Path]) -> None:
    response = ask_json(server, clips["one"], json.loads(form({"type": "strang"})))
    assert (response.status_code, error_of(response)["param"]) == (400, "generation_params.response_format")
