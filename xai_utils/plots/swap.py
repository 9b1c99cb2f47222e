"""Waterfalls from a base to its adapted twin: which step, and which part, adds how much to the answer.

Each bar starts where the one above it ended, so the last one ends at the twin's own value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xai_utils.errors import UserError
from xai_utils.plots.style import INK, LETTER, NOTHING, OPPOSES, ROW, SUPPORTS, figure, heading, readable, style

STEP_NAMES = {
    "tokenizer": "tokenizer, rows untrained",
    "input_rows": "input rows trained",
    "output_rows": "output rows trained",
    "body": "all other weights",
}
ALONE = {"input_rows": "prompt: tokens, input rows", "output_rows": "answer: spelling, output rows"}
WIDTH = 3.6  # inches of the bars


@dataclass(frozen=True)
class Waterfall:
    """The bars of one panel: from `f_base` by `scores` to `f_other`, in the unit of the target."""

    title: str
    labels: tuple[str, ...]
    scores: np.ndarray
    errors: np.ndarray
    ends: tuple[str, str]  # labels of the two models
    f_base: float
    unit: str

    @property
    def levels(self) -> np.ndarray:
        """F in front of the first bar and behind each."""
        return self.f_base + np.cumsum([0.0, *self.scores])

    def describe(self) -> str:
        """The finding in a sentence, for an alt text."""
        ends = f"{self.ends[0]} {self.levels[0]:.3g}, {self.ends[1]} {self.levels[-1]:.3g} {self.unit}"
        if not len(self.scores):
            return f"{self.title}: {ends}; nothing differs."
        largest = int(np.abs(self.scores).argmax())
        return f"{self.title}: {ends}; largest: {self.labels[largest].strip()!r} {self.scores[largest]:+.3g}."


def parts(table: pd.DataFrame, title: str = "By part") -> Waterfall:
    """One text's rows of the table `swap`. Raises UserError for several texts, pairs or targets."""
    names = [
        "the answer as it is written" if kind == "writing" else name
        for name, kind in zip(table["part"], table["kind"], strict=True)
    ]
    sampled = "" if table["exact"].all() else " (sampled, with standard errors)"
    return _waterfall(table, title + sampled, names, table["error"].to_numpy(float))


def steps(table: pd.DataFrame) -> Waterfall:
    """One text's rows of the table `bridge`. Raises UserError for several texts, pairs or targets."""
    known = STEP_NAMES if "tokenizer" in set(table["step"]) else STEP_NAMES | ALONE
    return _waterfall(table, "By step", [known[step] for step in table["step"]], np.zeros(len(table)))


def _waterfall(table: pd.DataFrame, title: str, labels: list[str], errors: np.ndarray) -> Waterfall:
    if len(table.groupby(["text", "base", "other", "target", "target_text"])) != 1:
        raise UserError("a waterfall shows one text, pair of models and target; select one of each")
    first = table.iloc[0]
    ends = (str(first["base"]), str(first["other"]))
    scores = table["score"].to_numpy(float)
    return Waterfall(title, tuple(labels), scores, errors, ends, float(first["f_base"]), str(first["unit"]))


def waterfalls(panels: Sequence[Waterfall], title: str = "") -> Figure:
    """Panels beside each other, on one scale."""
    letters = [max(len(readable(label)) for label in (*one.labels, *one.ends)) for one in panels]
    width = sum(WIDTH + LETTER * count for count in letters)
    lines = heading(title, width)
    reach, slots = [level for one in panels for level in one.levels], max(len(one.scores) for one in panels) + 2
    margin = 0.16 * max(np.ptp(reach), 0.1)
    with style():
        fig = figure(width, slots * 1.15 * ROW + 0.9 + 0.2 * len(lines))
        ratios = [WIDTH + LETTER * count for count in letters]
        for axes, one in zip(fig.subplots(1, len(panels), squeeze=False, width_ratios=ratios)[0], panels, strict=True):
            _draw(axes, one, slots)
            axes.set_xlim(min(reach) - margin, max(reach) + margin)
        if lines:
            fig.suptitle("\n".join(lines), x=0.01, ha="left")
    return fig


def _draw(axes: Axes, one: Waterfall, slots: int) -> None:
    levels, last = one.levels, len(one.scores) + 1
    for place, (start, score, error) in enumerate(zip(levels, one.scores, one.errors, strict=False), 1):
        axes.barh(place, score, left=start, height=0.72, color=SUPPORTS if score >= 0 else OPPOSES)
        side = (3, "left") if score >= 0 else (-3, "right")
        axes.annotate(
            f"{score:+.2f}", (start + score, place), (side[0], 0), textcoords="offset points",
            ha=side[1], va="center", fontsize=7.5, color=INK,
        )  # fmt: skip
        axes.plot([start + score] * 2, [place - 0.36, place + 1.36], color=NOTHING, linewidth=0.8, zorder=0)
        if error > 0:
            axes.errorbar(start + score, place, xerr=error, fmt="none", ecolor=INK, elinewidth=0.8)
    axes.plot([levels[0]] * 2, [0, 1.36], color=NOTHING, linewidth=0.8, zorder=0)
    axes.plot(levels[[0, -1]], [0, last], "D", color=INK, markersize=5)
    for place, level in ((0, levels[0]), (last, levels[-1])):
        axes.annotate(f"{level:.2f}", (level, place), (7, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.set_ylim(slots - 0.4, -0.6)
    axes.set_yticks(range(last + 1), [readable(label) for label in (one.ends[0], *one.labels, one.ends[1])])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=5)
    axes.set_title(readable(one.title, 10**6))
    axes.set_xlabel("log-probability (nats)" if one.unit == "nats" else one.unit)
