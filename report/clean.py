"""HTML of notebooks made harmless: what a notebook needs to be read stays, everything that could act or fetch goes.

nbconvert's own filter does not know headings, paragraphs and heads of tables, and prints their tags as text.
"""

from __future__ import annotations

import re

import bleach
from bleach.css_sanitizer import CSSSanitizer

BLOCKS = ("h1", "h2", "h3", "h4", "h5", "h6", "p", "hr", "div", "pre", "blockquote", "figure", "figcaption", "details")
LISTS = ("ul", "ol", "li", "dl", "dt", "dd")
TABLES = ("table", "caption", "colgroup", "col", "thead", "tbody", "tfoot", "tr", "th", "td")
INLINE = ("a", "b", "br", "code", "em", "i", "img", "kbd", "mark", "s", "small", "span", "strong", "sub", "sup")
TAGS = frozenset((*BLOCKS, "summary", *LISTS, *TABLES, *INLINE))
STYLES = (
    *("color", "background-color", "font-weight", "font-style", "font-size", "text-align", "text-decoration"),
    *("background", "border-bottom", "border-radius", "line-height", "margin", "max-width", "opacity", "padding"),
    *("white-space", "width"),
)
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=\s]+")
_SPOKEN = re.compile(r"<(script|style|iframe|object|title)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)


def clean_html(html: str | bytes) -> str:
    """HTML with the tags, attributes and styles that notebooks need; scripts and style sheets go with their content.

    Pictures must be inside the page; a link may lead anywhere but to a script.

    >>> clean_html('<h1 onclick="x()">A</h1><script>f()</script><img src="https://a/b.png" alt="c">')
    '<h1>A</h1><img alt="c">'
    """
    text = html.decode() if isinstance(html, bytes) else str(html)
    return str(
        bleach.clean(
            _SPOKEN.sub("", text),
            tags=TAGS,
            attributes=_allowed,
            css_sanitizer=CSSSanitizer(allowed_css_properties=STYLES),
            protocols={"http", "https", "data"},
            strip=True,
        )
    )


def _allowed(tag: str, name: str, value: str) -> bool:
    if tag == "img":
        return name in ("alt", "width", "height") or (name == "src" and bool(_PICTURE.fullmatch(value)))
    if tag == "a" and name == "href":
        return not value.strip().lower().startswith("data:")
    if name == "style":
        return not re.search(r"url|image\b|expression|@|\\\\", value, re.IGNORECASE)
    return name in ("class", "id", "title", "lang", "dir", "scope", "tabindex") or (
        tag in ("td", "th") and name in ("colspan", "rowspan")
    )
