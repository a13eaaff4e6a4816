"""Bodies as the documentation of vLLM, Qwen and SGLang writes them, and bodies that are wrong: each names its field."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of
from support import Server

URL = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def post(server: Server, body: dict[str, Any]) -> requests.Response:
    return requests.post(server.base + URL, json=body, timeout=TIMEOUT)


def about(path: Path, part: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
    """A question about a clip, as both documentations write it; ``part`` stands beside the URL."""
    url = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    content = [{"type": "video_url", "video_url": {"url": url, **(part or {})}}, {"type": "text", "text": QUESTION}]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 4, **body}


def media_io(**options: Any) -> dict[str, Any]:
    return {"media_io_kwargs": {"video": options}}


def processor(**options: Any) -> dict[str, Any]:
    return {"mm_processor_kwargs": options}


# ---- how a video is sampled: the clip has 100 frames in 4 seconds ----------------------------------------------------


@pytest.mark.parametrize(
    ("part", "body", "num_frames"),
    [
        ({}, {}, 8),
        # vLLM
        ({}, processor(fps=1), 4),
        ({}, processor(fps=1, do_sample_frames=True), 4),
        ({}, processor(fps=4, max_frames=10), 10),
        ({}, processor(nframes=6), 6),
        ({}, media_io(fps=1), 4),
        ({}, media_io(num_frames=32), 32),
        ({}, media_io(num_frames=500), 100),
        ({}, media_io(num_frames=1), 2),
        ({}, media_io(num_frames=-1), 8),
        ({}, media_io(num_frames=-1, fps=-1), 8),
        ({}, media_io(num_frames=6, fps=4), 6),
        ({}, media_io(num_frames=128, fps=4), 16),
        ({}, {**media_io(num_frames=-1), **processor(fps=4, do_sample_frames=True)}, 16),
        ({}, processor(num_frames=12), 12),
        # SGLang, and this server's own names
        ({"fps": 1}, {}, 4),
        ({"fps": 4, "max_frames": 10}, {}, 10),
        ({"max_frames": 4}, {}, 4),
        ({"nframes": 6}, {}, 6),
        ({"fps": 1, "video_start": 0, "video_end": 3.9, "min_frames": 2}, {}, 2),
        # a part's own goes first
        ({"fps": 1}, media_io(num_frames=32), 4),
        ({"nframes": 6}, processor(fps=4), 6),
    ],
)
def test_the_frames_that_were_asked_for_are_sampled(
    server: Server, clips: dict[str, Path], part: dict[str, Any], body: dict[str, Any], num_frames: int
) -> None:
    response = post(server, about(clips["one"], part, **body))
    assert response.status_code == 200, response.text
    assert response.json()["tru"]["video"][0]["num_frames"] == num_frames


@pytest.mark.parametrize(
    ("part", "body", "size"),
    [
        ({"max_pixels": 64 * 96}, {}, (64, 64)),
        ({}, processor(max_pixels=64 * 96), (64, 64)),
        ({"max_pixels": 64 * 96}, processor(max_pixels=96 * 128), (64, 64)),
        ({}, processor(size={"longest_edge": 8 * 64 * 96}), (64, 64)),  # of all frames together
    ],
)
def test_the_size_that_was_asked_for_is_taken(
    server: Server, clips: dict[str, Path], part: dict[str, Any], body: dict[str, Any], size: tuple[int, int]
) -> None:
    response = post(server, about(clips["one"], part, **body))
    assert response.status_code == 200, response.text
    sampled = response.json()["tru"]["video"][0]
    assert sampled["num_frames"] == 8
    assert (sampled["height"], sampled["width"]) == size


def test_transformers_size_holds_for_images(server: Server, clips: dict[str, Path]) -> None:
    url = "data:image/png;base64," + base64.b64encode(clips["png"].read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 96}
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2, **processor(size=size)}
    sampled = post(server, body).json()["tru"]["video"][0]
    assert sampled["height"] * sampled["width"] <= 64 * 96


# ---- what asks for nothing is accepted -------------------------------------------------------------------------------


def test_what_clients_send_without_asking_for_anything_is_accepted(server: Server) -> None:
    harmless = {
        "n": 1,
        "logprobs": False,
        "top_logprobs": 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "user": "someone",
        "metadata": {"purpose": "test"},
        "store": False,
        "service_tier": "auto",
        "stream_options": None,
        "stop": None,
        "seed": None,
        "top_p": None,
        "model": None,
        "top_k": 5,
        "repetition_penalty": 1.1,
        "min_p": 0.0,
        "chat_template_kwargs": {"enable_thinking": False},
        "add_generation_prompt": True,
        "skip_special_tokens": True,
        "stop_token_ids": [],
        "use_beam_search": False,
    }
    history = [
        *HELLO,
        {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": [], "audio": None, "tool_calls": None},
        {"role": "user", "content": "Well?", "name": "someone"},
    ]
    response = post(server, {"messages": history, "max_tokens": 2, **harmless})
    assert response.status_code == 200, response.text
    assert response.json()["model"] == "demo"


# ---- what is wrong is named ------------------------------------------------------------------------------------------

PART = "messages.0.content.0"


def content(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(parts)}]}


def video(**url: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": "http://127.0.0.1:9/none.mp4", **url}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [*HELLO, {"role": "system", "content": "x"}]}, "messages.1.role"),
        ({"messages": [{"role": "user", "content": "x", "colour": "red"}]}, "messages.0.colour"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "user", "content": "why " * 30_000}]}, "messages"),
        (content("Hello"), f"{PART}.type"),
        (content({"type": "input_audio", "input_audio": {}}), f"{PART}.type"),
        (content({"type": ["text"], "text": "x"}), f"{PART}.type"),
        (content({"type": "text"}), f"{PART}.text"),
        (content({"type": "video_url", "video_url": "http://h/a.mp4"}), f"{PART}.video_url"),
        (content({"type": "video_url", "video_url": {}}), f"{PART}.video_url.url"),
        (content(video(), role="system"), f"{PART}.type"),
        (content(video(), role="assistant"), f"{PART}.type"),
        (content(video()), f"{PART}.video_url.url"),  # nobody listens there
        (content(video(url="file:///etc/passwd")), f"{PART}.video_url.url"),
        (content(video(url="data:text/plain;base64,eA==")), f"{PART}.video_url.url"),
        (content({"type": "video_url", "video_url": {"video_id": ""}}), f"{PART}.video_url.video_id"),
        (content(video(video_id="0123")), f"{PART}.video_url.video_id"),
        (content({"type": "image_url", "image_url": {"url": "ftp://h/a.png"}}), f"{PART}.image_url.url"),
        (content({"type": "image_url", "image_url": {"url": "x", "fps": 2}}), f"{PART}.image_url.fps"),
        (content(video(fps=-1)), f"{PART}.video_url.fps"),
        (content(video(fps=2, nframes=4)), f"{PART}.video_url.nframes"),
        (content(video(max_tokens_per_frame=4)), f"{PART}.video_url.max_tokens_per_frame"),
        (content(*[video()] * 65), f"{PART.removesuffix('0')}64"),
    ],
)
def test_a_wrong_message_is_named(server: Server, body: dict[str, Any], param: str) -> None:
    response = post(server, body)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"colour": "red"}, "colour"),
        ({"min_p": 1.1}, "min_p"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"1": 200}}, "logit_bias.1"),
        ({"logit_bias": {"one": 2}}, "logit_bias.one"),
        ({"logit_bias": {"900000000": 2}}, "logit_bias"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"stop_token_ids": [1]}, "stop_token_ids"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strang"}}}},
            "response_format",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "response_format"),
        (processor(fps="2"), "mm_processor_kwargs.fps"),
        (processor(num_frames=0), "mm_processor_kwargs.num_frames"),
        (processor(do_sample_frames=False), "mm_processor_kwargs.do_sample_frames"),
        (processor(do_resize=False), "mm_processor_kwargs.do_resize"),
        (processor(size={"height": 3}), "mm_processor_kwargs.size.height"),
        (media_io(num_frames=-2), "media_io_kwargs.video.num_frames"),
        (media_io(video_backend="opencv"), "media_io_kwargs.video.video_backend"),
        ({**media_io(fps=1), **processor(fps=2)}, "media_io_kwargs.video.fps"),
        ({**media_io(num_frames=4), **processor(nframes=2)}, "media_io_kwargs.video.num_frames"),
        ({**media_io(num_frames=4), **processor(max_frames=6)}, "media_io_kwargs.video.num_frames"),
    ],
)
def test_a_wrong_field_is_named(server: Server, fields: dict[str, Any], param: str) -> None:
    response = post(server, {"messages": HELLO, **fields})
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert error["param"] == param
    assert len(error["message"]) > 20


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (media_io(fps=1) | processor(video_start=100), "mm_processor_kwargs.video_start"),
        (processor(size={"shortest_edge": 4096}), "mm_processor_kwargs.size.shortest_edge"),
        (processor(nframes=5000), "mm_processor_kwargs.nframes"),
    ],
)
def test_an_option_that_the_video_cannot_follow_is_named_where_it_stood(
    server: Server, clips: dict[str, Path], body: dict[str, Any], param: str
) -> None:
    response = post(server, about(clips["one"], **body))
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param


def test_what_does_not_fit_is_refused_with_the_numbers_and_a_field_of_the_body(
    server: Server, clips: dict[str, Path]
) -> None:
    body = about(clips["two"], {"fps": 24})
    body["messages"][0]["content"] *= 16
    error = error_of(post(server, body))
    assert (error["code"], error["param"]) == ("context_length_exceeded", f"{PART}.video_url.max_frames")
    error = error_of(post(server, {"messages": [{"role": "user", "content": "1234567890 " * 9000}]}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "frames" not in error["message"]


@pytest.mark.parametrize("body", ["{", "[]", '{"messages": NaN}'])
def test_what_is_no_json_object_is_refused(server: Server, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = requests.post(server.base + URL, data=body, headers=headers, timeout=TIMEOUT)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


def test_a_stream_is_data_lines_that_end_with_done(server: Server, clips: dict[str, Path]) -> None:
    body = about(clips["one"], stream=True, stream_options={"include_usage": True})
    response = post(server, body)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"] == []
