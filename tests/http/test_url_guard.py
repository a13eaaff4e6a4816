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


def takes_address(schema: dict[str, Any], part: dict[str, Any], seen: set[str]) -> bool:
    """Whether a body's schema, or a component that it refers to, has a field for an address."""
    if any("url" in field for field in part.get("properties", {})):
        return True
    names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(part))) - seen
    seen |= names
    return any(takes_address(schema, schema["components"]["schemas"][name], seen) for name in names)


def test_the_routes_that_take_an_address_are_these(server: Server) -> None:
    schema = requests.get(server.base + "/openapi.json", timeout=TIMEOUT).json()
    found = set()
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            for content_type, body in operation.get("requestBody", {}).get("content", {}).items():
                if takes_address(schema, body["schema"], set()):
                    found.add((path, content_type))
    others = {(path, JSON) for path in (CHAT, RESPONSES, VIDEOS)}
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


@pytest.mark.parametrize("url", FORBIDDEN)
def test_the_page_s_form_refuses_it_too(server: Server, url: str) -> None:
    response = ask(server.base, "/ui/ask", FORM, url)
    assert response.status_code == 400, response.text
    assert "The URL" in response.text, "it names what is wrong with the address"
    assert "could not be" not in response.text, "nothing was connected to"
    assert "secret" not in response.text
