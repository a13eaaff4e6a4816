"""Every code block of the documents runs as printed, against a real server, or says why not and is well-formed."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema
import pytest
import yaml
from doc_blocks import Block, blocks, documents
from support import ROOT, Server, require

from tru_vlm.settings import Settings

TIMEOUT = 400  # a bound for what hangs: a block may ask several questions, and a busy machine is slow
ADDRESS = "127.0.0.1:8000"
CLIPS_ADDRESS = "https://example.com/"
PAGES = [page for page in documents() if blocks(page)]

# Variables that a block sets are there in the page's later blocks; an HTTP error of curl fails a block; the command is
# this tree's, whatever is installed.
PROLOGUE = """set -euo pipefail
tru-vlm() { python -m tru_vlm "$@"; }
curl() { command curl --silent --show-error --fail-with-body --max-time 380 "$@"; }
touch .variables; source ./.variables
"""


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture(scope="module")
def clips_address(clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the documents' clips can be fetched from."""
    folder = tmp_path_factory.mktemp("web")
    shutil.copy(clips["one"], folder / "clip.mp4")
    shutil.copy(clips["two"], folder / "lecture.mp4")
    web = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietFiles, directory=str(folder)))
    thread = Thread(target=web.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}/"
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


@pytest.fixture
def folder(clips: dict[str, Path], tmp_path: Path) -> Path:
    """Where a page's blocks run: with the clips that the documents name."""
    shutil.copy(clips["one"], tmp_path / "clip.mp4")
    shutil.copy(clips["two"], tmp_path / "lecture.mp4")
    shutil.copy(clips["jpeg"], tmp_path / "picture.jpg")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks(page: Path, folder: Path, server: Server, clips_address: str) -> None:
    def as_run(text: str) -> str:
        return text.replace(ADDRESS, server.base.removeprefix("http://")).replace(CLIPS_ADDRESS, clips_address)

    printed: str | None = None
    for block in blocks(page):
        if block.language == "js" and not is_node_new():
            printed = None
            continue
        CHECKS[block.language](block)
        if block.title:
            (folder / block.title).write_text(as_run(block.code), encoding="utf-8")
        if "output" in block.notes:
            is_as_shown = printed is None or wildcards(block.code).fullmatch(squeezed(printed))
            assert is_as_shown, f"{block}: it printed\n{printed}"
        elif block.is_run and not block.title and block.language in COMMANDS:
            printed = run(block, as_run(block.code), folder, server.base)


def run(block: Block, code: str, folder: Path, base: str) -> str:
    command = COMMANDS[block.language]
    require(shutil.which(command[0]), f"{command[0]} is not installed")
    path = folder / SCRIPTS[block.language]
    path.write_text(with_variables(code) if block.language == "sh" else code, encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),  # this tree's package, whatever is installed
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TRU_BASE_URL": base,
        "NO_COLOR": "1",
    }
    result = subprocess.run(
        [*command, path], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    expected = int(block.notes.get("exits", "0"))
    assert result.returncode == expected, f"{block} ended with {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout


def with_variables(code: str) -> str:
    names = sorted(set(re.findall(r"^([A-Z][A-Z_]*)=", code, re.MULTILINE)))
    return f"{PROLOGUE}{code}" + "".join(f"\ndeclare -p {name} >> .variables" for name in names)


def squeezed(text: str) -> str:
    return "".join(text.split())


def wildcards(text: str) -> re.Pattern[str]:
    """What a block ``output`` shows: white space does not count, and ``…`` is anything."""
    return re.compile(".*?".join(re.escape(part) for part in squeezed(text).split("…")))


def check_syntax(*command: str) -> Callable[[Block], None]:
    def check(block: Block) -> None:
        require(shutil.which(command[0]), f"{command[0]} is not installed")
        result = subprocess.run(command, input=block.code, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        assert result.returncode == 0, f"{block}\n{result.stderr}"

    return check


@functools.cache
def is_node_new() -> bool:
    """Whether Node is as new as docs/javascript.md asks for; with an older one its blocks are left out."""
    require(shutil.which("node"), "node is not installed")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
    major, minor, _ = version.removeprefix("v").split(".")
    return (int(major), int(minor)) >= (20, 10)


def check_python(block: Block) -> None:
    compile(block.code, str(block), "exec")


def check_json(block: Block) -> None:
    if "output" in block.notes and "…" in block.code:
        return  # compared with what was printed
    lines = block.code.splitlines() if (block.title or "").endswith(".jsonl") else [block.code]
    values = [json.loads(line) for line in lines]
    if "schema" in block.notes:
        description = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
        reference = {"$ref": f"#/components/schemas/{block.notes['schema']}", "components": description["components"]}
        for value in values:
            jsonschema.validate(value, reference)


def check_yaml(block: Block) -> None:
    list(yaml.safe_load_all(block.code))


def check_toml(block: Block) -> None:
    tomllib.loads(block.code)


def check_settings(block: Block) -> None:
    """Lines of ``.env``: the settings exist, and take these values."""
    lines = [line.split(" #")[0].strip() for line in block.code.splitlines()]
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert values.keys() <= {name.upper() for name in Settings.model_fields}, str(block)
    Settings(**{name.lower(): value.strip("'") for name, value in values.items()})


def check_nothing(_: Block) -> None:
    pass


#: A language that is not here must be given a check before a document may use it.
CHECKS: dict[str, Callable[[Block], None]] = {
    "sh": check_syntax("bash", "-n"),
    "python": check_python,
    "js": check_syntax("node", "--input-type=module", "--check"),
    "json": check_json,
    "yaml": check_yaml,
    "toml": check_toml,
    "ini": check_settings,
    "text": check_nothing,
    "mermaid": check_nothing,
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "sh": ("bash",),
    "python": (sys.executable,),
    "js": ("node", "--experimental-websocket"),
}
SCRIPTS = {"sh": ".block.sh", "python": ".block.py", "js": ".block.mjs"}


def test_output_is_compared_with_wildcards() -> None:
    assert wildcards('{"id": "…", "text": "A red circle"}').fullmatch(squeezed('{"id":"x","text":"A red  circle"}'))
    assert not wildcards('{"id": "…"}').fullmatch(squeezed('{"id":"x","more":1}'))
