"""Templates to Markdown: words come from the template, numbers from facts; every number that is printed is recorded.

A template prints numbers through filters (`signed`, `percent`, `sig`, `plural`) or as whole numbers; None, NaN, a truth
value and a bare float raise, so that a sentence without its fact cannot be said. Text from studies and models is
escaped so that Markdown, HTML and Hugo show it as it is.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined, Undefined
from jinja2.bccache import Bucket
from markupsafe import Markup

from xai_utils.attribution.methods import method_name
from xai_utils.files import ROOT

TEMPLATES = ROOT / "report" / "template"
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # what turns the direction of all that follows
CONTROLS = [chr(code) for code in (*range(9), 11, 12, *range(14, 32), 127)]
SMALLEST = 1e-4  # a share below it is said to be below it
_ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_[]#~"}
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&lbrace;", "}": "&rbrace;", "$": "&dollar;", "|": "&vert;"}
    | {":": "&colon;", "@": "&commat;", "\n": "⏎", "\r": "␍", "\t": "⇥"}
    | {character: f"‹U+{ord(character):04X}›" for character in (*BIDI, *CONTROLS)}
)


def escape(text: str) -> str:
    """Text that Markdown, HTML and Hugo show as it is: no markup, link, shortcode, table cell or line of its own.

    >>> escape("{{< x >}} *a* | $b$")
    '&lbrace;&lbrace;&lt; x &gt;&rbrace;&rbrace; \\\\*a\\\\* &vert; &dollar;b&dollar;'
    """
    return text.translate(_ESCAPES).replace("www.", "www&period;")


def significant(value: float, digits: int = 2) -> str:
    """A number to some significant digits, without an exponent where avoidable.

    >>> significant(0.6449), significant(12.3), significant(1234.5), significant(-0.00451), significant(0.0)
    ('0.64', '12', '1,234', '−0.0045', '0')
    """
    if value == 0:
        return "0"
    if not 1e-5 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    places = digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:,.{max(places, 0)}f}".replace("-", "−")


class Compiled(BytecodeCache):
    """Templates that were compiled in this process: each rendering has an environment of its own."""

    kept: ClassVar[dict[str, bytes]] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self.kept:
            bucket.bytecode_from_string(self.kept[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self.kept[bucket.key] = bucket.bytecode_to_string()


class Page:
    """One rendering: an environment whose filters record what they print in `numbers`, as (value, text)."""

    def __init__(self) -> None:
        self.numbers: list[tuple[float, str]] = []
        self.environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            bytecode_cache=Compiled(),
            undefined=StrictUndefined,
            finalize=self._finished,
            autoescape=True,  # what a macro returns is finished Markdown, and is not escaped again
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        for name in ("signed", "percent", "points", "sig", "plural", "agree", "listed", "quoted", "begun", "yaml"):
            self.environment.filters[name] = getattr(self, name)
        self.environment.filters["method"] = method_name

    def render(self, template: str, **facts: Any) -> str:
        """The template with blank lines closed up. Raises TypeError or ValueError for what must not be said."""
        text = self.environment.get_template(template).render(**facts)
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

    def line(self, template: str, name: str, **facts: Any) -> str:
        """What one macro of a template says, as plain text in one line: a title or an alt text."""
        macro = getattr(self.environment.get_template(template).make_module(facts), name)
        return plain(re.sub(r"\s+(?=[.,;:])", "", " ".join(str(macro()).split())))

    # ---- filters

    def signed(self, value: float, digits: int = 1) -> Markup:
        """A number with its sign."""
        return self._number(value, f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}")

    def sig(self, value: float, digits: int = 2) -> Markup:
        """A number to two significant digits."""
        return self._number(value, significant(value, digits))

    def percent(self, value: float) -> Markup:
        """A share in percent: two digits, one more just below all or a half, a bound where it is next to nothing."""
        if 0 < value < SMALLEST:
            return self._number(value, f"under {100 * SMALLEST:g}\u00a0%")
        exact = 0.985 < value < 1 or 0.495 <= value < 0.5  # all but 1, and all but a half
        text = f"{100 * value:.1f}" if exact else significant(100 * value).removesuffix(".0")
        return self._number(value, f"{text}\u00a0%")

    def points(self, value: float) -> Markup:
        """A difference of two shares in percentage points."""
        return self._number(value, f"{significant(100 * value)} percentage points")

    def plural(self, count: int, one: str, many: str) -> Markup:
        """A count with its noun."""
        return self._number(count, f"{count:,}") + f" {one if count == 1 else many}"

    def agree(self, count: int, one: str, many: str) -> str:
        """The form of a verb or noun that fits a count, without the count."""
        return one if count == 1 else many

    def begun(self, text: str) -> Markup:
        """Text as a sentence begins."""
        done = self._finished(text)
        return done[:1].upper() + done[1:]

    def quoted(self, text: str) -> Markup:
        """A text or token in quotation marks, without the space in front of it."""
        return Markup(f"“{escape(text.strip() or text)}”")

    def listed(self, items: Iterable[Any]) -> Markup:
        """Items in a row: commas, and `and` before the last; of none nothing is left."""
        done = [self._finished(item) for item in items] or [Markup("")]
        return Markup(", ").join(done[:-1]) + Markup(" and " if done[:-1] else "") + done[-1]

    def yaml(self, text: str) -> Markup:
        """Text or Markdown of one line as a string of YAML that Hugo does not take for a shortcode."""
        content = json.dumps(plain(text) if isinstance(text, Markup) else text, ensure_ascii=False)
        return Markup(content.translate({ord("{"): "\\u007b"}))

    def _number(self, value: float, text: str) -> Markup:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{value!r} is not a number; a sentence without its number is not said")
        if not math.isfinite(value):
            raise ValueError(f"a number to be printed is {value}; a sentence without its number is not said")
        shown = text.replace("-", "−")
        self.numbers.append((float(value), shown))
        return Markup(shown)

    def _finished(self, value: Any) -> Markup:
        """What a template prints: finished Markdown as it is, whole numbers recorded, text escaped."""
        if isinstance(value, Markup):
            return value
        if isinstance(value, Undefined | str):
            return Markup(escape(str(value)))
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{value!r} cannot be printed; give it a filter: signed, percent, sig or plural")
        return self._number(int(value), f"{value:,}")


def plain(markdown: str) -> str:
    r"""Markdown of one line as text: escapes and references resolved, emphasis gone.

    >>> plain(r"**a**&colon; \*b\* &lt;c&gt;")
    'a: *b* <c>'
    """
    text = re.sub(r"(?<!\\)(\*\*|\*|`)", "", markdown)
    return html.unescape(re.sub(r"\\([\\`*_\[\]#~])", r"\1", text))
