"""An answer's Markdown as HTML while it streams in: block by block, of which only the last may still change.

What is shown is never taken back: a marker that is not closed yet is closed for the moment, and what cannot be told yet
(half a link, the head of a table) is held back until it can.  It knows no events and no page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tru_vlm.api.page.markdown_html import render_block, split_blocks
from tru_vlm.api.pipeline.moments import UNFINISHED_TIME

_SHARE = 32
"""An open block is made anew when it has grown by this part of itself: a long one costs a few times its length."""
_WINDOW = 700
_UNDECIDED = re.compile(
    rf"(?:{UNFINISHED_TIME.pattern}"
    r"|!?\[[^\]\n]{0,200}(?:\](?:\((?:[^()\n]++|\([^()\n]*+\)?+)*+)?)?\Z"  # a link
    r"|(?:(?<=\n)|\A)[ \t]*(?:[-+*>]|\#{1,6}|\d{1,9}[.)]?|[-*_]{2,})[ \t]*\Z"  # what begins a line
    r"|[\\*_~`]+\Z)"
)
_FENCE = re.compile(r"^[ \t]*(?:(?:[-+*]|\d{1,9}[.)])[ \t]+)?(?:`{3,}|~{3,})", re.MULTILINE)
_HALF_FENCE = re.compile(r"\n[ \t]*[`~]*\Z")
_DECIDING_ROWS = 2
_NEW_TEXT = re.compile(r"[ \t]*(?:\||>|\#|(?:[-+*]|\d{1,9}[.)])[ \t]|$)")
_MARKER = re.compile(r"\\.|(?P<code>`+)|(?P<mark>\*{1,3}|_{1,3}|~~)")


@dataclass(frozen=True, slots=True)
class ShownBlock:
    """A paragraph, list, table or so as HTML; one of the same number replaces the one before.

    Attributes:
        number: from 0.
        html: what is shown.
        source: what it was made of; those of all blocks make the answer.
    """

    number: int
    html: str
    source: str


_NOTHING = ShownBlock(0, "", "")


class MarkdownStream:
    """One answer's.

    Args:
        address: as :func:`tru_vlm.api.page.markdown_html.render_markdown` takes it.
    """

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._open = ""
        self._number = 0
        self._rendered_length = 0
        self._shown = _NOTHING

    def feed(self, text: str) -> list[ShownBlock]:
        """What is to be shown now; the blocks before stay as they are."""
        self._open += text.replace("\r", "")
        if len(self._open) - self._rendered_length < len(self._open) // _SHARE:
            return []
        closed = self._closed()
        block = self._render(_steady(self._open), self._open)
        return [*closed, *self._show(block, is_new=block.html != self._shown.html)]

    def finish(self) -> list[ShownBlock]:
        """What the end of the answer changes."""
        return [*self._closed(), *self._whole(self._open)]

    def _closed(self) -> list[ShownBlock]:
        """The blocks behind which another one has begun, as far as lines tell that for sure."""
        end = self._open.rfind("\n") + 1
        if self._open[end : end + 1].isalpha():  # so begin only paragraphs
            end = len(self._open)
        *closed, last = split_blocks(self._open[:end]) or [""]
        blocks = [block for text in closed for block in self._next(text)]
        self._open = last + self._open[end:]
        return blocks

    def _next(self, text: str) -> list[ShownBlock]:
        blocks = self._whole(text)
        self._number += 1
        self._shown = _NOTHING
        return blocks

    def _whole(self, text: str) -> list[ShownBlock]:
        block = self._render(text, text)
        return self._show(block, is_new=block != self._shown)

    def _render(self, text: str, source: str) -> ShownBlock:
        self._rendered_length = len(self._open)
        return ShownBlock(self._number, render_block(text, self._address), source)

    def _show(self, block: ShownBlock, *, is_new: bool) -> list[ShownBlock]:
        if not is_new or not (block.html or self._shown.html):
            return []
        self._shown = block
        return [block]


def _steady(text: str) -> str:
    """The open block as it can be shown now."""
    if len(_FENCE.findall(text)) % 2:
        return _HALF_FENCE.sub("", text)
    if _FENCE.match(text[text.rfind("\n") + 1 :]):
        return text  # it has just been closed
    window = _UNDECIDED.search(text[-_WINDOW:])
    if window:
        text = text[: max(0, len(text) - _WINDOW) + window.start()]
    lines = text.split("\n")
    head = _table_head(lines)
    if head is not None:
        return "\n".join(lines[:head])
    text = text.rstrip()
    return text + _closers(_last_words(text.split("\n")))


def _table_head(lines: list[str]) -> int | None:
    """Where, at the end, lines begin of which the second will tell whether they are a table; None if it has."""
    end = len(lines) - (not lines[-1])  # behind the last line end there is no line yet
    start = end
    while start and lines[start - 1].lstrip().startswith("|"):
        start -= 1
    num_complete = end - start - bool(lines[-1])
    return start if start < end and num_complete < _DECIDING_ROWS else None


def _last_words(lines: list[str]) -> str:
    """The last paragraph, item or row: what an open marker reaches to."""
    for index in range(len(lines) - 1, -1, -1):
        if _FENCE.match(lines[index]):
            return "\n".join(lines[index + 1 :])
        if _NEW_TEXT.match(lines[index]):
            return "\n".join(lines[index:])
    return "\n".join(lines)


def _closers(text: str) -> str:
    """What closes the markers that are open at the end."""
    open_marks: list[str] = []
    for match in _MARKER.finditer(text):
        mark, code = match["mark"], match["code"]
        is_code = bool(open_marks) and open_marks[-1].startswith("`")
        if code and (not is_code or open_marks[-1] == code):
            open_marks.pop() if is_code else open_marks.append(code)
        elif mark and not is_code:
            before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
            if mark in open_marks and before.strip():
                del open_marks[open_marks.index(mark) :]
            elif after.strip() and not before.isalnum():
                open_marks.append(mark)
    return "".join(reversed(open_marks))
