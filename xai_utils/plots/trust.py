"""The trust card as a figure: a line for each check, its value on a scale from 0 to 1 between what fails and passes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from xai_utils.evaluation.thresholds import CHANCE, COMPETENT, CONTROLLED, FAITHFUL, SAME, STANDS, SURE, TOSSED
from xai_utils.evaluation.trust import Stability, TrustCard
from xai_utils.plots.style import INK, NOTHING, OPPOSES, SUPPORTS, figure, heading, readable, style

WIDTH = 3.7  # inches of a card
MARKS = {"passes": (SUPPORTS, "o"), "doubtful": ("#e08214", "D"), "fails": (OPPOSES, "X"), "unknown": (NOTHING, "s")}


@dataclass(frozen=True)
class Check:
    """One check of a card: where its value stands, and what it has to reach. nan where nothing is known."""

    name: str
    value: float
    shown: str
    level: str
    fails: float  # below it the check fails
    passes: float  # from it on it passes


def checks(card: TrustCard) -> list[Check]:
    """The checks of a card, each so that more is better."""
    sure, whole, steady, deleted = card.competence, card.completeness, card.stability, card.faithfulness
    missed = math.nan if whole.error is None else 1 - min(whole.error, 1)
    exact = whole.kind if whole.error is None or whole.kind == "exact" else f"error {whole.error:.2g}"
    alike = [value for value in card.controls.correlations.values() if not math.isnan(value)]
    other = 1 - max(alike) if alike else math.nan
    return [
        Check(
            "competence, answer's probability", sure.probability, f"{sure.probability:.2g}", sure.level, COMPETENT, SURE
        ),
        Check("completeness, sum of scores", missed, exact, whole.level, math.nan, math.nan),
        _line("stability, words of one sign", steady.one_sign, steady.level, TOSSED, STANDS, _signs(steady)),
        _line("faithfulness, deletion share", deleted.share, deleted.level, CHANCE, FAITHFUL),
        Check("controls, unlike untrained", other, _digits(other), card.controls.level, 1 - SAME, 1 - CONTROLLED),
    ]


def summary_lines(card: TrustCard | None) -> list[str]:
    """What was tested, as lines of text; none without a card."""
    tested = [line for line in checks(card) if line.level != "unknown"] if card else []
    return [f"{line.name}: {line.shown} ({line.level})" for line in tested]


def _signs(steady: Stability) -> str:
    """The share of one sign, and the rank correlation between absences where that is why it does not pass.

    >>> _signs(Stability("doubtful", 0.31, 1.0, False)), _signs(Stability("doubtful", 0.31, 0.6, False))
    ('1.00, but rank correlation 0.31', '0.60')
    """
    signs, ranks = steady.one_sign, steady.rank_correlation
    if signs is None:
        return _digits(math.nan)
    held = signs >= TOSSED and steady.level == ("doubtful" if signs >= STANDS else "fails")
    return _digits(signs) + (f", but rank correlation {ranks:.2f}" if held and ranks is not None else "")


def _line(name: str, value: float | None, level: str, fails: float, passes: float, shown: str | None = None) -> Check:
    known = math.nan if value is None else value
    return Check(name, known, _digits(known) if shown is None else shown, level, fails, passes)


def _digits(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:.2f}"


def cards(by_name: Mapping[str, TrustCard], title: str = "") -> Figure:
    """Cards beside each other, one for each name (a model or a method)."""
    count, width = len(by_name), 2.5 + WIDTH * len(by_name)
    heads = heading(title, width)
    with style():
        fig = figure(width, 2.3 + 0.2 * len(heads))
        panels = np.atleast_1d(fig.subplots(1, count, sharey=True))
        for axes, (name, card) in zip(panels, by_name.items(), strict=True):
            _draw(axes, checks(card))
            axes.set_title(readable(name))
        panels[0].set_yticks(range(5), [line.name for line in checks(next(iter(by_name.values())))])
        marks = [
            Line2D([], [], marker=mark, color=colour, linestyle="", label=level)
            for level, (colour, mark) in MARKS.items()
        ]
        fig.legend(handles=marks, loc="outside lower left", ncols=4, handletextpad=0.2)
        if heads:
            fig.suptitle("\n".join(heads), x=0.01, ha="left")
    return fig


def _draw(axes: Axes, checks: list[Check]) -> None:
    for place, check in enumerate(checks):
        colour, mark = MARKS[check.level]
        axes.hlines(place, 0, 1, color="#e6e6e6", linewidth=6, zorder=0)
        if math.isfinite(check.passes):
            axes.hlines(place, check.passes, 1, color="#d1e5f0", linewidth=6, zorder=1)
            axes.hlines(place, 0, check.fails, color="#fddbc7", linewidth=6, zorder=1)
        where = 0.5 if math.isnan(check.value) else min(max(check.value, 0), 1)
        axes.plot(where, place, mark, color=colour, markersize=7, zorder=3, markeredgecolor="white")
        axes.annotate(check.shown, (1, place), (6, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(checks) - 0.5, -0.5), xticks=[0, 0.5, 1])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
