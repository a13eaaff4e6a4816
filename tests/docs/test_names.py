"""What the documents name is there: settings, routes, targets of make, error codes."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_blocks import blocks, documents
from support import ROOT

from tru_vlm.served_models import served_models
from tru_vlm.settings import Settings

CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SETTINGS = {name.upper() for name in Settings.model_fields}

#: Variables of other programs, of tests and of the client; and headers of protocols that look like them.
OTHER_VARIABLES = {
    "BASE_IMAGE", "GPU_COUNT", "HF_HOME", "HF_TOKEN", "TORCH_INDEX", "TRU_API_KEY", "TRU_BASE_URL",
}  # fmt: skip


def words(page: Path) -> Iterator[str]:
    """A page's inline code."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from (match[1] for match in CODE.finditer(text))


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


# The changelog and decisions tell of what has been, too.
PAGES = [page for page in documents() if page.name != "CHANGELOG.md" and page.parent.name != "adr"]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_settings_exist(page: Path) -> None:
    names = {match[0] for word in words(page) if (match := re.match(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+(?=$|=)", word))}
    assert names - SETTINGS - OTHER_VARIABLES == set()


def route_patterns() -> list[re.Pattern[str]]:
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    return [re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))) for path in paths]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_routes_exist(page: Path) -> None:
    patterns = route_patterns()
    families = {"/v1/uploads", "/v1/jobs", "/v1/chats", "/v1/videos"}
    for word in words(page):
        for path in re.findall(r"(?<![\w.:])/v1/[\w{}./-]+", word):
            assert path in families or any(pattern.fullmatch(path) for pattern in patterns), path


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_make_has_the_targets(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    texts = [*words(page), *(block.code for block in blocks(page) if block.language == "sh")]
    wanted = {name for text in texts for name in re.findall(r"^(?:[A-Z_]+=\S+ )*make ([a-z-]+)", text, re.MULTILINE)}
    assert wanted <= targets


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_exist(page: Path) -> None:
    for word in words(page):
        if re.fullmatch(r"(tru_vlm|qwen_vl_utils|tests|scripts|benchmarks|deploy|demo_model|examples)/[\w./-]*", word):
            assert (ROOT / word).exists() or (ROOT / f"{word}.py").exists(), word


START = re.compile(r"^((?:[A-Z_]+=(?:'[^']*'|\S+)\s+)+)(?:make serve|python server\.py|tru-vlm serve)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_that_start_a_server_set_what_it_takes(page: Path) -> None:
    for block in blocks(page):
        for match in START.finditer(block.code if block.language == "sh" else ""):
            values = dict(word.split("=", 1) for word in shlex.split(re.sub(r"\$\([^)]*\)", "x" * 32, match[1])))
            assert values.keys() <= SETTINGS
            served_models(Settings(**{name.lower(): value for name, value in values.items()}))


def codes_of_the_source() -> set[str]:
    """Every ``code=`` and ``default_code`` of the package, and those that reach clients by another way."""
    codes = {"upgrade_required", "decoder_crashed", "decode_memory", "decode_timeout", "image_too_large"}
    codes |= {"video_too_long", "method_not_allowed"}
    for path in (ROOT / "tru_vlm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                    codes.add(code)
                case ast.Assign(targets=[ast.Name(id="default_code")], value=ast.Constant(value=str(code))):
                    codes.add(code)
                case ast.AnnAssign(target=ast.Name(id="default_code"), value=ast.Constant(value=str(code))):
                    codes.add(code)
                case _:
                    pass
    return codes


def test_every_error_code_is_explained_and_none_is_invented() -> None:
    rows = re.findall(
        r"^\| (`[^|]*`) \| \(?\d", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    explained = [code for row in rows for code in CODE.findall(row)]
    assert len(explained) == len(set(explained))
    assert set(explained) == codes_of_the_source()
