"""Scores of the same words in a grid: a row for each method, absence or model, a column for each word.

Rows of one unit share one colour scale. Rows of different units cannot: there each row's largest score has full colour,
and the numbers in the cells are the scores themselves. A dot marks a word whose score stands, hatching a row whose
certificate did not converge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from xai_utils.attribution.methods import method_name
from xai_utils.attribution.result import Attribution
from xai_utils.errors import UserError
from xai_utils.plots.sentence import colours
from xai_utils.plots.style import INK, LETTER, NOTHING, figure, heading, readable, style
from xai_utils.text.cases import units

CELL, LINE = 0.62, 0.3  # inches of a cell


@dataclass(frozen=True)
class Grid:
    """Scores [row, word] of one text; nan where a word has none. `scaled` where each row has a scale of its own."""

    title: str
    rows: tuple[str, ...]
    words: tuple[str, ...]
    scores: Float[np.ndarray, "row word"]
    stands: Bool[np.ndarray, "row word"]
    certified: tuple[bool, ...]
    unit: str
    scaled: bool

    @property
    def tops(self) -> list[str]:
        """The highest word of each row, in reading order the first of several; '' for a row without scores."""
        filled = np.where(np.isnan(self.scores), -np.inf, self.scores)
        return [self.words[row.argmax()] if np.isfinite(row.max()) else "" for row in filled]


def grid(results: Sequence[Attribution], rows: Sequence[str] = (), title: str = "") -> Grid:
    """Results of one text as a grid; `rows` are named by method if not given.

    Raises UserError for results of different texts.
    """
    texts = list(dict.fromkeys(result.case.text for result in results))
    if len(texts) != 1:
        raise UserError(f"a grid shows one text and {len(texts)} are given ({' | '.join(texts)}); draw one for each")
    shown = [[row for row, unit in enumerate(units(result.case)) if unit.is_word] for result in results]
    nothing = np.zeros(len(results[0].case.words), bool)
    kinds = sorted({result.unit for result in results})
    return Grid(
        title=title or texts[0],
        rows=tuple(rows or (method_name(result.method) for result in results)),
        words=tuple(word.text for word in results[0].case.words),
        scores=np.array([result.word_scores[own] for result, own in zip(results, shown, strict=True)]),
        stands=np.array(
            [nothing if r.stands is None else r.stands[own] for r, own in zip(results, shown, strict=True)], bool
        ),
        certified=tuple(result.certified for result in results),
        unit=" or ".join(kinds),
        scaled=len(kinds) > 1,
    )


def by_absence(found: Attribution, absences: Sequence[str], title: str = "") -> Grid:
    """A panel's Shapley values under each of its absences, their mean in the last row.

    Raises UserError for a result without a panel.
    """
    if found.by_absence is None or found.stands is None:
        raise UserError(f"{found.method} has no scores by absence; expected panel_shapley")
    own = [row for row, unit in enumerate(units(found.case)) if unit.is_word]
    scores = np.vstack([found.by_absence[:, own], found.word_scores[own]])
    stands = np.zeros(scores.shape, bool)
    stands[-1] = found.stands[own]
    names, words = (*absences, "mean of these"), tuple(word.text for word in found.case.words)
    proven = (found.certified,) * len(scores)
    return Grid(title or found.case.text, names, words, scores, stands, proven, found.unit, False)


def grids(panels: Sequence[Grid], title: str = "") -> Figure:
    """Grids under each other. Those that are not scaled by row share one colour scale."""
    common = [np.abs(one.scores[np.isfinite(one.scores)]).max(initial=0) for one in panels if not one.scaled]
    reach, label = max(common, default=0.0), max(len(readable(row)) for one in panels for row in one.rows)
    margin = LETTER * label + 0.3
    width = max(margin + CELL * max(len(one.words) for one in panels) + 0.3, 6.0)
    heights = [LINE * len(one.rows) + 0.85 for one in panels]
    lines = heading(title, width)
    with style():
        fig = figure(width, sum(heights) + 0.2 * len(lines))
        for axes, one in zip(np.atleast_1d(fig.subplots(len(panels), height_ratios=heights)), panels, strict=True):
            _draw(axes, one, reach)
        if lines:
            fig.suptitle("\n".join(lines), x=0.01, ha="left")
    return fig


def _draw(axes: Axes, one: Grid, reach: float) -> None:
    for row, scores in enumerate(one.scores):
        own = np.abs(scores[np.isfinite(scores)]).max(initial=0) if one.scaled else reach
        for column, score in enumerate(scores):
            back, ink = (NOTHING, INK) if np.isnan(score) else colours(score, own)
            hatch = None if one.certified[row] else "//////"
            axes.add_patch(
                Rectangle((column, row), 1, 1, facecolor=back, edgecolor="white", linewidth=1.5, hatch=hatch)
            )
            number = "" if np.isnan(score) else f"{score:+.2g}"
            halo = [withStroke(linewidth=4, foreground=back)] if hatch else None
            place = (column + 0.5, row + 0.5)
            axes.text(*place, number, ha="center", va="center", fontsize=7.5, color=ink, path_effects=halo)
            if one.stands[row, column]:
                axes.plot(column + 0.92, row + 0.16, "o", markersize=3, color=ink)
    axes.set(xlim=(0, len(one.words)), ylim=(len(one.rows), 0))
    axes.set_xticks(np.arange(len(one.words)) + 0.5, [readable(word, 14) for word in one.words], fontsize=8)
    marks = ["" if certified else " (not converged)" for certified in one.certified]
    names = [readable(name + mark) for name, mark in zip(one.rows, marks, strict=True)]
    axes.set_yticks(np.arange(len(one.rows)) + 0.5, names)
    axes.tick_params(length=0, labelbottom=False, labeltop=True, labelrotation=0)
    axes.spines[:].set_visible(False)
    axes.set_title(readable(one.title, 10**6))
    axes.set_xlabel("score, each row on its own scale" if one.scaled else f"score ({one.unit})")
