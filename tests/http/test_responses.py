"""OpenAI's own client on ``/v1/responses``, sync and async, whole and streamed, against the real server."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from client import QUESTION, TIMEOUT
from openai.types.responses import Response
from support import Server

from demo_model.generator import ACTIONS

ONE = "A red circle moves left."
OPENING = ["response.created", "response.in_progress"]
ITEM = ["response.output_item.added", "response.content_part.added"]
ITEM_DONE = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0, timeout=TIMEOUT)


def data_uri(path: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode()


def about(path: Path, words: str = QUESTION, **options: Any) -> list[dict[str, Any]]:
    video = {"type": "input_video", "video_url": data_uri(path), **options}
    return [{"role": "user", "content": [video, {"type": "input_text", "text": words}]}]


def ask(server: Server, given: Any, **options: Any) -> Any:
    """The response, or a stream's events."""
    with client(server) as connection:
        answer = connection.responses.create(**{"model": "demo", "input": given, "temperature": 0} | options)
        return answer if isinstance(answer, Response) else list(answer)


def test_an_answer_has_openais_shape_and_tells_what_was_sampled(server: Server, clips: dict[str, Path]) -> None:
    response = ask(server, about(clips["one"], nframes=6), instructions="Be exact.", metadata={"a": "b"})
    assert response.output_text == ONE
    assert (response.object, response.model, response.status) == ("response", "demo", "completed")
    assert (response.error, response.incomplete_details, response.temperature) == (None, None, 0)
    assert (response.instructions, response.metadata) == ("Be exact.", {"a": "b"})
    assert response.completed_at >= response.created_at > 1_600_000_000
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0
    (sampled,) = response.model_extra["tru"]["video"]
    assert sampled["num_frames"] == 6
    assert sampled["video_tokens"] == usage.input_tokens_details.model_extra["video_tokens"] > 0


def test_it_is_the_answer_of_a_chat_completion(server: Server, clips: dict[str, Path]) -> None:
    content = [{"type": "video_url", "video_url": {"url": data_uri(clips["two"])}}]
    words = {"type": "text", "text": QUESTION}
    messages = [{"role": "user", "content": [*content, words]}]
    with client(server) as connection:
        chat = connection.chat.completions.create(model="demo", messages=messages, temperature=0)
    for part in (content[0], {"type": "input_video", "video_url": data_uri(clips["two"])}):
        given = [{"role": "user", "content": [part, {"type": "input_text", "text": QUESTION}]}]
        response = ask(server, given)
        assert response.output_text == chat.choices[0].message.content
        assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_a_stream_has_every_event_in_order(server: Server, clips: dict[str, Path]) -> None:
    received = ask(server, about(clips["one"]), stream=True)
    names = [event.type for event in received]
    deltas = [event.delta for event in received if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    expected = [*OPENING, *ITEM, *["response.output_text.delta"] * len(deltas), *ITEM_DONE, "response.completed"]
    assert names == expected
    assert [event.sequence_number for event in received] == list(range(len(received)))
    assert "".join(deltas) == received[-4].text == received[-1].response.output_text == ONE
    assert received[0].response.status == "in_progress"
    assert {event.item_id for event in received if hasattr(event, "item_id")} == {received[-1].response.output[0].id}
    assert received[0].response.id == received[-1].response.id
    assert received[-1].response.usage.output_tokens > 0
    assert received[-1].response.model_extra["tru"]["video"][0]["num_frames"] == 8


def test_the_clients_own_accumulation_of_a_stream_works(server: Server, clips: dict[str, Path]) -> None:
    given = {"model": "demo", "input": about(clips["one"]), "temperature": 0}
    with client(server) as connection, connection.responses.stream(**given) as stream:
        final = stream.get_final_response()
    assert final.output_text == ONE


def test_the_async_client_is_answered_too(server: Server, clips: dict[str, Path]) -> None:
    async def scenario() -> tuple[str, str]:
        connection = openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)
        async with connection as asked:
            given = about(clips["one"])
            whole = await asked.responses.create(model="demo", input=given, temperature=0)
            stream = await asked.responses.create(model="demo", input=given, temperature=0, stream=True)
            parts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            return whole.output_text, "".join(parts)

    assert asyncio.run(scenario()) == (ONE, ONE)


def test_a_next_turn_takes_the_output_back(server: Server, clips: dict[str, Path]) -> None:
    given: list[Any] = about(clips["one"])
    first = ask(server, given)
    given += [*first.output, {"role": "user", "content": "What colour is it?"}]
    second = ask(server, given)
    assert second.output_text == "Red."
    assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens // 2


def test_words_and_pictures_are_answered(server: Server, clips: dict[str, Path]) -> None:
    assert ask(server, "Hello", max_output_tokens=3, extra_body={"ignore_eos": True}).usage.output_tokens == 3
    image = {"type": "input_image", "image_url": data_uri(clips["png"], "image/png"), "detail": "auto"}
    words = {"type": "input_text", "text": "What is in this picture?"}
    assert "red circle" in ask(server, [{"role": "user", "content": [image, words]}]).output_text


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_off_is_incomplete(server: Server, clips: dict[str, Path], stream: bool) -> None:
    given = ask(server, about(clips["one"]), max_output_tokens=2, stream=stream)
    received = given if stream else []
    response = received[-1].response if stream else given
    assert not stream or received[-1].type == "response.incomplete"
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"
    assert response.usage.output_tokens == 2


def test_a_schema_is_followed(server: Server, clips: dict[str, Path]) -> None:
    sentences = [f"A red circle {action}." for action in ACTIONS]
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": sentences}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    text = {"format": {"type": "json_schema", "name": "clip", "schema": schema, "strict": True}}
    response = ask(server, about(clips["one"]), text=text)
    assert json.loads(response.output_text) == {"answer": ONE}
    assert response.text.format.name == "clip"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"max_output_tokens": 10**9}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "strang"}}}}, "text.format"),
        ({"input": about(Path(__file__))}, "input.0.content.0.video_url"),
    ],
)
def test_a_refusal_is_openais_error_and_names_the_field(
    server: Server, fields: dict[str, Any], param: str, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(server, "Hello", stream=stream, **fields)
    assert caught.value.status_code in {400, 415}
    assert caught.value.param == param


def test_an_unknown_model_is_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        ask(server, "Hello", model="other")
