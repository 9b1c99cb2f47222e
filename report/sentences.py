"""Sentences of the report as data: a form of words and the facts that fill it, so that a test can check every number.

A form holds no digit of its own; whatever a reader could look up in a table is a fact. Facts are escaped for Markdown,
so that markup in a text or a token is shown as text, also by Hugo, whose shortcodes start with two braces.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_[]#~"}
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&lbrace;", "}": "&rbrace;", "$": "&dollar;", "|": "&vert;"}
    | {":": "&colon;", "@": "&commat;", "\n": "⏎", "\r": "␍", "\t": "⇥"}
)


def escape(text: str) -> str:
    """Text that Markdown, HTML and Hugo show as it is: no markup, link, shortcode, table cell or line of its own.

    >>> escape("{{< x >}} *a* | $b$")
    '&lbrace;&lbrace;&lt; x &gt;&rbrace;&rbrace; \\\\*a\\\\* &vert; &dollar;b&dollar;'
    """
    return text.translate(_ESCAPES).replace("www.", "www&period;")


class _Writer(string.Formatter):
    def __init__(self, text: Callable[[str], str]) -> None:
        self.text = text  # what becomes of a fact that is text

    def format_field(self, value: Any, spec: str) -> str:
        if isinstance(value, Sentence):
            return self.vformat(value.form, (), value.facts)
        if isinstance(value, list | tuple):
            return listed([self.format_field(item, spec) for item in value])
        if isinstance(value, str):
            return self.text(value)
        if value is None or not math.isfinite(value):
            raise ValueError(f"a fact of a sentence is {value}; a sentence without its facts is not said")
        if spec.startswith("#"):
            one, many = spec[1:].split("/")
            return f"{value} {one if value == 1 else many}"
        return str(format(value, spec.replace(".", "z.", 1) if spec.endswith("f") else spec))


@dataclass(frozen=True)
class Sentence:
    """A form of words and its facts; `str` renders it as Markdown. A list of facts is joined with commas and `and`.

    `{n:#text/texts}` counts. A fact that is missing or not finite raises ValueError: it must not be said.

    >>> str(Sentence("{label} cuts {n:#word/words} into {pieces:.1f} pieces: {words}.",
    ...              {"label": "a*b", "n": 1, "pieces": 2.04, "words": ["x", "y"]}))
    'a\\\\*b cuts 1 word into 2.0 pieces: x and y.'
    """

    form: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return _Writer(escape).vformat(self.form, (), self.facts)

    @property
    def plain(self) -> str:
        """The sentence as text without markup, for an alt text or a notebook."""
        return _Writer(str).vformat(self.form, (), self.facts).replace("**", "")


def listed(items: Sequence[str]) -> str:
    """Items in a row; with semicolons where one of them has a comma of its own.

    >>> listed(["a"]), listed(["a", "b", "c"]), listed(["a, b", "c"])
    ('a', 'a, b and c', 'a, b; c')
    """
    if any(", " in item or " and " in item for item in items):
        return "; ".join(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
