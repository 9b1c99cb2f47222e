"""Results in a terminal: the sentence, a bar a word, what is proven. In colour where the terminal has colours."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from xai_utils.attribution.result import Attribution
from xai_utils.evaluation.comparison import Comparison
from xai_utils.plots.sentence import (
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
from xai_utils.plots.trust import summary_lines
from xai_utils.text.cases import units
from xai_utils.text.words import visible

BAR = 24  # cells of the longest bar
NAME = 28  # cells of a word before its end is left out


def plain(shown: Attribution | Comparison) -> str:
    """A result, or two beside each other, as lines of text without colour."""
    return "\n".join(line.plain for line in lines(shown))


def coloured(shown: Attribution | Comparison) -> Group:
    """The same for a rich console, words on coloured ground."""
    return Group(*lines(shown))


def lines(shown: Attribution | Comparison) -> list[Text]:
    """Titles, sentences on one scale, a line a word, and what is proven."""
    results = [shown] if isinstance(shown, Attribution) else [shown.base, shown.other]
    reach, found = reach_of(results), list[Text]()
    for result in results:
        found += [Text(visible(title_of(result)), "dim"), _sentence(result, reach)]
    rows = _word_rows(shown) if isinstance(shown, Attribution) else _pair_rows(shown, reach)
    found += [Text(line, no_wrap=True) for line in rows]
    if not isinstance(shown, Attribution):
        found += [Text(visible(line)) for line in shared_lines(shown)]
        found += [Text(line, no_wrap=True) for line in _part_rows(shown)]
    for result in results:
        whose = f"{visible(result.case.model)}: " if len(results) > 1 else ""
        found += [Text(whose + line, "" if result.certified else "bold") for line in result.verdicts]
        found += [Text(whose + line, "bold" if "(fails)" in line else "dim") for line in summary_lines(result.trust)]
    return found


def _sentence(result: Attribution, reach: float) -> Text:
    sentence = Text()
    for run in runs(result):
        score = np.nan if run.row is None else result.word_scores[run.row]
        back, ink = colours(score, reach) if np.isfinite(score) else ("default", "default")
        sentence.append(
            " " if run.text.isspace() else visible(run.text), f"{'underline ' * stands(result, run.row)}{ink} on {back}"
        )
    sentence.append(" → ")
    return sentence.append(visible(result.target.text.strip()), "bold")


def _word_rows(result: Attribution) -> list[str]:
    """A word, a bar and its value to a line."""
    reach, names = reach_of([result]), units(result.case)
    rows = shown_rows(result)
    words = _fitted(names[row].text for row in rows)
    bars = [bar(result.word_scores[row], reach, BAR) for row in rows]
    return [
        f"  {word}  {drawn:{BAR}}  {value_of(result, row)}" for word, drawn, row in zip(words, bars, rows, strict=True)
    ]


def _pair_rows(pair: Comparison, reach: float) -> list[str]:
    """A word, both scores, a bar of their difference and its value to a line."""
    found, width = pair.words, max(9, *map(cell_len, map(visible, pair.labels)))
    heads = "  ".join(f"{visible(label):>{width}}" for label in pair.labels)
    words = _fitted(["", *found["word"]])
    rows = [f"  {words[0]}  {heads}  difference ({pair.base.unit})"]
    for word, row in zip(words[1:], found.itertuples(index=False, name=None), strict=True):
        _, base, other, change, floor, holds = row
        mark = change_mark(change, floor, holds, reach, BAR)
        rows.append(f"  {word}  {base:>+{width}.3g}  {other:>+{width}.3g}  {change:+9.3g}  {mark}")
    return rows


def _part_rows(pair: Comparison) -> list[str]:
    """A part, a bar of its share of the difference and its value to a line."""
    parts = pair.parts
    if parts.empty:
        return []
    reach, names = float(parts["score"].abs().max()), _fitted(part_name(row) for row in parts.itertuples())
    bars = [bar(score, reach, BAR) for score in parts["score"]]
    return [
        f"  {name}  {drawn:{BAR}}  {score:+.3g} {pair.base.unit}"
        for name, drawn, score in zip(names, bars, parts["score"], strict=True)
    ]


def _fitted(texts: Iterable[str]) -> list[str]:
    """Texts in cells of one width, that of the longest but at most NAME."""
    shown = [Text(visible(text)) for text in texts]
    width = max(min(text.cell_len, NAME) for text in shown)
    for text in shown:
        text.truncate(width, overflow="ellipsis", pad=True)
    return [text.plain for text in shown]
