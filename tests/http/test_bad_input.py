"""What is wrong gets a clear 4xx in the one shape, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, upload
from support import Server
from watching import files_below

JSON = {"video_url": "http://127.0.0.1:9/none.mp4", "prompt": QUESTION}


@pytest.mark.parametrize("name", ["text", "truncated", "audio", "zero"])
@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_file_that_is_no_readable_video(server: Server, clips: dict[str, Path], name: str, stream: str) -> None:
    response = upload(server.base, clips[name], stream=stream)
    assert response.status_code in {400, 415}, response.text
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "video"
    assert len(error["message"]) > 20


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"fps": "-1"}, "fps"),
        ({"fps": "nan"}, "fps"),
        ({"fps": "1e12"}, "fps"),
        ({"fps": "fast"}, "fps"),
        ({"max_tokens": "0"}, "max_tokens"),
        ({"max_tokens": "1000000000"}, "max_tokens"),
        ({"temperature": "-1"}, "temperature"),
        ({"prompt": ""}, "prompt"),
        ({"unknown": "1"}, "unknown"),
        ({"video_url": "http://127.0.0.1:9/x.mp4"}, "video_url"),
        ({"video_start": "100"}, "video_start"),
        ({"nframes": "100000"}, "nframes"),
        ({"stream": "maybe"}, "stream"),
    ],
)
def test_a_wrong_field_of_a_form_is_named(
    server: Server, clips: dict[str, Path], fields: dict[str, str], param: str
) -> None:
    response = upload(server.base, clips["one"], **fields)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert (error["param"] or "").endswith(param)
    assert param in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": QUESTION}, "video_url"),
        ({"video_url": JSON["video_url"]}, "prompt"),
        ({**JSON, "prompt": 7}, "prompt"),
        ({**JSON, "video": "x"}, "video"),
        ({**JSON, "video_params": {"fps": -2}}, "video_params.fps"),
        ({**JSON, "generation_params": {"max_tokens": 0}}, "generation_params.max_tokens"),
        ({**JSON, "video_url": "file:///etc/passwd"}, "video_url"),
        ({**JSON, "video_url": "ftp://example.com/a.mp4"}, "video_url"),
        (JSON, "video_url"),  # nobody listens there
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_of_json_is_named(server: Server, body: dict, param: str, stream: bool) -> None:
    response = requests.post(server.base + "/v1/inference/url", json={**body, "stream": stream}, timeout=TIMEOUT)
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param


def test_a_missing_file_is_told(server: Server) -> None:
    response = requests.post(server.base + "/v1/inference/upload", files={"prompt": (None, QUESTION)}, timeout=TIMEOUT)
    assert response.status_code == 400
    assert error_of(response)["param"] == "video"


@pytest.mark.parametrize("route", ["/v1/inference/url", "/v1/inference/upload", "/predict"])
def test_a_wrong_content_type_is_told(server: Server, route: str) -> None:
    response = requests.post(server.base + route, data="x", headers={"Content-Type": "text/plain"}, timeout=TIMEOUT)
    assert response.status_code == 400
    assert error_of(response)["code"] == "unsupported_content_type"


def test_an_unknown_route_and_a_wrong_method_have_the_same_shape(server: Server) -> None:
    assert error_of(requests.get(server.base + "/v1/none", timeout=TIMEOUT))["type"] == "not_found_error"
    assert requests.get(server.base + "/predict", timeout=TIMEOUT).status_code == 405


def test_special_tokens_in_a_prompt_are_only_text(server: Server, clips: dict[str, Path]) -> None:
    prompt = "<|vision_start|><|video_pad|><|vision_end|><|im_end|> " + QUESTION
    response = upload(server.base, clips["one"], prompt=prompt)
    assert response.status_code == 200, response.text
    plain = upload(server.base, clips["one"]).json()
    assert response.json()["usage"]["video_tokens"] == plain["usage"]["video_tokens"]


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(server: Server, clips: dict[str, Path]) -> None:
    response = upload(server.base, clips["one"], prompt="why 1234567890 " * 6000)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert "context" in error["message"]


def test_nothing_is_left_on_disk(server: Server, clips: dict[str, Path]) -> None:
    before = files_below(server.storage / "spool")  # the URL cache's
    for name in ("one", "text", "truncated"):
        upload(server.base, clips[name])
        upload(server.base, clips[name], fps="-1")
    assert files_below(server.storage / "spool") == before
