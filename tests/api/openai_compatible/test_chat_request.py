"""A chat completion's body at the door: what it becomes inside, and which field a refusal names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tru_vlm.api.openai_compatible.chat_request import ChatRequest, parse_chat
from tru_vlm.errors import InvalidRequestError, TruError
from tru_vlm.settings import Settings
from tru_vlm.types import MediaPart, Message, TextPart, VideoParams

SETTINGS = Settings(_env_file=None, max_new_tokens=100, temperature=0.5, max_prompt_characters=50, max_request_media=3)
URL = "http://host/a.mp4"


def parse(*messages: Any, **fields: Any) -> ChatRequest:
    given = list(messages) or [{"role": "user", "content": "Hello"}]
    return parse_chat(json.dumps({"messages": given, **fields}).encode(), SETTINGS)


def refusal(*messages: Any, **fields: Any) -> TruError:
    with pytest.raises(TruError) as caught:
        parse(*messages, **fields)
    return caught.value


def video(url: str = URL, **options: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url, **options}}


def image(url: str = "http://host/a.png", **options: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **options}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def params_of(part: dict[str, Any], **fields: Any) -> VideoParams:
    (media,) = parse(user(part), **fields).inference.media
    return media.params


def test_a_conversation_keeps_its_order() -> None:
    request = parse(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        user(video(), {"type": "text", "text": "And"}, image()),
        {"role": "assistant", "content": "Red.", "refusal": None, "tool_calls": []},
        user(video("http://host/b.mp4")),
    ).inference
    assert request.messages == (
        Message("system", (TextPart("Be brief.\n\nBe kind."),)),
        Message("user", (MediaPart(0), TextPart("And"), MediaPart(1))),
        Message("assistant", (TextPart("Red."),)),
        Message("user", (MediaPart(2),)),
    )
    assert [media.source for media in request.media] == [URL, "http://host/a.png", "http://host/b.mp4"]
    assert [media.param for media in request.media] == [
        "messages.2.content.0.video_url.url",
        "messages.2.content.2.image_url.url",
        "messages.4.content.0.video_url.url",
    ]


def test_defaults_are_the_servers() -> None:
    request = parse()
    generation = request.inference.generation
    assert (generation.max_tokens, generation.temperature, generation.top_p) == (100, 0.5, 1.0)
    assert (request.inference.max_tokens_is_default, request.inference.stream, request.include_usage) == (
        True,
        False,
        False,
    )


def test_values_arrive() -> None:
    request = parse(
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        top_k=3,
        seed=1,
        stop="x",
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1,
        frequency_penalty=2,
        logit_bias={"7": -100, "07": 3, "8": 0.5},
        stream=True,
        stream_options={"include_usage": True},
    )
    generation = request.inference.generation
    assert (generation.max_tokens, generation.temperature, generation.top_p, generation.top_k) == (7, 0.0, 0.5, 3)
    assert (generation.seed, generation.stop, generation.repetition_penalty) == (1, ("x",), 1.5)
    assert (generation.min_p, generation.presence_penalty, generation.frequency_penalty) == (0.25, -1.0, 2.0)
    assert generation.logit_bias == ((7, 3.0), (8, 0.5))
    assert parse(top_k=-1).inference.generation.top_k == 0
    assert not request.inference.max_tokens_is_default
    assert (request.inference.stream, request.include_usage) == (True, True)
    assert request.inference.names.max_tokens == "max_completion_tokens"


@pytest.mark.parametrize(
    ("part", "fields", "expected"),
    [
        (video(), {}, VideoParams()),
        (video(fps=1, max_frames=8), {}, VideoParams(fps=1.0, max_frames=8)),
        (video(), {"mm_processor_kwargs": {"fps": 1, "max_pixels": 99}}, VideoParams(fps=1.0, max_pixels=99)),
        (video(), {"media_io_kwargs": {"video": {"fps": 1}}}, VideoParams(fps=1.0)),
        (video(), {"media_io_kwargs": {"video": {"fps": 2, "num_frames": 9}}}, VideoParams(fps=2.0, max_frames=9)),
        (video(), {"media_io_kwargs": {"video": {"num_frames": 9}}}, VideoParams(fps=240.0, max_frames=9)),
        (video(), {"media_io_kwargs": {"video": {"num_frames": -1, "fps": -1}}}, VideoParams()),
        (video(nframes=4), {"mm_processor_kwargs": {"fps": 1, "min_pixels": 9}}, VideoParams(nframes=4, min_pixels=9)),
        (video(), {"mm_processor_kwargs": {"size": {"longest_edge": 90}}}, VideoParams(total_pixels=45)),
        (
            image(),
            {"mm_processor_kwargs": {"size": {"longest_edge": 90, "shortest_edge": 8}}},
            VideoParams(min_pixels=8, max_pixels=90),
        ),
        (image(max_pixels=50), {"mm_processor_kwargs": {"max_pixels": 90}}, VideoParams(max_pixels=50)),
    ],
)
def test_both_spellings_become_the_servers_options(
    part: dict[str, Any], fields: dict[str, Any], expected: VideoParams
) -> None:
    assert params_of(part, **fields) == expected


def test_an_error_about_an_option_names_where_it_stood() -> None:
    fields = {"media_io_kwargs": {"video": {"num_frames": 9}}, "mm_processor_kwargs": {"video_start": 5}}
    (media,) = parse(user(video(video_end=9)), **fields).inference.media
    for inner, outer in {
        "video_params.max_frames": "media_io_kwargs.video.num_frames",
        "video_params.video_start": "mm_processor_kwargs.video_start",
        "video_params.video_end": "messages.0.content.0.video_url.video_end",
        "video_params.nframes": "messages.0.content.0.video_url.nframes",
        "something": "something",
    }.items():
        error = InvalidRequestError("x", param=inner)
        with pytest.raises(InvalidRequestError), media.named():
            raise error
        assert error.param == outer


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user", "content": " "}], "messages"),
        ([{"role": "user", "content": "x" * 51}], "messages"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "x"}], "messages.1.role"),
        ([{"role": "assistant", "content": [video()]}], "messages.0.content.0.type"),
        ([user(*[video()] * 4)], "messages.0.content.3"),
        ([user(video(video_id="1"))], "messages.0.content.0.video_url.video_id"),
        ([user({"type": "input_audio"})], "messages.0.content.0.type"),
        ([user(video(size=3))], "messages.0.content.0.video_url.size"),
    ],
)
def test_a_wrong_message_is_named(messages: list[Any], param: str) -> None:
    error = refusal(*messages)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{}]}, "tools", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"colour": 1}, "colour", "unknown_field"),
        ({"max_tokens": 101}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 101}, "max_completion_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "invalid_value"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = refusal(**fields)
    assert (error.status, error.param, error.code) == (400, param, code)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (None, None)),
        ({"model": "chat", "user": "u-1"}, ("chat", "u-1")),
        ({"user": "u-1", "prompt_cache_key": "k-1"}, (None, "k-1")),
        ({"user": "", "prompt_cache_key": None}, (None, None)),
    ],
)
def test_who_shall_answer(fields: dict[str, Any], expected: tuple[str | None, str | None]) -> None:
    inference = parse(**fields).inference
    assert (inference.model, inference.routing_key) == expected
