"""A client's schema is tried in a real child process: hostile ones end there, with an answer for the client."""

from __future__ import annotations

import asyncio
import json

import psutil
import pytest

from tru_vlm.api.pipeline.schema_check import SchemaCheck
from tru_vlm.errors import InvalidRequestError
from tru_vlm.processor import grammar

MULTIPLES = {"anyOf": [{"type": "integer", "multipleOf": index + 9001} for index in range(300)]}
PATTERNS = {"type": "object", "patternProperties": {f"^(a|b)*{index}(a|b){{12}}$": {} for index in range(300)}}


def check(*schemas: dict, checker: SchemaCheck | None = None) -> None:
    async def run() -> None:
        used = checker or SchemaCheck()
        for schema in schemas:
            await used.check(json.dumps(schema), param="response_format")

    asyncio.run(run())


def test_good_schemas_pass() -> None:
    check(
        {},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]+$"}}, "required": ["a"]},
        {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"},
        {"enum": list(range(1000))},
    )


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strang"}, "strang"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "pattern": "(("}, "regex"),
        ({"$ref": "#"}, "no text"),
        (MULTIPLES, "time or memory"),
        (PATTERNS, "time or memory"),
    ],
)
def test_a_schema_that_is_wrong_or_takes_too_much_is_refused(schema: dict, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        check(schema)
    assert (caught.value.param, caught.value.status) == ("response_format", 400)
    assert len(caught.value.message) < 400


def test_what_passed_is_not_tried_again_and_what_failed_is(monkeypatch: pytest.MonkeyPatch) -> None:
    checker, good, bad = SchemaCheck(), {"type": "integer"}, {"type": "strang"}
    check(good, checker=checker)
    with pytest.raises(InvalidRequestError):
        check(bad, checker=checker)
    monkeypatch.setattr(grammar, "__file__", "/none")  # a child would fail
    check(good, json.loads(grammar.ANY_OBJECT), checker=checker)
    with pytest.raises(InvalidRequestError):
        check(bad, checker=checker)


def at_work(children: set[psutil.Process]) -> bool:
    """Whether a child has run for a while: the call that starts it has returned by then."""
    return any(child.cpu_times().user >= 0.05 for child in children)


def test_a_request_that_ends_meanwhile_leaves_no_child() -> None:
    before = set(psutil.Process().children())

    async def run() -> None:
        checker = SchemaCheck()
        for _ in range(3):  # more than there are places for children
            task = asyncio.create_task(checker.check(json.dumps(MULTIPLES), param="x"))
            while not at_work(set(psutil.Process().children()) - before):  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert set(psutil.Process().children()) <= before
        await checker.check(json.dumps({"type": "integer"}), param="x")

    asyncio.run(run())
