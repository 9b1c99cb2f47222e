"""Tables for people: the same rows as CSV, as Markdown and as LaTeX (booktabs), all markup in them shown as text."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from report.sentences import Sentence, escape
from xai_utils.files import write_text
from xai_utils.study.config import Study
from xai_utils.study.results import folders, publish

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
    """A pipe table; numbers to the right. A cell that is a Sentence is Markdown already, all else is escaped.

    >>> print(to_markdown(pd.DataFrame({"word": ["a|b", "*"], "top_score": [1.5, None]})))
    | word | top score |
    |---|--:|
    | a&vert;b | 1.50 |
    | \\* |  |
    """
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame]
    finished = frame.astype(object).map(lambda value: isinstance(value, Sentence))
    text = as_text(frame).mask(~finished.to_numpy(), as_text(frame).map(escape))
    rows = [[escape(name) for name in text.columns], *text.to_numpy().tolist()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("--:" if right else "---" for right in numeric) + "|", *lines[1:]])


def to_latex(frame: pd.DataFrame) -> str:
    """A booktabs table (needs a Unicode engine where words are not Latin)."""
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame]
    layout = "".join("r" if right else "l" for right in numeric)
    return str(as_text(frame).to_latex(index=False, escape=True, column_format=layout))


def publish_all(frame: pd.DataFrame, study: Study, name: str) -> pd.DataFrame:
    """Write a table as CSV, Markdown and LaTeX beside each other; hand back the rounded one for display."""
    table = publish(frame, study, name)
    write_text(folders(study).tables / f"{name}.md", to_markdown(table) + "\n")
    write_text(folders(study).tables / f"{name}.tex", to_latex(table))
    return table
