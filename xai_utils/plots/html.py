"""Results as HTML: sentences in colour with values on hover, the scores as a table, and what is proven.

Styles stand in the tags and there is no script. Some pages strip styles, so the table says again in numbers and block
characters what the sentence says in colour. Everything that comes from a text or a model is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike

from xai_utils.attribution.result import Attribution
from xai_utils.evaluation.comparison import Comparison
from xai_utils.plots.sentence import (
    Run,
    bar,
    change_mark,
    colours,
    part_name,
    reach_of,
    runs,
    shared_lines,
    shown_rows,
    stands,
    title_of,
    value_of,
)
from xai_utils.plots.style import INK, NOTHING, OPPOSES, SUPPORTS
from xai_utils.plots.trust import MARKS, checks
from xai_utils.text.words import visible

TOP_ROWS = 12  # rows of a table that a long text shows at once
WIDE = "max-width:72em"
SENTENCE = "font-size:115%;line-height:1.8;margin:.3em 0;max-height:11em;overflow-y:auto"
BLOCKS = 16  # characters of the longest bar in a table


def result_html(result: Attribution, reach: float | None = None, by: str = "word") -> str:
    """One result: its sentence in colour, scores of words or tokens as a table, and what is proven and tested of it."""
    return f'<div style="{WIDE}">{sentence_html(result, reach)}{_beside(_scores(result, by), _card(result))}</div>'


def comparison_html(pair: Comparison) -> str:
    """Both sentences in colour on one scale, and the scores of both models word by word."""
    results, words = (pair.base, pair.other), pair.words
    reach = reach_of(results)
    heads = ["word", *(f"{label} ({pair.base.unit})" for label in pair.labels), "difference", ""]
    rows = []
    for word, base, other, change, floor, holds in words.itertuples(index=False, name=None):
        rows.append([*map(_cell, (word, base, other, change)), change_mark(change, floor, holds, reach, BLOCKS)])
    both = "".join(sentence_html(result, reach) for result in results)
    shared = "".join(f"<div>{escape(visible(line))}</div>" for line in shared_lines(pair)) + _parts(pair)
    cards = "".join(f"<div><b>{escape(visible(result.case.model))}</b></div>{_card(result)}" for result in results)
    return f'<div style="{WIDE}">{both}{_beside(_table(heads, rows, words["difference"]), shared, cards)}</div>'


def _beside(*parts: str) -> str:
    """Parts beside each other, as many as the width allows."""
    inner = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div style="display:flex;flex-wrap:wrap;gap:.4em 2em;align-items:flex-start">{inner}</div>'


def _card(result: Attribution) -> str:
    """What is proven of the scores, and the checks of the trust card that were made."""
    proven = "".join(f"<div>{escape(line)}</div>" for line in result.verdicts)
    made = [check for check in checks(result.trust) if check.level != "unknown"] if result.trust else []
    return proven + "".join(
        f'<div><span style="color:{MARKS[check.level][0]}">●</span> '
        f"{escape(f'{check.name}: {check.shown} ({check.level})')}</div>"
        for check in made
    )


def _parts(pair: Comparison) -> str:
    """The parts in which the models differ, with their shares of the difference."""
    parts = pair.parts
    if parts.empty:
        return ""
    reach = float(parts["score"].abs().max())
    names, scores = [part_name(row) for row in parts.itertuples()], parts["score"].tolist()
    rows = [[name, _cell(score), bar(score, reach, BLOCKS)] for name, score in zip(names, scores, strict=True)]
    return _table(["part", f"share ({pair.base.unit})", ""], rows, parts["score"])


def sentence_html(result: Attribution, reach: float | None = None) -> str:
    """The sentence alone, under its title, with a word's value on hover. Scores beyond `reach` take the last colour."""
    reach = reach_of([result]) if reach is None else reach
    words = "".join(_span(result, run, reach) for run in runs(result))
    strip = _strip(result, reach) if len(shown_rows(result)) > TOP_ROWS else ""
    answer = escape(visible(result.target.text.strip()))
    return (
        f'<div style="opacity:.7;font-size:90%">{escape(visible(title_of(result)))}</div>'
        f'{strip}<p dir="auto" style="{SENTENCE}">{words} → <b>{answer}</b></p>'
    )


def _strip(result: Attribution, reach: float) -> str:
    """The words of a long text as a strip of cells, so that all of it is seen at once."""
    cells = "".join(
        f'<span style="flex:1;background:{colours(score, reach)[0] if np.isfinite(score) else NOTHING}" '
        f'title="{escape(visible(f"{run.text}: {value_of(result, run.row)}"), quote=True)}"></span>'
        for run in runs(result)
        if run.row is not None
        for score in [result.word_scores[run.row]]
    )
    return f'<div style="display:flex;height:1em;margin:.3em 0">{cells}</div>'


def _span(result: Attribution, run: Run, reach: float) -> str:
    text = escape(visible(run.text))
    if run.row is None:
        return escape(run.text) if run.text.isspace() else f'<span style="opacity:.5" title="not read">{text}</span>'
    score = result.word_scores[run.row]
    hover = escape(visible(f"{run.text}: {value_of(result, run.row)}"), quote=True)
    if np.isnan(score):
        return f'<span style="border-bottom:1px dotted" title="{hover}">{text}</span>'
    back, ink = colours(score, reach)
    fill = back if result.certified else f"repeating-linear-gradient(135deg,{back},{back} 4px,#fff 4px,#fff 6px)"
    ink = ink if result.certified else "#000000"
    look = f"background:{fill};color:{ink};padding:.15em .2em;border-radius:.2em"
    look += f";border-bottom:2px solid {INK}" if stands(result, run.row) else ""
    return f'<span style="{look}" title="{hover}">{text}</span>'


def _scores(result: Attribution, by: str) -> str:
    """The table of words or tokens; columns in which a method has nothing, or no error, are left out."""
    words, reach = result.words if by == "word" else result.tokens.drop(columns="kind"), reach_of([result])
    words["error"] = words["error"].where(words["error"] > 0)
    columns = [name for name in words.columns if name in (by, "score") or words[name].notna().any()]
    heads = [{"score": f"score ({result.unit})", "error": "±"}.get(name, name) for name in columns]
    rows = []
    for row in words.to_dict("records"):
        cells = {name: _cell(row[name]) for name in columns}
        if "error" in cells:
            cells["error"] = cells["error"].removeprefix("+")
        rows.append([*cells.values(), bar(row["score"], reach, BLOCKS)])
    return _table([*heads, ""], rows, words["score"])


def _table(heads: Sequence[str], rows: list[list[str]], sizes: ArrayLike) -> str:
    """All rows, or of a long table those of the largest `sizes`, with all of them behind a click."""
    if len(rows) <= TOP_ROWS:
        return _rows(heads, rows)
    order = np.argsort(-np.nan_to_num(np.abs(np.asarray(sizes, dtype=float)), nan=-1), kind="stable")
    largest = [rows[index] for index in sorted(order[:TOP_ROWS])]
    every = f"<details><summary>all {len(rows)} rows</summary>{_rows(heads, rows)}</details>"
    return _rows(heads, largest) + every


def _rows(heads: Sequence[str], rows: list[list[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f'<{tag} style="{_look(cell)}">{escape(cell)}</{tag}>' for cell in cells) + "</tr>"

    body = "".join(line("td", cells) for cells in rows)
    return f"<table><thead>{line('th', heads)}</thead><tbody>{body}</tbody></table>"


def _look(cell: str) -> str:
    """Text to the left, bars in the colour of their sign."""
    colour = {"█": f";color:{SUPPORTS}", "░": f";color:{OPPOSES}"}
    return "text-align:left" + colour.get(cell[:1], "")


def _cell(value: object) -> str:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:+.3g}" if isinstance(value, float) and np.isfinite(value) else "–"
