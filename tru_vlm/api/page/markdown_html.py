"""Turns an answer's Markdown into HTML that is safe to show, with times as links into the video.  It knows no page.

Twice over: the parser knows no HTML and takes only web links, so that whatever a model wrote is text in a few elements;
and what it made passes a sanitiser that lets only those elements and attributes through.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, MutableMapping, Sequence
from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

from tru_vlm.api.pipeline.moments import split_times

MAX_BLOCK_CHARACTERS = 16_000
"""A longer block is shown as it was written: what the parser needs for some texts grows with their square."""

_MAX_NESTING = 20
"""The parser drops what lies deeper, so a block that does is shown as it was written."""
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_ALIGNMENT = re.compile(r"text-align:(left|center|right)")
_WEB = ("https://", "http://")
_ALLOWED_VALUES = {
    "href": re.compile(r"https?://.*|(?:\?(?:chat|job)=[\w-]{1,80})?#t=[\d.]{1,16}", re.DOTALL | re.IGNORECASE),
    "data-seconds": re.compile(r"[\d.]{1,16}"),
    "start": re.compile(r"\d{1,9}"),
}
_TAGS = {
    *("p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s", "br", "hr"),
    *("a", "div", "table", "thead", "tbody", "tr", "th", "td"),
}
_CLEANER = nh3.Cleaner(
    tags=_TAGS,
    clean_content_tags={"script", "style"},
    attributes={"*": set(), "a": {"href", "data-seconds"}, "ol": {"start"}},
    attribute_filter=lambda _, name, value: _checked(name, value),
    tag_attribute_values={
        "a": {"class": {"time"}, "data-action": {"seek"}, "target": {"_blank"}},
        "div": {"class": {"wide"}, "tabindex": {"0"}, "role": {"region"}, "aria-label": {"Table"}},
        "pre": {"class": {"as-written"}},
        "th": {"align": {"left", "center", "right"}},
        "td": {"align": {"left", "center", "right"}},
    },
    url_schemes={"http", "https"},
    link_rel="noopener noreferrer nofollow",
)


def render_markdown(text: str, address: str = "") -> str:
    """An answer as HTML.

    Args:
        text: its Markdown.
        address: of the page that has its video, relative; times lead to ``{address}#t=…``.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(render_block(block, address) for block in split_blocks(text))


def render_block(text: str, address: str = "") -> str:
    """As :func:`render_markdown`, for a text that is one block, or a few small ones."""
    if len(text) > MAX_BLOCK_CHARACTERS:
        return _as_written(text)
    tokens = _PARSER.parse(text)
    if any(token.level >= _MAX_NESTING - 1 for token in tokens):
        return _as_written(text)
    html = _PARSER.renderer.render(tokens, _PARSER.options, {"address": address})
    return _CLEANER.clean(html)


def split_blocks(text: str) -> list[str]:
    """The sources of a text's outermost paragraphs, lists, tables and so on, in order; lines end in line feeds."""
    lines = _LINES.findall(text)
    starts = [token.map[0] for token in _BLOCKS.parse(text) if token.level == 0 and token.nesting >= 0 and token.map]
    return ["".join(lines[start:end]) for start, end in itertools.pairwise([*starts, len(lines)])]


def _as_written(text: str) -> str:
    return _CLEANER.clean(f'<pre class="as-written">{escape(text)}</pre>\n')


def _checked(name: str, value: str) -> str | None:
    rule = _ALLOWED_VALUES.get(name)
    return value if rule is None or rule.fullmatch(value) else None


def _parser() -> MarkdownIt:
    """CommonMark with tables, and without what models do not mean or a stream cannot tell in time.

    Without references, which a later line could change; without underlined headings, for which a shown paragraph would
    have to become one; without code by indentation.
    """
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": _MAX_NESTING})
    parser.enable(["table", "strikethrough"])
    parser.disable(["html_block", "html_inline", "reference", "lheading", "code"])
    parser.validateLink = lambda url: url.lower().startswith(_WEB)  # type: ignore[method-assign]
    return parser


def _shape(state: StateCore) -> None:
    """Headings below the question's, alignment without a style, links in a window of their own, times."""
    for token in state.tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{max(3, min(6, int(token.tag[1]) + 1))}"
        if alignment := _ALIGNMENT.match(str(token.attrs.pop("style", ""))):
            token.attrs["align"] = alignment[1]
        if token.children:
            token.children = _with_times(token.children)


def _with_times(tokens: Sequence[Token]) -> list[Token]:
    """Inline tokens, with the times in their words as tokens of their own; not inside of links."""
    found: list[Token] = []
    is_link = False
    for token in tokens:
        if token.type in {"link_open", "link_close"}:
            is_link = token.type == "link_open"
            token.attrs |= {"target": "_blank"} if is_link else {}
        if token.type == "text" and not is_link:
            for piece in split_times(token.content):
                if piece.seconds is None:
                    found.append(Token("text", "", 0, content=piece.text, level=token.level))
                else:
                    found.append(Token("time", "a", 0, meta={"seconds": piece.seconds}, level=token.level))
        else:
            found.append(token)
    return found


def _render_time(_: RendererHTML, tokens: Sequence[Token], index: int, __: OptionsDict, env: Mapping[str, Any]) -> str:
    return time_link(tokens[index].meta["seconds"], env["address"])


def _render_image(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]
) -> str:
    """Its description: nothing is loaded because an answer says so."""
    return escape(renderer.renderInlineAsText(tokens[index].children, options, env))


def _render_fence(_: RendererHTML, tokens: Sequence[Token], index: int, __: OptionsDict, ___: Mapping[str, Any]) -> str:
    return f"<pre><code>{escape(tokens[index].content)}</code></pre>\n"


def time_link(seconds: float, address: str = "") -> str:
    """A time in the video as a link that seeks it."""
    href = escape(f"{address}#t={seconds:g}")
    return f'<a class="time" data-action="seek" data-seconds="{seconds:.3f}" href="{href}">{clock(seconds)}</a>'


def clock(seconds: float) -> str:
    """A time in a video, for people: ``0:04.2``, ``1:02:03``."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    if minutes < 60:  # noqa: PLR2004 - minutes of an hour
        return f"{minutes}:{rest // 10:02d}.{rest % 10}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 10:02d}"


_BLOCKS = _parser()
_BLOCKS.core.ruler.enableOnly(["normalize", "block"])
_PARSER = _parser()
_PARSER.core.ruler.push("shape", _shape)
_PARSER.add_render_rule("time", _render_time)
_PARSER.add_render_rule("image", _render_image)
_PARSER.add_render_rule("fence", _render_fence)
_PARSER.add_render_rule(
    "table_open", lambda *_: '<div class="wide" tabindex="0" role="region" aria-label="Table"><table>\n'
)
_PARSER.add_render_rule("table_close", lambda *_: "</table></div>\n")
