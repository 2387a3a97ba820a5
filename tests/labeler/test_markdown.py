"""Hostile text stays text; ordinary Markdown works."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from labeler.ui.markdown import MAX_CHARACTERS, render

ALLOWED = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}


class Tags(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    '<a href="javascript:alert(1)">x</a>',
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:x)",
    "[x](/logout) [y](#top) [z](//evil.example) [w](file:///etc/passwd)",
    "<javascript:alert(1)>",
    '[x](https://a.example "onmouseover=alert(1)")',
    '[x](https://a.example/"onmouseover="alert(1))',
    "![x](https://evil.example/pixel.png)",
    "[a]: javascript:alert(1)\n[a]",
    "```html\n<script>alert(1)</script>\n```",
    "`<img src=x onerror=alert(1)>`",
    "<style>*{display:none}</style><link rel=stylesheet href=//evil.example>",
    "<math><mtext></p><style><img src=x onerror=alert(1)>",
    "<!--<img src=x onerror=alert(1)>-->",
    "| <script> | b |\n|---|---|\n| <img src=x onerror=alert(1)> | <b onclick=alert(1)> |",
    "<form action=//evil.example><input name=a></form><base href=//evil.example>",
    "\x00<scr\x00ipt>alert(1)</scr\x00ipt>",
    "${alert(1)} {{constructor.constructor('alert(1)')()}} `${x}`",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_hostile_gets_through(text: str) -> None:
    for tag, attributes in Tags(render(text)).found:
        assert tag in ALLOWED
        assert set(attributes) <= {"href", "title", "target", "rel", "start"}
        if "href" in attributes:
            assert str(attributes["href"]).startswith(("https://", "http://", "mailto:"))
            assert {"noopener", "noreferrer"} <= set(str(attributes["rel"]).split())
            assert attributes["target"] == "_blank"


def test_markup_that_is_not_markdown_is_shown_as_written() -> None:
    for text in HOSTILE[:5]:
        assert Tags(render(text)).text.strip() == text
    assert Tags(render("[x](/logout)")).text.strip() == "[x](/logout)"


def test_ordinary_markdown() -> None:
    html = render(
        "# A\n\n**b** *c* ~~d~~ `e`\nnext\n\n3. x\n4. y\n\n> q\n\n| h |\n|---|\n| 1 |\n\n[l](https://e.example)"
    )
    for piece in (
        "<h1>A</h1>",
        "<strong>b</strong>",
        "<em>c</em>",
        "<s>d</s>",
        "<code>e</code><br>",
        '<ol start="3">',
        "<blockquote>",
        "<td>1</td>",
        'href="https://e.example"',
    ):
        assert piece in html


@pytest.mark.parametrize("text", ["مرحبا بالعالم", "👩‍👩‍👧‍👦 🇺🇳", "e\u0301", "a\u202eb"])
def test_other_scripts_and_emoji_survive(text: str) -> None:
    assert Tags(render(text)).text.strip() == text


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "*a " * 30_000, "> " * 2_000 + "a", "`a" * 25_000, "<a " * 20_000, "|" * 50_000, "x" * 10**6]
)
def test_pathological_text_is_rendered_all_the_same(text: str) -> None:
    assert len(render(text)) >= min(len(text), MAX_CHARACTERS) / 10
