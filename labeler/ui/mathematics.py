r"""LaTeX in Markdown: $..$, $$..$$, \(..\) and \[..\] as MathML, and amounts of dollars left alone.

What latex2mathml builds is written out here element by element, from an allow-list and with all text escaped: LaTeX
has commands for links, styles and classes, and none of them belongs into a page of ours.
"""

from __future__ import annotations

import re
from html import escape, unescape
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

MAX_CHARACTERS = 4_000
"""A longer formula is shown as it was written; the search for its end stops there too."""

MAX_LINES = 100
"""A formula over more lines is none."""

TAGS = {
    *("math", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle", "mpadded"),
    *("mphantom", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mmultiscripts", "mprescripts"),
    *("mtable", "mtr", "mtd"),
}
ATTRIBUTES = {
    "math": {"display"},
    "mi": {"mathvariant"},
    "mo": {"stretchy", "fence", "form", "accent", "largeop", "movablelimits"},
    "mspace": {"width"},
    "mfrac": {"linethickness"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "mover": {"accent"},
    "munder": {"accentunder"},
}
_VALUE = re.compile(r"[a-z-]{1,20}|-?\d{1,2}(\.\d{1,4})?(em|ex|pt|px|)")  # no room for anything but words and lengths

_NUMBER = re.compile(r"\d+(\.\d+)?")
# an amount and then a word, another amount or nothing: $5 and, $10,000/month, $3.50 - $4, $20k
_AMOUNT = re.compile(r"\d[\d.,]*(k|m|bn?)?\s*[/,;:–—-]?\s*([^\W\d_]{2,}|$)")
PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
DISPLAY = ("$$", r"\[")


def mathematics(parser: MarkdownIt) -> None:
    """Teach the parser formulas."""
    parser.inline.ruler.before("escape", "math", _inline)
    parser.block.ruler.before("fence", "math_block", _block, {"alt": ["paragraph", "blockquote", "list"]})
    for kind in ("math", "math_block"):
        parser.add_render_rule(kind, lambda self, tokens, at, options, env: to_html(tokens[at]))


def to_html(token: Token) -> str:
    """A formula's HTML; as it was written where it cannot be read."""
    source = f"{token.markup}{token.content}{token.info}"
    mathml = to_mathml(token.content, display=token.markup in DISPLAY) or f"<code>{escape(source)}</code>"
    tag = "div" if token.type == "math_block" else "span"
    return f'<{tag} class="math">{mathml}</{tag}>'


def to_mathml(latex: str, display: bool = False) -> str | None:
    """MathML of a formula; None where it is too long or no LaTeX."""
    if len(latex) > MAX_CHARACTERS:
        return None
    try:
        return _write(convert_to_element(latex, display="block" if display else "inline"))
    except Exception:  # the converter has an error class for every mistake, and a bare IndexError for some more
        return None


def _write(element: Element) -> str:
    tag = element.tag
    inside = escape(unescape(element.text or "")) + "".join(map(_write, element))
    after = escape(unescape(element.tail or ""))
    if tag not in TAGS:
        return inside + after
    allowed = ATTRIBUTES.get(tag, set())
    kept = [f' {key}="{value}"' for key, value in element.items() if key in allowed and _VALUE.fullmatch(value)]
    return f"<{tag}{''.join(kept)}>{inside}</{tag}>{after}"


def _inline(state: StateInline, silent: bool) -> bool:
    for opening, closing in PAIRS:
        if state.src.startswith(opening, state.pos):
            start = state.pos + len(opening)
            end = _closing(state.src, start, closing)
            if end is None or (opening == "$" and not _is_formula(state.src, start, end)):
                continue
            if not silent:
                token = state.push("math", "math", 0)
                token.content, token.markup, token.info = state.src[start:end], opening, closing
            state.pos = end + len(closing)
            return True
    return False


def _closing(text: str, start: int, closing: str) -> int | None:
    """Where the formula ends: at the first closing mark that is not escaped, in the same paragraph."""
    end = start
    while (end := text.find(closing, end, start + MAX_CHARACTERS)) >= 0:
        if closing[0] == "$" and text[end - 1] == "\\":
            end += 1
            continue
        return end if text[start:end].strip() and "\n\n" not in text[start:end] else None
    return None


def _is_formula(text: str, start: int, end: int) -> bool:
    """Whether $..$ is a formula and not two amounts: no space inside the marks, no digit or letter beside them."""
    before, after, inside = text[start - 2 : start - 1], text[end + 1 : end + 2], text[start:end]
    if before.isalnum() or after.isalnum() or "$" in (before, after) or inside != inside.strip() or "`" in inside:
        return False
    return bool(_NUMBER.fullmatch(inside)) or not _AMOUNT.match(inside)


def _block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    r"""$$..$$ and \[..\] that begin a line and end one, over several lines but not over an empty one."""
    begin = state.bMarks[first] + state.tShift[first]
    opening = state.src[begin : begin + 2]
    if opening not in DISPLAY or state.is_code_block(first):
        return False
    closing = dict(PAIRS)[opening]
    lines: list[str] = []
    for line in range(first, min(last, first + MAX_LINES)):
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip()
        if line == first:
            text = text[2:]
        elif not text:
            return False
        at = text.find(closing)
        if at < 0:
            lines.append(text)
            continue
        lines.append(text[:at])
        if at + 2 != len(text) or not "".join(lines).strip():
            return False  # something follows: the inline rule sees to it
        if not silent:
            token = state.push("math_block", "math", 0)
            token.block, token.map = True, [first, line + 1]
            token.content, token.markup, token.info = "\n".join(lines), opening, closing
        state.line = line + 1
        return True
    return False
