"""Hostile text stays text; ordinary Markdown works."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from labeler.ui.markdown import MAX_CHARACTERS, render
from labeler.ui.mathematics import TAGS as MATHML

ALLOWED = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "span", "div"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
HARMLESS = {"class", "display", "mathvariant", "stretchy", "fence", "form", "width"}
"""Attributes of code and formulas."""


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


FORMULAS = [
    r"$\href{javascript:alert(1)}{x}$",
    r"$\style{background:url(//evil.example)}{x}$ $\class{card}{x}$",
    r"$\text{<img src=x onerror=alert(1)>}$ \(\text{</math><script>alert(1)</script>}\)",
    r"$$\text{&lt;img src=x onerror=alert(1)&gt;}$$",
    r"\[\mathrm{</span></div><iframe srcdoc=x>}\]",
    r"$\text{<annotation-xml encoding=text/html><img src=x onerror=alert(1)>}$",
    r"$\text{<mglyph><style><img src=x onerror=alert(1)></style></mglyph>}$",
    r"$\color{url(//evil.example)}{x}$ $\hspace{99999em}$ $\rule{9999em}{9999em}$",
    "$$\n<script>alert(1)</script>\n$$",
    "$\\frac{<svg onload=alert(1)>$ $<img src=x onerror=alert(1)>$",
    '```"><img src=x onerror=alert(1)>\nx\n```',
    "```python class=card onclick=alert(1)\nprint('<script>alert(1)</script>')\n```",
    "```html\n<img src=x onerror=alert(1)></code></pre><script>alert(1)</script>\n```",
    "```../../etc/passwd\nx\n```\n~~~JavaScript\n</script><script>alert(1)//`${alert(1)}`\n~~~",
]


@pytest.mark.parametrize("text", HOSTILE + FORMULAS)
def test_nothing_hostile_gets_through(text: str) -> None:
    for tag, attributes in Tags(render(text)).found:
        assert tag in ALLOWED | MATHML
        assert set(attributes) <= ({"href", "title", "target", "rel", "start"} if tag in ("a", "ol") else HARMLESS)
        assert "99" not in (attributes.get("width") or "")
        for name in (attributes.get("class") or "").split():
            assert name == "math" or name.startswith("tok-")
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


def test_a_formula_is_mathml() -> None:
    html = render(r"Of $x^2$, \(y_1\), and $$\frac{a}{b}$$")
    assert html.count('<span class="math"><math display="inline">') == 2
    assert (
        '<math display="block"><mrow><mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac></mrow></math>'
        in html
    )
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in html
    block = render("\\[\n\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}\n\\]\n\nafter")
    assert block.startswith('<div class="math"><math display="block">')
    assert block.count("<mtd>") == 4
    assert block.strip().endswith("<p>after</p>")


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $10.",
        "from $5 to $10",
        "US$5 or A$6, $3.50/day, $20k and $1,000",
        "$5 million and a half$",
        "Earn $5,000/month, not $6,000/month.",
        "$ x $ and $5-$10",
        r"\$x\$",
        "`$x$`",
        "echo `$HOME` and `$PATH`",
    ],
)
def test_dollars_that_are_no_formula(text: str) -> None:
    html = render(text)
    assert "<math" not in html
    assert Tags(html).text.strip() == text.replace("\\", "").replace("`", "")


def test_a_formula_that_cannot_be_read_is_shown_as_written() -> None:
    assert "<code>$x^1^2$</code>" in render("$x^1^2$")
    assert Tags(render("$$" + "{" * 3000 + "$$")).text.strip() == "$$" + "{" * 3000 + "$$"


def test_code_is_highlighted_where_the_language_is_known() -> None:
    html = render("```python\ndef f():\n    return '<b>'\n```")
    assert '<span class="tok-k">def</span>' in html
    assert Tags(html).text.strip() == "def f():\n    return '<b>'"
    assert "<span" not in render("```nolanguage\ndef f(): pass\n```")


@pytest.mark.parametrize(
    "text", ["$a " * 30_000, "\\(" * 45_000, "\\[\n" * 30_000, "$x$" * 30_000, "$" + "\\sqrt{" * 600 + "}" * 600 + "$"]
)
def test_pathological_formulas_are_rendered_all_the_same(text: str) -> None:
    assert render(text)
