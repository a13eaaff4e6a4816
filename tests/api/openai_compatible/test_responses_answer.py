"""The events of a streamed response: one opening, one end, whatever happens between."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tru_vlm.api.openai_compatible.responses_answer import ResponsesAnswer
from tru_vlm.errors import ErrorInfo, InvalidRequestError, OverloadedError, UnavailableError
from tru_vlm.types import Answer, DeltaEvent, DoneEvent, ErrorEvent, FinishReason, StatusEvent, Timings, Usage

ID = "req-1"
OPENING = ["response.created", "response.in_progress"]
ITEM = ["response.output_item.added", "response.content_part.added"]
ITEM_DONE = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


def shape() -> ResponsesAnswer:
    return ResponsesAnswer(ID, model="demo", repeated={"temperature": 0.0})


def answer(reason: FinishReason, text: str = "A red") -> Answer:
    return Answer(
        id=ID, model="demo", text=text, finish_reason=reason, usage=Usage(7, 4, 2), video=None, timings=Timings()
    )


def events_of(*events: Any) -> list[dict[str, Any]]:
    given = shape()
    found = []
    for block in b"".join(given.encode(event) for event in events).decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def names_of(*events: Any) -> list[str]:
    return [event["type"] for event in events_of(*events)]


def test_an_answer_without_words_has_all_events_but_deltas() -> None:
    names = names_of(StatusEvent(ID, "queued"), DoneEvent(answer("stop", "")))
    assert names == [*OPENING, *ITEM, *ITEM_DONE, "response.completed"]


def test_the_response_opens_once_whichever_event_is_first() -> None:
    for first in (StatusEvent(ID, "queued"), DeltaEvent(ID, "A")):
        names = names_of(first, DeltaEvent(ID, " red"), DoneEvent(answer("length")))
        assert names[:2] == OPENING
        assert names.count("response.created") == names.count("response.output_item.added") == 1
        assert names[-1] == "response.incomplete"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("The worker died."), "server_error"),
        (OverloadedError("Full."), "rate_limit_exceeded"),
        (InvalidRequestError("Wrong.", param="input"), "invalid_prompt"),
    ],
)
def test_a_failure_is_the_last_event_and_keeps_what_was_said(error: Any, code: str) -> None:
    info: ErrorInfo = error.info()
    events = events_of(StatusEvent(ID, "queued"), DeltaEvent(ID, "A"), DeltaEvent(ID, " red"), ErrorEvent(ID, info))
    assert [event["type"] for event in events[-2:]] == ["response.output_text.delta", "response.failed"]
    response = events[-1]["response"]
    assert (response["status"], response["error"]["code"], response["error"]["param"]) == ("failed", code, info.param)
    assert response["tru"]["error"]["code"] == info.code
    assert response["tru"]["error"]["request_id"] == ID
    (item,) = response["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "A red")


def test_a_failure_before_the_first_word_has_no_output() -> None:
    events = events_of(StatusEvent(ID, "queued"), ErrorEvent(ID, UnavailableError("x").info()))
    assert [event["type"] for event in events] == [*OPENING, "response.failed"]
    assert events[-1]["response"]["output"] == []


def test_an_answer_that_the_servers_stop_cuts_off_has_failed() -> None:
    events = events_of(DeltaEvent(ID, "A red"), DoneEvent(answer("abort")))
    assert (events[-1]["type"], events[-1]["response"]["tru"]["error"]["code"]) == ("response.failed", "aborted")


def test_a_whole_response_says_how_it_ended() -> None:
    statuses = {reason: shape().body(answer(reason), [])["status"] for reason in ("stop", "length", "abort")}
    assert statuses == {"stop": "completed", "length": "incomplete", "abort": "cancelled"}
