"""OpenAI's own client, sync and async, against the real server: answers, streams, turns, media, errors."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from client import QUESTION, TIMEOUT
from openai.types.chat import ChatCompletion
from support import Server

from demo_model.generator import ACTIONS, ClipSpec, Event, encode

ONE = "A red circle moves left."
BLOCK_TOKENS = 16


@pytest.fixture(scope="module")
def blue(clips: dict[str, Path]) -> Path:
    """A clip of something else."""
    spec = ClipSpec(events=(Event("blue", "square", "grows"),), duration_seconds=4.0)
    return encode(spec, clips["one"].with_name("blue_square.mp4"))


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0, timeout=TIMEOUT)


def data_uri(path: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode()


def video(path: Path, **options: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_uri(path), **options}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def ask(server: Server, *messages: Any, **options: Any) -> Any:
    """The completion, or a stream's chunks."""
    given = {"model": "demo", "temperature": 0, "max_tokens": 60} | options
    with client(server) as connection:
        answer = connection.chat.completions.create(messages=list(messages), **given)
        return list(answer) if isinstance(answer, openai.Stream) else answer


def words_of(completion: ChatCompletion) -> str:
    return completion.choices[0].message.content or ""


def videos_of(completion: Any) -> list[dict[str, Any]]:
    return completion.model_extra["tru"]["video"]


# ---- one answer ------------------------------------------------------------------------------------------------------


def test_an_answer_has_openais_shape_and_tells_what_was_sampled(server: Server, clips: dict[str, Path]) -> None:
    completion = ask(server, user(video(clips["one"]), text(QUESTION)))
    assert completion.id.startswith("chatcmpl-")
    assert (completion.object, completion.model) == ("chat.completion", "demo")
    assert completion.created > 1_600_000_000
    (choice,) = completion.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content, choice.message.refusal) == ("assistant", ONE, None)
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    (sampled,) = videos_of(completion)
    assert sampled["num_frames"] == 8
    assert sampled["video_tokens"] == usage.prompt_tokens_details.model_extra["video_tokens"] > 0
    assert completion.model_extra["tru"]["timings"]["total"] > 0
    assert set(completion.model_extra) == {"tru"}


def test_the_async_client_is_answered_too(server: Server, clips: dict[str, Path]) -> None:
    async def scenario() -> tuple[str, str]:
        connection = openai.AsyncOpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)
        async with connection as asked:
            messages = [user(video(clips["one"]), text(QUESTION))]
            whole = await asked.chat.completions.create(model="demo", messages=messages, temperature=0)
            stream = await asked.chat.completions.create(model="demo", messages=messages, temperature=0, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return words_of(whole), "".join(parts)

    assert asyncio.run(scenario()) == (ONE, ONE)


def test_words_alone_are_answered(server: Server) -> None:
    completion = ask(server, {"role": "user", "content": "Hello"}, max_tokens=3, extra_body={"ignore_eos": True})
    assert (completion.choices[0].finish_reason, completion.usage.completion_tokens) == ("length", 3)
    assert videos_of(completion) == []
    assert completion.usage.prompt_tokens_details.model_extra["video_tokens"] == 0


def test_an_image_is_seen(server: Server, clips: dict[str, Path]) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(clips["png"], "image/png"), "detail": "high"}}
    completion = ask(server, user(image, text("What is in this picture?")))
    assert "red circle" in words_of(completion)
    assert videos_of(completion)[0]["kind"] == "image"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_either_name_of_the_length_ends_an_answer(server: Server, clips: dict[str, Path], field: str) -> None:
    messages = [user(video(clips["one"]), text(QUESTION))]
    with client(server) as connection:
        completion = connection.chat.completions.create(model="demo", messages=messages, temperature=0, **{field: 2})
    assert (completion.choices[0].finish_reason, completion.usage.completion_tokens) == ("length", 2)


@pytest.mark.parametrize("stop", [" moves", ["xyz", " moves"]])
def test_a_stop_string_ends_an_answer_and_is_not_in_it(server: Server, clips: dict[str, Path], stop: Any) -> None:
    completion = ask(server, user(video(clips["one"]), text(QUESTION)), stop=stop)
    assert (completion.choices[0].finish_reason, words_of(completion)) == ("stop", "A red circle")


def test_a_seed_makes_sampling_reproducible(server: Server, clips: dict[str, Path]) -> None:
    def draw(seed: int) -> str:
        options = {"temperature": 2, "seed": seed, "max_tokens": 20}
        return words_of(ask(server, user(video(clips["one"]), text(QUESTION)), **options))

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_an_answer_follows_a_schema_in_openais_spelling(server: Server, clips: dict[str, Path]) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": [f"A red circle {action}." for action in ACTIONS]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "clip", "schema": schema, "strict": True}}
    completion = ask(server, user(video(clips["one"]), text(QUESTION)), response_format=wanted)
    assert json.loads(words_of(completion)) == {"answer": ONE}


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_stream_has_role_words_reason_and_usage_in_this_order(
    server: Server, clips: dict[str, Path], include_usage: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    messages = [user(video(clips["one"]), text(QUESTION))]
    whole = ask(server, *messages)
    chunks = ask(server, *messages, stream=True, **options)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage.completion_tokens == whole.usage.completion_tokens
        assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks)
    assert all(("usage" in chunk.model_fields_set) == include_usage for chunk in chunks)
    first, *middle, end = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == ONE
    assert len(middle) > 3
    assert {chunk.choices[0].finish_reason for chunk in (first, *middle)} == {None}
    assert (end.choices[0].finish_reason, end.choices[0].delta.content) == ("stop", None)
    assert videos_of(end)[0]["num_frames"] == 8


# ---- several turns, several media ------------------------------------------------------------------------------------


def test_a_second_question_on_a_video_is_found_in_the_caches(server: Server, clips: dict[str, Path]) -> None:
    ask(server, user(video(clips["two"]), text(QUESTION)))
    second = ask(server, user(video(clips["two"]), text("Which colour is it?")))
    details = second.usage.prompt_tokens_details
    assert details.cached_tokens > details.model_extra["video_tokens"] - BLOCK_TOKENS > 0


def test_a_chats_next_turn_computes_only_the_turn(server: Server, clips: dict[str, Path]) -> None:
    history: list[Any] = [user(video(clips["one"], fps=3), text(QUESTION))]
    first = ask(server, *history)
    assert first.choices[0].finish_reason == "stop"
    history += [first.choices[0].message, user(text("What colour is it?"))]
    second = ask(server, *history)
    assert words_of(second) == "Red."
    in_cache = first.usage.total_tokens - 1  # the token that ends the answer is never run
    assert second.usage.prompt_tokens_details.cached_tokens == in_cache // BLOCK_TOKENS * BLOCK_TOKENS
    history += [second.choices[0].message, user(text("What shape is it?"))]
    third = ask(server, *history)
    assert words_of(third) == "Circle."
    in_cache = second.usage.total_tokens - 1
    assert third.usage.prompt_tokens_details.cached_tokens == in_cache // BLOCK_TOKENS * BLOCK_TOKENS


def test_two_videos_of_one_message_are_told_apart_by_their_order(
    server: Server, clips: dict[str, Path], blue: Path
) -> None:
    question = text("What colour is it?")
    assert words_of(ask(server, user(video(clips["one"]), video(blue), question))) == "First red, then blue."
    assert words_of(ask(server, user(video(blue), video(clips["one"]), question))) == "First blue, then red."


def test_a_video_of_a_later_turn_is_seen_after_the_first(server: Server, clips: dict[str, Path], blue: Path) -> None:
    history: list[Any] = [user(video(blue), text(QUESTION))]
    first = ask(server, *history)
    assert words_of(first) == "A blue square grows."
    history += [first.choices[0].message, user(video(clips["one"], max_frames=4), text(QUESTION))]
    second = ask(server, *history)
    assert words_of(second).startswith("A blue square grows. Then, at <")
    assert words_of(second).endswith("a red circle moves left.")
    assert [sampled["num_frames"] for sampled in videos_of(second)] == [8, 4]
    assert second.usage.prompt_tokens_details.cached_tokens > BLOCK_TOKENS


def test_a_video_and_an_image_stand_in_one_conversation(server: Server, clips: dict[str, Path]) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(clips["png"], "image/png")}}
    completion = ask(server, user(image, text("Then:"), video(clips["one"]), text(QUESTION)))
    assert [sampled["kind"] for sampled in videos_of(completion)] == ["image", "video"]


def test_system_messages_come_first_and_count(server: Server) -> None:
    plain = ask(server, user(text("Hello")), max_tokens=1)
    system = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."}]
    told = ask(server, *system, user(text("Hello")), max_tokens=1)
    assert told.usage.prompt_tokens > plain.usage.prompt_tokens + 5


# ---- models and errors -----------------------------------------------------------------------------------------------


def test_models_are_listed(server: Server) -> None:
    with client(server) as connection:
        (model,) = connection.models.list().data
        assert (model.id, model.object) == ("demo", "model")
        assert connection.models.retrieve("demo") == model
        with pytest.raises(openai.NotFoundError) as caught:
            connection.models.retrieve("some/other")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_an_unknown_model_is_openais_404_with_the_name_that_exists(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="'demo'") as caught:
        ask(server, user(text("Hello")), model="gpt-4o")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_before_the_first_chunk_is_an_exception_with_its_field(
    server: Server, clips: dict[str, Path], stream: bool
) -> None:
    good, bad = video(clips["one"]), video(clips["text"])
    with pytest.raises(openai.APIStatusError) as caught:
        ask(server, user(good, text("Or"), bad, text(QUESTION)), stream=stream)
    assert caught.value.status_code == 415
    assert (caught.value.code, caught.value.param) == ("unsupported_media", "messages.0.content.2.video_url.url")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, user(video(clips["one"], video_start=100), text(QUESTION)), stream=stream)
    assert caught.value.param == "messages.0.content.0.video_url.video_start"


def test_nothing_is_left_on_disk(server: Server, clips: dict[str, Path]) -> None:
    def files() -> list[Path]:
        return [path for path in (server.storage / "spool").rglob("*") if path.is_file() and path.name != ".lock"]

    before = files()
    ask(server, user(video(clips["one"]), video(clips["two"]), text(QUESTION)))
    with pytest.raises(openai.APIStatusError):
        ask(server, user(video(clips["one"]), video(clips["zero"]), video(clips["two"]), text(QUESTION)))
    assert files() == before
