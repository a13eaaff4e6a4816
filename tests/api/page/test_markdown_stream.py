"""Streamed Markdown: however it is cut, the end is what the whole gives, and nothing that was shown is taken back."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tru_vlm.api.page.markdown_html import render_markdown
from tru_vlm.api.page.markdown_stream import MarkdownStream

_ANSWER = """## What happens

A **red circle** moves _left_; at <4.2 seconds> it **stops
dead** and `blinks twice`. See [the page](https://x.example/a(b)) or ~~not~~.

1. 0:00 – 0:04 the circle
   - moves left
   - **slowly**
2. 0:04.5 a *blue* square

| Time | Event |
|-----:|:------|
| 0:01 | **starts** |
| <4.2 seconds> | stops |

> A quote
> of two lines

```python
print("** not bold **")
```

---
5 * 3 = 15, and a_b_c stays; the end is near 12"""

_LINES = ["word ", "\n", "\n\n", "- item\n", "1. one\n", "| a | b |\n", "|---|---|\n", "```\n", "---\n", "> ", "# "]
_INLINE = ["**", "*", "`", "~~", "_", "\\", "|", "<", "  ", "[a](https://x.example)", "<4.2 seconds>", "0:12"]
_FRAGMENTS = st.sampled_from([*_LINES, *_INLINE])


def _shown(stream: MarkdownStream, blocks: dict[int, str], chunks: list[str]) -> list[str]:
    """What is shown after each chunk, as HTML; checks that only the last block is changed, or new ones follow."""
    states = []
    for chunk in chunks:
        for block in stream.feed(chunk):
            assert block.number >= len(blocks) - 1
            assert block.number <= len(blocks)
            blocks[block.number] = block.html
        states.append("".join(blocks.values()))
    return states


def _ended(chunks: list[str]) -> str:
    stream, blocks = MarkdownStream(), dict[int, str]()
    _shown(stream, blocks, chunks)
    blocks |= {block.number: block.html for block in stream.finish()}
    return "".join(blocks.values())


@given(st.lists(_FRAGMENTS, max_size=40).map("".join), st.integers(1, 9))
def test_the_sources_of_the_blocks_are_the_answer(text: str, size: int) -> None:
    stream, sources = MarkdownStream(), dict[int, str]()
    shown = [block for start in range(0, len(text), size) for block in stream.feed(text[start : start + size])]
    for block in [*shown, *stream.finish()]:
        sources[block.number] = block.source
    assert "".join(sources.values()).strip() == text.strip()


@given(st.lists(_FRAGMENTS, max_size=40).map("".join), st.integers(1, 9))
def test_the_end_is_what_the_whole_gives(text: str, size: int) -> None:
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert _ended(chunks) == render_markdown(text)


@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_what_was_shown_is_not_taken_back(size: int) -> None:
    chunks = [_ANSWER[start : start + size] for start in range(0, len(_ANSWER), size)]
    states = _shown(MarkdownStream(), {}, chunks)
    final = _words(render_markdown(_ANSWER))
    for state in states:
        words = _words(state)
        assert final.startswith(words), words[-60:]
        assert "|" not in words
        assert "**" not in words.partition("print")[0]
    assert states[-1] != states[-2] or size < 40


def test_little_is_held_back() -> None:
    stream, blocks = MarkdownStream(), dict[int, str]()
    for number, state in enumerate(_shown(stream, blocks, list(("word " * 40).strip())), start=1):
        assert number - len(_words(state, spaces=True)) <= 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**bo", "<p><strong>bo</strong></p>\n"),
        ("a **b *c", "<p>a <strong>b <em>c</em></strong></p>\n"),
        ("`co", "<p><code>co</code></p>\n"),
        ("see [a pag", "<p>see</p>\n"),
        ("at <4.2 sec", "<p>at</p>\n"),
        ("one\n- ", "<p>one</p>\n"),
        ("a * b", "<p>a * b</p>\n"),
        ("a\n\n| x | y", "<p>a</p>\n"),
        ("```\nx = **", "<pre><code>x = **</code></pre>\n"),
    ],
)
def test_what_is_open_is_closed_or_held_back_for_the_moment(text: str, shown: str) -> None:
    assert "".join(block.html for block in MarkdownStream().feed(text)) == shown


def test_a_long_block_is_not_made_anew_for_every_word() -> None:
    stream = MarkdownStream()
    text = "word " * 3000
    num_bytes = sum(
        len(block.html) for start in range(0, len(text), 5) for block in stream.feed(text[start : start + 5])
    )
    assert num_bytes < 40 * len(text)


def _words(markup: str, *, spaces: bool = False) -> str:
    words = html.unescape(re.sub(r"<[^>]+>", "", markup))
    return words if spaces else re.sub(r"\s+", "", words)
