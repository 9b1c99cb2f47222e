"""A result in a terminal: the sentence, a bar a word, what is proven. In colour where the terminal has colours."""

from __future__ import annotations

import numpy as np
from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from xai_utils.attribution.result import Attribution
from xai_utils.plots.sentence import bar, colours, reach_of, runs, title_of, value_of
from xai_utils.text.cases import units, visible

BAR = 24  # cells of the longest bar
NAME = 28  # cells of a word before its end is left out


def plain(result: Attribution) -> str:
    """The result as lines of text without colour."""
    sentence = "".join(visible(run.text) for run in runs(result))
    lines = [f"{sentence} → {visible(result.target.text.strip())}", visible(title_of(result)), *_rows(result)]
    return "\n".join([*lines, *result.verdicts])


def coloured(result: Attribution, reach: float | None = None) -> Group:
    """The result for a rich console: words on coloured ground, on a scale that ends at `reach`."""
    reach = reach_of([result]) if reach is None else reach
    sentence = Text()
    for run in runs(result):
        score = np.nan if run.row is None else result.word_scores[run.row]
        back, ink = colours(score, reach) if np.isfinite(score) else ("default", "default")
        sentence.append(visible(run.text), f"{ink} on {back}")
    sentence.append(" → ")
    sentence.append(visible(result.target.text.strip()), "bold")
    rows = [Text(line, no_wrap=True) for line in _rows(result)]
    verdicts = [Text(line, "bold" if not result.certified else "") for line in result.verdicts]
    return Group(Text(visible(title_of(result)), "dim"), sentence, *rows, *verdicts)


def _rows(result: Attribution) -> list[str]:
    """A line a word: its name, a bar and its value."""
    reach, names = reach_of([result]), units(result.case)
    shown = [row for row, unit in enumerate(names) if unit.is_word or np.isfinite(result.word_scores[row])]
    wide = max(min(cell_len(visible(names[row].text)), NAME) for row in shown)
    return [
        f"  {_fitted(visible(names[row].text), wide)}  "
        f"{bar(result.word_scores[row], reach, BAR):{BAR}}  {value_of(result, row)}"
        for row in shown
    ]


def _fitted(text: str, width: int) -> str:
    """A text of exactly so many cells."""
    if cell_len(text) > width:
        while cell_len(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - cell_len(text))
