"""Fields of others' APIs that this server does not implement: accepted where their value asks for nothing.

Each API has its table beside its body; this knows no API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tru_vlm.errors import InvalidRequestError

NeutralValues = Mapping[str, tuple[Any, ...]]
"""Names of fields, and of each the values, beside null, that ask for nothing."""


def without_neutral(given: Mapping[str, Any], neutral: NeutralValues) -> dict[str, Any]:
    """The fields that ask for something.

    Args:
        given: a body; null counts as left out.
        neutral: the API's table.

    Raises:
        InvalidRequestError: naming a field that is not implemented and asks for something.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name, values in neutral.items():
        if name in given and given[name] not in values:
            accepted = " or ".join(["null", *map(repr, values)])
            text = f"{name} is not supported by this server; leave it out (accepted: {accepted})."
            raise InvalidRequestError(text, param=name, code="unsupported_parameter")
    return {name: value for name, value in given.items() if name not in neutral}


def describe_neutral(neutral: NeutralValues) -> Callable[[dict[str, Any]], None]:
    """Adds an API's table to its body's JSON schema (pydantic's ``json_schema_extra``)."""

    def describe(schema: dict[str, Any]) -> None:
        for name, values in neutral.items():
            text = "Not supported; accepted are only values that ask for nothing."
            schema["properties"][name] = {"enum": [None, *values], "description": text}

    return describe
