"""A result as HTML: the sentence in colour with values on hover, the scores as a table, and what is proven.

Styles stand in the tags and there is no script. Some pages strip styles, so the table says again in numbers and block
characters what the sentence says in colour. Everything that comes from a text or a model is escaped.
"""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from xai_utils.attribution.result import Attribution
from xai_utils.plots.sentence import Run, bar, colours, reach_of, runs, title_of, value_of
from xai_utils.text.cases import visible

TOP = 12  # rows of the table that a long text shows at once
BLOCKS = 16  # characters of the longest bar in the table


def html_of(result: Attribution, reach: float | None = None) -> str:
    """One result: its sentence in colour, the scores as a table, and what is proven of their sum."""
    verdict = "".join(f"<div>{escape(line)}</div>" for line in result.verdicts)
    return (
        f'<div style="max-width:60em">{sentence_html(result, reach)}{_table(result)}'
        f'<div style="opacity:.8">{verdict}</div></div>'
    )


def sentence_html(result: Attribution, reach: float | None = None) -> str:
    """The sentence alone, under its title, with a word's value on hover. Scores beyond `reach` take the last colour."""
    reach = reach_of([result]) if reach is None else reach
    words = "".join(_span(result, run, reach) for run in runs(result))
    answer = escape(visible(result.target.text))
    return (
        f'<div style="opacity:.7;font-size:90%">{escape(visible(title_of(result)))}</div>'
        f'<p dir="auto" style="font-size:115%;line-height:2;margin:.3em 0">{words} → <b>{answer}</b></p>'
    )


def _span(result: Attribution, run: Run, reach: float) -> str:
    text = escape(visible(run.text))
    if run.row is None:
        return text if run.text.isspace() else f'<span style="opacity:.5" title="not read">{text}</span>'
    score = result.word_scores[run.row]
    hover = escape(visible(f"{run.text}: {value_of(result, run.row)}"), quote=True)
    if np.isnan(score):
        return f'<span style="border-bottom:1px dotted" title="{hover}">{text}</span>'
    back, ink = colours(score, reach)
    fill = back if result.certified else f"repeating-linear-gradient(135deg,{back},{back} 4px,#fff 4px,#fff 6px)"
    ink = ink if result.certified else "#000000"
    look = f"background:{fill};color:{ink};padding:.15em .2em;border-radius:.2em"
    return f'<span style="{look}" title="{hover}">{text}</span>'


def _table(result: Attribution) -> str:
    words = result.words
    if len(words) <= TOP:
        return _rows(result, words)
    largest = words.loc[words["score"].abs().nlargest(TOP).index.sort_values()]
    every = f"<details><summary>all {len(words)} words</summary>{_rows(result, words)}</details>"
    return _rows(result, largest) + every


def _rows(result: Attribution, words: pd.DataFrame) -> str:
    """A table of rows of `Attribution.words`; columns in which a method has nothing are left out."""
    reach = reach_of([result])
    columns = [name for name in words.columns if name in ("word", "score") or words[name].notna().any()]
    heads = [f"score ({result.unit})" if name == "score" else name for name in columns]
    body = ""
    for row in words.to_dict("records"):
        cells = [*(_cell(row[name]) for name in columns), bar(row["score"], reach, BLOCKS)]
        body += "<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in cells) + "</tr>"
    head = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in [*heads, ""])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:+.3g}" if isinstance(value, float) and np.isfinite(value) else "–"
