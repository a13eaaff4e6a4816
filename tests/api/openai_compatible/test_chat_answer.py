"""Chunks of a streamed chat completion, byte for byte where it matters."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tru_vlm.api.openai_compatible.chat_answer import ChatAnswer
from tru_vlm.errors import InternalError
from tru_vlm.types import (
    Answer,
    DeltaEvent,
    DoneEvent,
    ErrorEvent,
    FinishReason,
    StatusEvent,
    Timings,
    Usage,
    VideoEvent,
    VideoInfo,
)

VIDEO = VideoInfo("video", 8, 96, 128, 240, 320, 48, "pyav")
END = "data: [DONE]"


def answer(reason: FinishReason = "stop") -> Answer:
    return Answer("req-1", "demo", "A red", reason, Usage(10, 6, 2, cached_tokens=4), VIDEO, Timings())


def lines(*events: Any, include_usage: bool = False) -> list[str]:
    shape = ChatAnswer("req-1", model="demo", include_usage=include_usage)
    text = b"".join(map(shape.encode, events)).decode()
    assert not text or text.endswith("\n\n")
    return text.split("\n\n")[:-1]


def bodies(given: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in given if line != END]


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_stream_has_role_text_reason_usage_and_done(include_usage: bool) -> None:
    events = (StatusEvent("req-1", "decoding"), *[VideoEvent("req-1", VIDEO)] * 2)
    deltas = (DeltaEvent("req-1", "A "), DeltaEvent("req-1", "räd"))
    sent = lines(*events, *deltas, DoneEvent(answer()), include_usage=include_usage)
    assert sent[-1] == END
    role, one, two, last, *rest = bodies(sent)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [chunk["choices"][0]["delta"] for chunk in (one, two, last)] == [{"content": "A "}, {"content": "räd"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in (role, one, two, last)] == [None, None, None, "stop"]
    assert len(last["tru"]["video"]) == 2
    assert all(("usage" in chunk) == include_usage for chunk in (role, one, two, last))
    if include_usage:
        assert rest[0]["choices"] == []
        assert rest[0]["usage"] == {
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 4, "video_tokens": 6},
        }
    assert len(rest) == include_usage
    assert {chunk["id"] for chunk in (role, one, two, last, *rest)} == {"chatcmpl-1"}


def test_an_answer_without_a_word_still_has_its_role() -> None:
    role, last = bodies(lines(DoneEvent(answer("length"))))
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["finish_reason"] == "length"


def test_a_failure_is_told_and_is_not_done() -> None:
    sent = lines(DeltaEvent("req-1", "A"), ErrorEvent("req-1", InternalError().info()))
    assert END not in sent
    assert bodies(sent)[-1]["error"]["request_id"] == "req-1"


def test_an_answer_that_was_cut_off_is_no_complete_one() -> None:
    sent = lines(DeltaEvent("req-1", "A"), DoneEvent(answer("abort")))
    assert END not in sent
    assert bodies(sent)[-1]["error"]["code"] == "aborted"


def test_a_whole_completion_has_the_same_parts() -> None:
    body = ChatAnswer("req-1", model="demo", include_usage=False).body(answer(), [VIDEO])
    assert (body["id"], body["object"]) == ("chatcmpl-1", "chat.completion")
    message = {"role": "assistant", "content": "A red", "refusal": None}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert [video["num_frames"] for video in body["tru"]["video"]] == [8]
