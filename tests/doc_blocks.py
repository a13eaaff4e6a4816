"""Fenced code blocks of the documents, and what the comments above them promise.  Runs none of them.

Comments directly above a block, one a line, which readers of the page do not see::

    <!-- not run: needs Docker -->   only its syntax is checked; the reason is for whoever edits the page
    <!-- output -->                  this is what the block before it prints; `…` stands for anything
    <!-- exits: 1 -->                the block fails, with this status
    <!-- schema: Answer -->          a JSON document that this component of openapi.json describes

A block with ``title="NAME"`` is a file of that name, which the page's later blocks find in their folder.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support import ROOT

_FENCE = re.compile(
    r"(?P<notes>(?:^[ ]*<!--.*?-->\n)*)"
    r"^(?P<indent> *)```(?P<language>[\w-]*)(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_NOTE = re.compile(r"<!--\s*(?P<name>not run|output|exits|schema)\s*(?::\s*(?P<value>.*?))?\s*-->")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True, slots=True)
class Block:
    """One block: where it stands, its language and text, and the comments above it."""

    page: Path
    line: int
    language: str
    code: str
    title: str | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return "not run" not in self.notes


def documents() -> list[Path]:
    """The pages that people read: the repository's own, and the site's."""
    names = [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "typescript/README.md",
        "demo_model/README.md",
    ]
    return [ROOT / name for name in names] + sorted((ROOT / "docs").rglob("*.md"))


def blocks(page: Path) -> list[Block]:
    """A page's blocks, in order."""
    return list(_blocks(page, page.read_text(encoding="utf-8")))


def _blocks(page: Path, text: str) -> Iterator[Block]:
    for match in _FENCE.finditer(text):
        title = _TITLE.search(match["info"])
        yield Block(
            page=page,
            line=text.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            code=textwrap.dedent(match["code"]),
            title=title[1] if title else None,
            notes={note["name"]: note["value"] or "" for note in _NOTE.finditer(match["notes"])},
        )
