"""The door: what is let in, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tru_vlm.api.inference_request import InferenceRequest
from tru_vlm.api.schemas import parse_form, parse_json
from tru_vlm.errors import InvalidRequestError
from tru_vlm.intake.spool import SpooledFile
from tru_vlm.settings import Settings
from tru_vlm.types import MediaPart, TextPart, VideoParams

SETTINGS = Settings(_env_file=None, max_new_tokens=100, temperature=0.5, max_prompt_characters=50)
FILE = SpooledFile(Path("x"), 1, "0")
MINIMAL = {"video_url": "http://host/a.mp4", "prompt": "What?"}


def parse(**changes: object) -> InferenceRequest:
    return parse_json(json.dumps({**MINIMAL, **changes}).encode(), SETTINGS)


def test_defaults_are_filled_in() -> None:
    request = parse()
    assert request.generation.max_tokens == 100
    assert request.max_tokens_is_default
    assert request.generation.temperature == 0.5
    assert request.media[0].params == VideoParams()
    assert not request.stream


def test_values_arrive() -> None:
    request = parse(
        video_params={"fps": 1, "video_start": 0.5, "video_end": 2},
        generation_params={"max_tokens": 7, "stop": "x", "seed": 1, "temperature": 0},
        stream=True,
    )
    assert (request.media[0].params.fps, request.media[0].params.video_end) == (1.0, 2.0)
    assert (request.generation.max_tokens, request.generation.stop, request.generation.seed) == (7, ("x",), 1)
    assert not request.max_tokens_is_default
    assert request.stream


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x" * 51}, "prompt"),
        ({"video_url": ""}, "video_url"),
        ({"colour": "red"}, "colour"),
        ({"stream": "yes"}, "stream"),
        ({"video_params": {"fps": -1}}, "video_params.fps"),
        ({"video_params": {"fps": 0}}, "video_params.fps"),
        ({"video_params": {"fps": 1e9}}, "video_params.fps"),
        ({"video_params": {"fps": "2"}}, "video_params.fps"),
        ({"video_params": {"fps": 2, "nframes": 4}}, "video_params.nframes"),
        ({"video_params": {"nframes": 2.5}}, "video_params.nframes"),
        ({"video_params": {"min_frames": 9, "max_frames": 8}}, "video_params.min_frames"),
        ({"video_params": {"video_start": 3, "video_end": 2}}, "video_params.video_end"),
        ({"video_params": {"frames": 3}}, "video_params.frames"),
        ({"video_params": []}, "video_params"),
        ({"generation_params": {"max_tokens": 0}}, "generation_params.max_tokens"),
        ({"generation_params": {"max_tokens": 10**9}}, "generation_params.max_tokens"),
        ({"generation_params": {"temperature": -0.1}}, "generation_params.temperature"),
        ({"generation_params": {"top_p": 0}}, "generation_params.top_p"),
        ({"generation_params": {"seed": True}}, "generation_params.seed"),
        ({"generation_params": {"stop": [""]}}, "generation_params.stop"),
        ({"generation_params": {"min_p": -0.1}}, "generation_params.min_p"),
        ({"generation_params": {"presence_penalty": 2.1}}, "generation_params.presence_penalty"),
        ({"generation_params": {"frequency_penalty": "1"}}, "generation_params.frequency_penalty"),
        ({"generation_params": {"logit_bias": {"-1": 3}}}, "generation_params.logit_bias.-1"),
        ({"generation_params": {"logit_bias": {"1": -101}}}, "generation_params.logit_bias.1"),
        (
            {"generation_params": {"logit_bias": {str(token): 1 for token in range(1025)}}},
            "generation_params.logit_bias",
        ),
    ],
)
def test_a_wrong_field_is_named(changes: dict, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**changes)
    assert caught.value.param == param
    assert caught.value.status == 400


@pytest.mark.parametrize("missing", ["prompt", "video_url"])
def test_a_missing_field_is_named(missing: str) -> None:
    body = {name: value for name, value in MINIMAL.items() if name != missing}
    with pytest.raises(InvalidRequestError) as caught:
        parse_json(json.dumps(body).encode(), SETTINGS)
    assert (caught.value.param, caught.value.code) == (missing, "missing_field")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_json(body, SETTINGS)
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_must_be_finite(number: str) -> None:
    body = f'{{"video_url": "http://h/a", "prompt": "x", "video_params": {{"fps": {number}}}}}'
    with pytest.raises(InvalidRequestError) as caught:
        parse_json(body.encode(), SETTINGS)
    assert caught.value.param == "video_params.fps"


def test_a_form_has_the_same_fields_flat() -> None:
    fields = {"prompt": "What?", "fps": "2", "max_tokens": "9", "stream": "true", "temperature": ""}
    request = parse_form(fields, FILE, SETTINGS)
    assert (request.media[0].params.fps, request.generation.max_tokens, request.stream) == (2.0, 9, True)
    assert request.generation.temperature == 0.5
    assert (request.media[0].source, request.files) == (FILE, (FILE,))


@pytest.mark.parametrize(
    ("fields", "file", "param"),
    [
        ({"prompt": "x"}, None, "video"),
        ({"prompt": "x", "video_url": "http://h/a"}, FILE, "video_url"),
        ({}, FILE, "prompt"),
        ({"prompt": "x", "fps": "nan"}, FILE, "fps"),
        ({"prompt": "x", "fps": "two"}, FILE, "fps"),
        ({"prompt": "x", "max_tokens": "1e9"}, FILE, "max_tokens"),
        ({"prompt": "x", "max_tokens": "1000000000"}, FILE, "max_tokens"),
        ({"prompt": "x", "fps": "1", "nframes": "4"}, FILE, "nframes"),
        ({"prompt": "x", "frames": "4"}, FILE, "frames"),
        ({"prompt": "x", "presence_penalty": "3"}, FILE, "presence_penalty"),
        ({"prompt": "x", "logit_bias": "{"}, FILE, "logit_bias"),
        ({"prompt": "x", "logit_bias": "[1]"}, FILE, "logit_bias"),
    ],
)
def test_a_wrong_form_field_is_named(fields: dict[str, str], file: SpooledFile | None, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_form(fields, file, SETTINGS)
    assert caught.value.param == param


def test_the_rules_of_sampling_arrive_by_both_ways() -> None:
    rules = {"min_p": 0.25, "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"7": -100}}
    form = {name: json.dumps(value) for name, value in rules.items()}
    for request in (parse(generation_params=rules), parse_form({"prompt": "x", **form}, FILE, SETTINGS)):
        generation = request.generation
        assert (generation.min_p, generation.presence_penalty, generation.frequency_penalty) == (0.25, -1.0, 2.0)
        assert generation.logit_bias == ((7, -100.0),)


def test_fit_is_one_of_the_video_params() -> None:
    assert parse(video_params={"fit": True}).media[0].params == VideoParams(fit=True)
    assert parse_form({"prompt": "x", "fit": "true"}, FILE, SETTINGS).media[0].params == VideoParams(fit=True)
    with pytest.raises(InvalidRequestError, match="fit"):
        parse(video_params={"fit": "yes"})


def test_a_plan_needs_no_prompt_and_takes_a_questions_body() -> None:
    bare = parse_json(b'{"video_url": "http://host/a.mp4"}', SETTINGS, is_plan=True)
    assert bare.messages[0].content == (MediaPart(0),)
    assert parse_form({"prompt": ""}, FILE, SETTINGS, is_plan=True).messages == bare.messages
    whole = json.dumps({**MINIMAL, "stream": True}).encode()
    asked = parse_json(whole, SETTINGS, is_plan=True).messages
    assert asked[0].content == (MediaPart(0), TextPart(MINIMAL["prompt"]))


@pytest.mark.parametrize("prompt", ["", "  ", "x" * 51])
def test_a_plans_prompt_is_checked_like_a_questions(prompt: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_json(json.dumps({**MINIMAL, "prompt": prompt}).encode(), SETTINGS, is_plan=True)
    assert caught.value.param == "prompt"


SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}}
NAMED = {"name": "clip", "schema": SCHEMA, "strict": True}


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": NAMED}, SCHEMA),
    ],
)
def test_a_response_format_arrives_as_its_schema(response_format: dict | None, schema: dict | None) -> None:
    def arrived(request: InferenceRequest) -> dict | None:
        text = request.generation.json_schema
        return None if text is None else json.loads(text)

    assert arrived(parse(generation_params={"response_format": response_format})) == schema
    form = {"prompt": "x", "response_format": json.dumps(response_format)}
    assert arrived(parse_form(form, FILE, SETTINGS)) == schema


def nested(levels: int) -> dict:
    schema: dict = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ("json_object", ""),
        ({}, "type"),
        ({"type": "xml"}, "type"),
        ({"type": "json_object", "regex": "a"}, "regex"),
        ({"type": "json_schema"}, "json_schema"),
        ({"type": "json_object", "json_schema": NAMED}, "json_schema"),
        ({"type": "json_schema", "json_schema": SCHEMA}, "json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": "{}"}}, "json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": nested(33)}}, "json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["x" * 99] * 999}}},
            "json_schema.schema",
        ),
    ],
)
def test_a_wrong_response_format_is_named(response_format: object, param: str) -> None:
    path = "response_format" + (f".{param}" if param else "")
    with pytest.raises(InvalidRequestError) as caught:
        parse(generation_params={"response_format": response_format})
    assert (caught.value.param, caught.value.status) == (f"generation_params.{path}", 400)
    with pytest.raises(InvalidRequestError) as caught:
        parse_form({"prompt": "x", "response_format": json.dumps(response_format)}, FILE, SETTINGS)
    assert (caught.value.param, caught.value.status) == (path, 400)


@pytest.mark.parametrize("text", ["json", "{", '{"a":' * 100_000])
def test_a_response_format_in_a_form_must_be_json(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="valid JSON") as caught:
        parse_form({"prompt": "x", "response_format": text}, FILE, SETTINGS)
    assert caught.value.param == "response_format"


def test_the_deepest_schema_is_accepted() -> None:
    named = {"name": "a", "schema": nested(32)}
    assert parse(generation_params={"response_format": {"type": "json_schema", "json_schema": named}})


def test_a_format_and_ignore_eos_contradict_each_other() -> None:
    with pytest.raises(InvalidRequestError, match="ignore_eos") as caught:
        parse(generation_params={"response_format": {"type": "json_object"}, "ignore_eos": True})
    assert caught.value.param == "generation_params.response_format"
    assert parse(generation_params={"response_format": {"type": "text"}, "ignore_eos": True}).generation.ignore_eos
