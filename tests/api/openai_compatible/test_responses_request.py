"""A response's body at the door: what it becomes inside, and which field a refusal names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tru_vlm.api.openai_compatible.responses_request import ResponsesRequest, parse_responses
from tru_vlm.errors import TruError
from tru_vlm.intake.source import KeptVideo
from tru_vlm.settings import Settings
from tru_vlm.types import MediaPart, Message, TextPart, VideoParams

SETTINGS = Settings(_env_file=None, max_new_tokens=100, temperature=0.5, max_prompt_characters=50, max_request_media=3)
URL = "http://host/a.mp4"
HELLO = "Hello"
SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}}


def parse(given: Any = HELLO, **fields: Any) -> ResponsesRequest:
    return parse_responses(json.dumps({"input": given, **fields}).encode(), SETTINGS)


def refusal(given: Any = HELLO, **fields: Any) -> TruError:
    with pytest.raises(TruError) as caught:
        parse(given, **fields)
    return caught.value


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_a_string_is_a_question() -> None:
    asked = parse("What?", instructions="Be brief.")
    assert asked.inference.messages == (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (TextPart("What?"),)),
    )
    assert asked.inference.media == ()
    assert (asked.inference.generation.max_tokens, asked.inference.max_tokens_is_default) == (100, True)


def test_a_conversation_keeps_its_order() -> None:
    answered = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Red.", "annotations": [], "logprobs": []}],
    }
    request = parse(
        [
            {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
            *user(
                {"type": "input_video", "video_url": URL, "fps": 1},
                {"type": "input_text", "text": "And"},
                {"type": "input_image", "image_url": "http://host/a.png", "detail": "high", "max_pixels": 99},
            ),
            answered,
            *user({"type": "video_url", "video_url": {"url": "http://host/b.mp4", "nframes": 4}}),
        ],
        instructions="Be brief.",
    ).inference
    assert request.messages == (
        Message("system", (TextPart("Be brief.\n\nBe kind."),)),
        Message("user", (MediaPart(0), TextPart("And"), MediaPart(1))),
        Message("assistant", (TextPart("Red."),)),
        Message("user", (MediaPart(2),)),
    )
    assert [media.source for media in request.media] == [URL, "http://host/a.png", "http://host/b.mp4"]
    assert [media.params for media in request.media] == [
        VideoParams(fps=1.0),
        VideoParams(max_pixels=99),
        VideoParams(nframes=4),
    ]
    assert [media.param for media in request.media] == [
        "input.1.content.0.video_url",
        "input.1.content.2.image_url",
        "input.3.content.0.video_url.url",
    ]
    assert request.media[0].name_of("fps") == "input.1.content.0.fps"


def test_a_kept_video_is_named_by_its_id() -> None:
    for part in ({"type": "input_video", "video_id": "abc"}, {"type": "input_video", "video_url": "video_id:abc"}):
        (media,) = parse(user(part)).inference.media
        assert media.source == KeptVideo("abc")


def test_values_arrive_and_are_repeated() -> None:
    asked = parse(
        max_output_tokens=7,
        temperature=0,
        top_p=0.5,
        top_k=3,
        presence_penalty=1,
        metadata={"a": "b"},
        model="demo",
        user="someone",
        stream=True,
        text={"format": {"type": "json_schema", "name": "clip", "schema": SCHEMA, "strict": True}},
    )
    generation = asked.inference.generation
    assert (generation.max_tokens, generation.temperature, generation.top_p, generation.top_k) == (7, 0.0, 0.5, 3)
    assert generation.presence_penalty == 1.0
    assert json.loads(generation.json_schema or "") == SCHEMA
    assert asked.inference.stream
    assert (asked.inference.model, asked.inference.routing_key) == ("demo", "someone")
    assert asked.inference.names.max_tokens == "max_output_tokens"
    assert asked.repeated == {
        "instructions": None,
        "max_output_tokens": 7,
        "metadata": {"a": "b"},
        "temperature": 0.0,
        "top_p": 0.5,
        "text": {"format": {"type": "json_schema", "name": "clip", "schema": SCHEMA, "strict": True}},
    }


def test_what_asks_for_nothing_is_accepted() -> None:
    harmless = {
        "store": False,
        "previous_response_id": None,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "truncation": "disabled",
        "reasoning": {"effort": "none"},
        "include": [],
        "text": {"verbosity": "medium", "format": {"type": "text"}},
        "user": "someone",
        "background": False,
    }
    assert parse(**harmless).inference.generation.json_schema is None


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("", "input"),
        ([], "input"),
        (3, "input"),
        ("x" * 51, "input"),
        ([{"type": "function_call_output", "call_id": "1", "output": "x"}], "input.0.type"),
        ([{"type": "item_reference", "id": "1"}], "input.0.type"),
        ([{"role": "tool", "content": "x"}], "input.0.role"),
        ([{"role": "user", "content": 3}], "input.0.content"),
        ([{"role": "user", "content": "x", "colour": 1}], "input.0.colour"),
        ([*user({"type": "input_text", "text": "x"}), {"role": "system", "content": "x"}], "input.1.role"),
        (user({"type": "text", "text": "x"}), "input.0.content.0.type"),
        (user({"type": "input_file", "file_id": "1"}), "input.0.content.0.type"),
        (user({"type": "input_image", "file_id": "1"}), "input.0.content.0.file_id"),
        (user({"type": "input_image"}), "input.0.content.0.image_url"),
        (user({"type": "input_video", "video_url": URL, "fps": 0}), "input.0.content.0.fps"),
        (user({"type": "input_video", "video_url": {"url": URL}}), "input.0.content.0.video_url"),
        (user({"type": "input_video", "video_url": URL, "video_id": "a"}), "input.0.content.0.video_id"),
        (user(*[{"type": "input_video", "video_url": URL}] * 4), "input.0.content.3"),
        ([{"role": "assistant", "content": [{"type": "input_video", "video_url": URL}]}], "input.0.content.0.type"),
    ],
)
def test_a_wrong_input_is_named(given: Any, param: str) -> None:
    error = refusal(given)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"store": True}, "store", "unsupported_parameter"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "unsupported_parameter"),
        ({"messages": []}, "messages", "unknown_field"),
        ({"max_tokens": 3}, "max_tokens", "unknown_field"),
        ({"response_format": {"type": "text"}}, "response_format", "unknown_field"),
        ({"max_output_tokens": 101}, "max_output_tokens", "invalid_value"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "invalid_value"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "invalid_value"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", "missing_field"),
        ({"text": {"format": {"type": "json_object"}}, "ignore_eos": True}, "text.format", "invalid_value"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = refusal(**fields)
    assert (error.param, error.code) == (param, code)


def test_a_missing_input_is_named() -> None:
    with pytest.raises(TruError) as caught:
        parse_responses(b"{}", SETTINGS)
    assert (caught.value.param, caught.value.code) == ("input", "missing_field")
