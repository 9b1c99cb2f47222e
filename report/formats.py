"""Tables for people as Markdown, all markup in them shown as text."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from report.page import escape

SHOWN = 3  # significant digits in a table that is read, not computed with


def cell(value: Any) -> str:
    """One value as text: nothing for what is not there, three significant digits, no exponent where avoidable.

    >>> [cell(value) for value in (None, float("nan"), True, 12, 0.12345, -1234.5, 1e-9, "a|b")]
    ['', '', 'yes', '12', '0.123', '-1,234', '1e-09', 'a|b']
    """
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{SHOWN}g}"
    digits = SHOWN - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(digits, 0), 6)}f}"


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as text, column names without underscores."""
    plain = frame.astype(object).map(lambda value: value.item() if hasattr(value, "item") else value)
    return plain.map(cell).rename(columns=lambda name: str(name).replace("_", " "))


def to_markdown(frame: pd.DataFrame) -> str:
    """A pipe table; numbers to the right. Text is escaped.

    >>> print(to_markdown(pd.DataFrame({"word": ["a|b", "*"], "top_score": [1.5, None]})))
    | word | top score |
    |---|--:|
    | a&vert;b | 1.50 |
    | \\* |  |
    """
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame]
    text = as_text(frame).map(escape)
    rows = [[escape(name) for name in text.columns], *text.to_numpy().tolist()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("--:" if right else "---" for right in numeric) + "|", *lines[1:]])
