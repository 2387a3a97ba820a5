"""Markdown of unknown origin to HTML that is safe to put into a page.

Two walls: the parser passes no raw HTML through, and what it makes is filtered by an allow-list without images,
styles, ids or scripts; the only classes are those of highlighted code and of formulas. Links open elsewhere and tell
nobody where they came from.
"""

from __future__ import annotations

from functools import cache, lru_cache
from html import escape

import nh3
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

from labeler.ui.mathematics import ATTRIBUTES, TAGS, mathematics

MAX_CHARACTERS = 100_000
MAX_HIGHLIGHTED = 10_000
"""Characters of a code block; a longer one has one colour."""

SCHEMES = {"http", "https", "mailto"}

# the names under which answers give their language; any other code is shown in one colour
LANGUAGES = {
    *("bash", "c", "c++", "cpp", "csharp", "cs", "css", "diff", "go", "golang", "haskell", "html", "ini", "java"),
    *("javascript", "js", "json", "jsx", "julia", "kotlin", "latex", "lua", "makefile", "markdown", "matlab"),
    *("php", "powershell", "py", "python", "python3", "r", "rb", "ruby", "rust", "rs", "scala", "sh", "shell", "sql"),
    *("swift", "tex", "toml", "ts", "tsx", "typescript", "xml", "yaml", "yml", "zsh"),
}
_PREFIX = "tok-"
_FORMATTER = HtmlFormatter(nowrap=True, classprefix=_PREFIX)


def _highlight(code: str, language: str, _attributes: str) -> str:
    """The inside of a code block; "" leaves it to the parser, which escapes it."""
    if language.lower() not in LANGUAGES or len(code) > MAX_HIGHLIGHTED:
        return ""
    return highlight(code, _lexer(language.lower()), _FORMATTER)


@cache
def _lexer(language: str) -> Lexer:
    return get_lexer_by_name(language, stripnl=False)  # finding it takes longer than running it


_PARSER = MarkdownIt(
    "commonmark",
    {
        "html": False,
        "linkify": False,
        "typographer": False,
        "breaks": True,
        "maxNesting": 100,
        "highlight": _highlight,
        "langPrefix": "",
    },
).enable(["table", "strikethrough"])
_PARSER.disable("image")
_PARSER.use(mathematics)
# "/logout" or "#" in a completion must not act on this site, so only links that name a scheme are links at all
_PARSER.validateLink = lambda url: url.partition(":")[0].lower() in SCHEMES  # type: ignore[method-assign]

_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "span", "div"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
_SANITIZER = nh3.Cleaner(
    tags=_TAGS | TAGS,
    clean_content_tags={"script", "style"},
    attributes={"a": {"href", "title"}, "ol": {"start"}, **ATTRIBUTES},
    allowed_classes={"span": {"math", *(_PREFIX + short for short in STANDARD_TYPES.values())}, "div": {"math"}},
    url_schemes=SCHEMES,
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
    generic_attribute_prefixes=set(),
    strip_comments=True,
)


@lru_cache(maxsize=1024)  # what fifty people read, and what they read next
def render(text: str) -> str:
    """The HTML of a Markdown text. A text too long to parse in good time is shown as it was written."""
    if len(text) > MAX_CHARACTERS:
        return f"<pre>{escape(text)}</pre>"
    return _SANITIZER.clean(_PARSER.render(text))
