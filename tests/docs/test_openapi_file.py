"""The committed description is what the code says, is valid OpenAPI, and its examples are what it describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from support import ROOT

from tru_vlm.api.openapi_document import openapi_text

FILE = ROOT / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
REGISTRY = Registry().with_resource("doc:", Resource(DOCUMENT, DRAFT202012))
FILES = ("multipart/form-data",)  # the example of a form leaves its file out


def test_it_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_NEW_TOKENS", "77")  # whatever this machine's settings are
    text = openapi_text()
    assert text == FILE.read_text(encoding="utf-8"), "run: python -m tru_vlm.api.openapi_document docs/openapi.json"


def test_it_is_valid() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def operations(kind: str = "paths") -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT[kind].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


NOT_READY = {("GET /v1/health", "503"), ("GET /v1/health/ready", "503")}


def test_every_operation_is_described() -> None:
    for name, operation in operations():
        assert operation["description"], name
        assert operation["tags"], name
        assert any(status < "400" for status in operation["responses"]), name
        assert "400" in operation["responses"], name
        assert "422" not in operation["responses"], name
        for status, response in operation["responses"].items():
            schema = response.get("content", {}).get("application/json", {}).get("schema")
            if (name, status) in NOT_READY:  # no error: the same body as when it is ready, with another word
                continue
            if status >= "400" and not name.startswith("HEAD"):
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (name, status)


def examples() -> Iterator[tuple[str, dict[str, Any], Any]]:
    for name, operation in (*operations(), *operations("webhooks")):
        contents = {f"{name} body": operation.get("requestBody", {}).get("content", {})}
        contents |= {
            f"{name} {status}": response.get("content", {}) for status, response in operation["responses"].items()
        }
        contents |= {f"{name} {parameter['name']}": {"": parameter} for parameter in operation.get("parameters", ())}
        if "x-client-messages" in operation:
            contents[f"{name} messages"] = {"application/json": operation["x-client-messages"]}
        for place, kinds in contents.items():
            for kind, content in kinds.items():
                schema = dict(content.get("schema", {}))
                if kind not in FILES:
                    values = [item["value"] for item in content.get("examples", {}).values()]
                    yield from (
                        (place, schema, value) for value in [*values, content.get("example")] if value is not None
                    )


def test_examples_are_what_they_are_examples_of() -> None:
    found = list(examples())
    assert len(found) > 20
    for place, schema, value in found:
        absolute = json.loads(json.dumps(schema).replace('"#/', '"doc:#/'))
        errors = Draft202012Validator(absolute, registry=REGISTRY).iter_errors(value)
        assert [f"{list(error.absolute_path)}: {error.message}" for error in errors] == [], place


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    text = json.dumps(DOCUMENT)
    names = DOCUMENT["components"]["schemas"]  # a description names, in backticks, what no schema can refer to
    unused = [name for name in names if f'"#/components/schemas/{name}"' not in text and f"`{name}`" not in text]
    assert unused == []
