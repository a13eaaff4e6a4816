"""What the site does beside Markdown: README is its first page, decisions are listed, and repository files are named.

A page's link to a file outside of ``docs`` becomes that file's name, after a check that it exists.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """List the pages that nobody has given a place, and the decisions."""
    placed = {name for section in config.nav for pages in section.values() for name in pages}
    more = sorted(path.name for path in DOCS.glob("*.md") if path.name not in placed)
    if more:
        config.nav.append({"More": more})
    decisions = sorted(f"adr/{path.name}" for path in (DOCS / "adr").glob("*.md"))
    config.nav.append({"Decisions": decisions})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Begin with the README, as if it lay in ``docs``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    text = _LINK.sub(lambda match: _unless_elsewhere(match, ROOT, "README.md"), text)
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name the files that the site does not have."""
    if page.file.src_uri == "index.md":
        return markdown
    folder = (DOCS / page.file.src_uri).parent
    return _LINK.sub(lambda match: _unless_elsewhere(match, folder, page.file.src_uri), markdown)


def _unless_elsewhere(match: re.Match[str], folder: Path, page: str) -> str:
    text, target = match.groups()
    path = target.partition("#")[0]
    if "://" in target or not path or (folder == ROOT and (DOCS / path).exists()):
        return match[0]
    file = (folder / path).resolve()
    if file.is_relative_to(DOCS):
        return match[0]
    if not file.exists():
        raise PluginError(f"{page}: {target} leads to no file of the repository")
    name = f"`{file.relative_to(ROOT)}`"
    return name if text == path or text.rstrip("/") == str(file.relative_to(ROOT)) else f"{text} ({name})"
