"""Events of several steps in one message: nothing is lost or late, and each step's time is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tru_vlm.api.workers.outbox import HOLD_SECONDS, MAX_HOLD_SECONDS, Outbox
from tru_vlm.engine.base import EngineTimings, FailEvent, FinishEvent, TokenEvent
from tru_vlm.errors import InternalError
from tru_vlm.types import Usage

FINISH = FinishEvent("a", "stop", Usage(1, 0, 3), EngineTimings(0.0, 0.0, 0.0))
FAIL = FailEvent("a", InternalError().info())
NOW = 100.0
SOON = NOW + HOLD_SECONDS / 2


@pytest.fixture
def outbox() -> Outbox:
    """Of which requests a, b and c have their first tokens already."""
    made = Outbox()
    made.add([TokenEvent(name, "The", 1) for name in "abc"], NOW)
    made.empty(NOW)
    return made


def test_what_only_continues_answers_waits_for_no_longer_than_it_may(outbox: Outbox) -> None:
    assert not outbox
    outbox.add([TokenEvent("a", "n", 1)], SOON)
    assert outbox
    assert not outbox.is_due(SOON)
    assert not outbox.is_due(NOW + 1.99 * HOLD_SECONDS)
    assert outbox.is_due(NOW + 2.01 * HOLD_SECONDS)


def test_one_answer_alone_does_not_wait_and_many_no_longer_than_the_bound(outbox: Outbox) -> None:
    outbox.add([FINISH, replace(FINISH, request_id="b")], NOW)
    outbox.empty(NOW)
    assert outbox.is_due(NOW)
    outbox.add([TokenEvent(f"row {row}", "", 1) for row in range(100)], NOW)
    outbox.empty(NOW)
    assert not outbox.is_due(NOW + 0.99 * MAX_HOLD_SECONDS)
    assert outbox.is_due(NOW + 1.01 * MAX_HOLD_SECONDS)


def test_tokens_of_several_steps_are_one_piece_and_each_step_is_told(outbox: Outbox) -> None:
    outbox.add([TokenEvent("a", " red", 2), TokenEvent("b", " blue", 1)], NOW + 0.004)
    outbox.add([TokenEvent("a", "", 1)], NOW + 0.008)
    outbox.add([TokenEvent("a", " star", 1), TokenEvent("b", ".", 1)], NOW + 0.012)
    assert outbox.empty(SOON) == (
        (TokenEvent("a", " red star", 4), TokenEvent("b", " blue.", 2)),
        ((NOW + 0.004, ("a", "b")), (NOW + 0.008, ("a",)), (NOW + 0.012, ("a", "b"))),
    )
    assert outbox.empty(SOON) == ((), ())


@pytest.mark.parametrize("urgent", [TokenEvent("new", "", 1), FINISH, FAIL], ids=["first token", "end", "error"])
def test_a_first_token_an_end_and_an_error_do_not_wait(
    outbox: Outbox, urgent: TokenEvent | FinishEvent | FailEvent
) -> None:
    outbox.add([TokenEvent("b", "n", 1)], SOON)
    outbox.add([urgent], SOON)
    assert outbox.is_due(SOON)
    assert {*outbox.empty(SOON)[0]} == {TokenEvent("b", "n", 1), urgent}
    outbox.add([TokenEvent("b", "n", 1)], SOON)
    assert not outbox.is_due(SOON)


@pytest.mark.parametrize("end", [FINISH, FAIL], ids=["end", "error"])
def test_an_answers_last_tokens_come_before_its_end(outbox: Outbox, end: FinishEvent | FailEvent) -> None:
    outbox.add([TokenEvent("a", "n", 1)], SOON)
    outbox.add([TokenEvent("a", "d", 1), end], SOON)
    assert outbox.empty(SOON)[0] == (TokenEvent("a", "nd", 2), end)


def test_an_id_that_is_used_again_has_a_first_token_again(outbox: Outbox) -> None:
    outbox.add([FINISH], SOON)
    outbox.empty(SOON)
    outbox.add([TokenEvent("a", "A", 1)], SOON)
    assert outbox.is_due(SOON)
