"""An answer's Markdown becomes HTML of a few elements: whatever a model writes, nothing in it acts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tru_vlm.api.page import markdown_html
from tru_vlm.api.page.markdown_html import MAX_BLOCK_CHARACTERS, clock, render_markdown

_ATTRIBUTES = {
    "a": {"class", "data-action", "data-seconds", "href", "rel", "target"},
    "div": {"class", "tabindex", "role", "aria-label"},
    "pre": {"class"},
    "ol": {"start"},
    "th": {"align"},
    "td": {"align"},
}
_ELEMENTS = set(markdown_html._TAGS)

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](javascript:alert(1))",
    "![x](https://evil.example/pixel.png)",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt&#58;alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:x) [y](//evil.example) [z](/logout) [w](?chat=1) [v](#t=1)",
    "<javascript:alert(1)>",
    '[x](https://a.example/"onmouseover="alert(1) "title\\"onclick=\\"alert(1)")',
    '<a href="?" data-action="deleteChat" hx-delete="/v1/x">x</a>',
    '<div hx-get="/logout" hx-trigger="load" id="ask"></div>',
    "<svg><use href='data:image/svg+xml,<svg onload=alert(1)>'/></svg>",
    "<style>*{display:none}</style><iframe src=//evil.example></iframe>",
    '```"onclick=alert(1)\n</code></pre><script>alert(1)</script>\n```',
    "| <script>1</script> | x |\n|--|:-:|\n| <img src=x onerror=1> | `<b>` |",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;img src=x onerror=1&#62;",
    "[ref]: javascript:alert(1)\n\n[ref]",
    "\x00<scr\x00ipt>alert(1)</scr\x00ipt>\u202e\ud7ff",
    "</div></article><form action=//evil.example><button>Sign in</button></form>",
    "> " * 4000 + "x",
    "".join("  " * depth + "- x\n" for depth in range(200)),
    "[" * 5000,
    "*a " * 5000,
    "<" * 5000,
]


class _Reader(HTMLParser):
    """Fails at what is not allowed, as a browser would find it."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _ELEMENTS, tag
        given = dict(attrs)
        assert given.keys() <= _ATTRIBUTES.get(tag, set()), (tag, attrs)
        href = given.get("href")
        if tag == "a" and href is not None:
            assert re.match(r"https?://", href, re.IGNORECASE) or re.fullmatch(r"(\?chat=chat-1)?#t=[\d.]+", href)
        if "data-action" in given:
            assert given["data-action"] == "seek"
            assert given["class"] == "time"


def read(html: str) -> str:
    """Check the HTML; return its words."""
    reader = _Reader(convert_charrefs=True)
    words: list[str] = []
    reader.handle_data = words.append  # type: ignore[method-assign]
    reader.feed(html)
    reader.close()
    return "".join(words)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:24])
def test_hostile_answers_are_inert(text: str) -> None:
    read(render_markdown(text, "?chat=chat-1"))


_PIECES = st.sampled_from(
    [*"*_`~[]()!<>|-#:\n\t \\&;\"'", "a", "0:12", "<4 s>", "](javascript:", "<img src=x onerror=", "http://"]
)


@given(st.lists(_PIECES, max_size=60).map("".join))
def test_any_answer_is_inert(text: str) -> None:
    read(render_markdown(text))


def test_the_sanitiser_alone_would_do() -> None:
    """What the parser lets through if it is ever wrong."""
    page = (
        '<a class="time" data-action="remove" href="javascript:1" onclick="1">x</a><img src=x><p id="ask" hx-get="/">y'
    )
    read(markdown_html._CLEANER.clean(page))
    assert markdown_html._CLEANER.clean("<a href='/logout'>x</a>") == '<a rel="noopener noreferrer nofollow">x</a>'


def test_the_parser_alone_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        @staticmethod
        def clean(html: str) -> str:
            return html

    monkeypatch.setattr(markdown_html, "_CLEANER", Nothing)
    for text in HOSTILE:
        html = render_markdown(text)
        assert not re.search(rf"<(?!/?(?:{'|'.join(_ELEMENTS)})\b)", html), text
        assert not re.search(r"<[^>]*\s(?:on\w+|hx-\w+|style|id|src)=", html), text


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**a** _b_ ~~c~~ `d`", "<p><strong>a</strong> <em>b</em> <s>c</s> <code>d</code></p>\n"),
        ("one\ntwo", "<p>one<br>\ntwo</p>\n"),
        ("# Title", "<h3>Title</h3>\n"),
        ("3. a\n4. b", '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>\n'),
        ("```python\nx < 1\n```", "<pre><code>x &lt; 1\n</code></pre>\n"),
        ("    not code", "<p>not code</p>\n"),
        ("words\n---", "<p>words</p>\n<hr>\n"),
        ("![a *red* circle](https://x.example/y.png)", "<p>a red circle</p>\n"),
        (
            "[here](https://x.example/?a=1&b=2)",
            '<p><a href="https://x.example/?a=1&amp;b=2" target="_blank" rel="noopener noreferrer nofollow">here</a>'
            "</p>\n",
        ),
    ],
)
def test_what_models_write(text: str, html: str) -> None:
    assert render_markdown(text) == html


def test_tables_can_be_scrolled_by_keyboard() -> None:
    html = render_markdown("| Time | What |\n|---:|---|\n| 0:02 | a |")
    assert html.startswith('<div class="wide" tabindex="0" role="region" aria-label="Table"><table>')
    assert '<th align="right">Time</th>' in html


def test_times_are_links_into_the_video_but_not_inside_of_links_and_code() -> None:
    html = render_markdown("**At <4.2 seconds>**\n- 0:12 [1:00](https://x.example) `0:30`\n", "?chat=chat-1")
    times = re.findall(r'data-seconds="([\d.]+)" href="([^"]+)"[^>]*>([^<]+)<', html)
    assert times == [("4.200", "?chat=chat-1#t=4.2", "0:04.2"), ("12.000", "?chat=chat-1#t=12", "0:12.0")]


@pytest.mark.parametrize("text", ["- x\n" * MAX_BLOCK_CHARACTERS, "> " * 30 + "deep"], ids=["long", "deep"])
def test_what_is_too_much_for_the_parser_is_shown_as_written(text: str) -> None:
    html = render_markdown(text)
    assert html.startswith('<pre class="as-written">')
    assert read(html).strip() == text.strip()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00.0"), (4.25, "0:04.2"), (59.96, "1:00.0"), (3723.4, "1:02:03")]
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
