"""Every route that takes an address has the same guard: none is forgotten, and none lets a server path in."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of
from support import Server

JSON, FORM = "application/json", "multipart/form-data"
ROUTES = {
    ("/predict", JSON),
    ("/predict", FORM),
    ("/v1/inference/url", JSON),
    ("/v1/inference/upload", FORM),
    ("/v1/plan", JSON),
    ("/v1/plan", FORM),
}
CHAT, RESPONSES, VIDEOS = "/v1/chat/completions", "/v1/responses", "/v1/videos"
BATCH = "/v1/inference/batch"
FORBIDDEN = (
    "file:///etc/passwd",
    "/etc/passwd",
    "ftp://example.com/a.mp4",
    "concat:/etc/passwd|/etc/hosts",
    "http://user:secret@127.0.0.1:9000/a.mp4",
    "http://127.0.0.1:22/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/",
)
"""Refused also where private addresses are allowed, as they are on the tests' server."""


def ask(base: str, path: str, content_type: str, url: str) -> requests.Response:
    if content_type == JSON:
        return requests.post(base + path, json={"video_url": url, "prompt": QUESTION}, timeout=TIMEOUT)
    fields = {"video_url": (None, url), "prompt": (None, QUESTION)}
    return requests.post(base + path, files=fields, timeout=TIMEOUT)


def takes_address(schema: dict[str, Any], name: str, seen: set[str]) -> bool:
    """Whether a component, or one that it refers to, has a field for an address."""
    seen.add(name)
    component = schema["components"]["schemas"][name]
    if any("url" in field for field in component.get("properties", {})):
        return True
    parts = re.findall(r"#/components/schemas/(\w+)", json.dumps(component))
    return any(takes_address(schema, part, seen) for part in parts if part not in seen)


def test_the_routes_that_take_an_address_are_these(server: Server) -> None:
    schema = requests.get(server.base + "/openapi.json", timeout=TIMEOUT).json()
    found = set()
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            for content_type, body in operation.get("requestBody", {}).get("content", {}).items():
                # A file that is uploaded piecewise has none.
                for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(body["schema"])):
                    if takes_address(schema, name, set()):
                        found.add((path, content_type))
    others = {(path, JSON) for path in (CHAT, RESPONSES, VIDEOS, BATCH)} | {(BATCH, "multipart/form-data")}
    assert found == ROUTES | others, "a route that takes an address belongs into this table"


@pytest.mark.parametrize("url", FORBIDDEN)
@pytest.mark.parametrize(("path", "content_type"), sorted(ROUTES))
def test_a_forbidden_address_is_refused(server: Server, path: str, content_type: str, url: str) -> None:
    response = ask(server.base, path, content_type, url)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert (error["code"], error["param"]) == ("url_not_allowed", "video_url")
    assert "secret" not in error["message"]


@pytest.mark.parametrize("url", FORBIDDEN)
@pytest.mark.parametrize("kind", ["video_url", "image_url"])
def test_a_forbidden_address_in_a_conversation_is_refused(server: Server, kind: str, url: str) -> None:
    content = [{"type": "text", "text": QUESTION}, {"type": kind, kind: {"url": url}}]
    body = {"messages": [{"role": "user", "content": content}]}
    response = requests.post(server.base + CHAT, json=body, timeout=TIMEOUT)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert (error["code"], error["param"]) == ("url_not_allowed", f"messages.0.content.1.{kind}.url")
    assert "secret" not in error["message"]


@pytest.mark.parametrize("url", FORBIDDEN)
@pytest.mark.parametrize(("kind", "name"), [("input_video", "video_url"), ("input_image", "image_url")])
def test_a_forbidden_address_in_a_response_s_input_is_refused(server: Server, kind: str, name: str, url: str) -> None:
    body = {"input": [{"role": "user", "content": [{"type": kind, name: url}]}]}
    response = requests.post(server.base + RESPONSES, json=body, timeout=TIMEOUT)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert (error["code"], error["param"]) == ("url_not_allowed", f"input.0.content.0.{name}")
    assert "secret" not in error["message"]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_a_forbidden_address_is_not_kept(server: Server, url: str) -> None:
    response = requests.post(server.base + VIDEOS, json={"video_url": url}, timeout=TIMEOUT)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert (error["code"], error["param"]) == ("url_not_allowed", "video_url")
    assert "secret" not in error["message"]


@pytest.mark.parametrize("path", ["/ui/ask", "/ui/jobs"])
@pytest.mark.parametrize("url", FORBIDDEN)
def test_the_page_s_forms_refuse_it_too(server: Server, path: str, url: str) -> None:
    response = requests.post(server.base + path, data={"video_url": url, "prompt": QUESTION}, timeout=TIMEOUT)
    assert response.status_code == 400, response.text
    assert "The URL" in response.text, "it names what is wrong with the address"
    assert "could not be" not in response.text, "nothing was connected to"
    assert "secret" not in response.text


def test_a_forbidden_address_in_a_job_is_refused_at_once_or_when_its_turn_comes(server: Server) -> None:
    for url in FORBIDDEN:
        body = {"items": [{"video_url": url, "prompt": QUESTION}]}
        response = requests.post(server.base + BATCH, json=body, timeout=TIMEOUT)
        if response.status_code == 202:
            job = response.json()
            requests.get(server.base + job["events_url"], timeout=TIMEOUT)  # reads up to the end
            answer = requests.get(server.base + job["results_url"], timeout=TIMEOUT).json()["response"]
            error, param = answer["body"]["error"], "video_url"
        else:
            error, param = error_of(response), "items.0.video_url"
        assert (error["code"], error["param"]) == ("url_not_allowed", param)
        assert "secret" not in error["message"]
