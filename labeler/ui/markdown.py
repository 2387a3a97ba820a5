"""Markdown of unknown origin to HTML that is safe to put into a page.

Two walls: the parser passes no raw HTML through, and what it makes is filtered by an allow-list without images,
styles, ids or scripts. Links open elsewhere and tell nobody where they came from.
"""

from __future__ import annotations

from html import escape

import nh3
from markdown_it import MarkdownIt

MAX_CHARACTERS = 100_000
SCHEMES = {"http", "https", "mailto"}

_PARSER = MarkdownIt(
    "commonmark", {"html": False, "linkify": False, "typographer": False, "breaks": True, "maxNesting": 100}
).enable(["table", "strikethrough"])
_PARSER.disable("image")
# "/logout" or "#" in a completion must not act on this site, so only links that name a scheme are links at all
_PARSER.validateLink = lambda url: url.partition(":")[0].lower() in SCHEMES  # type: ignore[method-assign]

_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
_SANITIZER = nh3.Cleaner(
    tags=_TAGS,
    clean_content_tags={"script", "style"},
    attributes={"a": {"href", "title"}, "ol": {"start"}},
    url_schemes=SCHEMES,
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
    generic_attribute_prefixes=set(),
    strip_comments=True,
)


def render(text: str) -> str:
    """The HTML of a Markdown text. A text too long to parse in good time is shown as it was written."""
    if len(text) > MAX_CHARACTERS:
        return f"<pre>{escape(text)}</pre>"
    return _SANITIZER.clean(_PARSER.render(text))
