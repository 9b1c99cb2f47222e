"""The methods by how well they predict deletions: one dot a method on the scale from a random order to the best one."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from xai_utils.attribution.methods import method_name
from xai_utils.plots.style import INK, NOTHING, ROW, SUPPORTS, figure, heading, readable, style

WIDTH = 7.2
GROUND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # of a number, so that no line crosses it
LABEL = 0.12  # of the scale, what a number and its distance take


def shares(board: pd.DataFrame, title: str = "", ceiling: float | None = None) -> Figure:
    """Dots of mean shares under absences that no method uses, best first; a hollow dot is that under its own.

    `board` has the columns method, other, own (shares, either may be missing) and control. `ceiling` is the share of
    the best single order.
    """
    places, lines = np.arange(len(board)), heading(title, WIDTH)
    other, own = (board[name].to_numpy(float) for name in ("other", "own"))
    colours = ["#7a7a7a" if control else SUPPORTS for control in board["control"]]
    with style():
        fig = figure(WIDTH, 1.15 + 0.2 * len(lines) + 1.25 * ROW * len(board))
        axes = fig.subplots()
        axes.hlines(places, 0, np.fmax(other, 0), color=colours, linewidth=1.4, alpha=0.5)
        axes.scatter(own, places, s=30, facecolors="white", edgecolors=colours, linewidths=1.2, zorder=2)
        axes.scatter(other, places, s=34, color=colours, zorder=3)
        beside = np.where((own > other) & (own < other + LABEL), own, other)  # a hollow dot would cross the number
        for place, value, at in zip(places, other, beside, strict=True):
            if np.isfinite(value):
                axes.annotate(
                    f"{value:.2f}", (at, place), (6, 0), textcoords="offset points", va="center", bbox=GROUND, zorder=4
                )
        axes.axvline(0, color=INK, linewidth=0.9)
        if ceiling is not None:
            axes.axvline(ceiling, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.annotate(
                "best single order", (ceiling, -0.75), (0, 2), textcoords="offset points", ha="center", fontsize=8
            )
        axes.annotate("random order", (0, -0.75), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        axes.set_ylim(len(board) - 0.4, -0.75)
        axes.set_yticks(places, [readable(method_name(str(name))) for name in board["method"]])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        values = np.concatenate([other, own, [0.0, ceiling or 0.0]])
        axes.set_xlim(min(np.nanmin(values) - 0.05, -0.05), max(np.nanmax(values) + 0.1, 0.5))
        axes.set_xlabel("share of the best order's drop")
        marks = [
            Line2D([], [], marker="o", color=SUPPORTS, linestyle="", label="under absences that no method uses"),
            Line2D(
                [], [], marker="o", color=SUPPORTS, markerfacecolor="white", linestyle="", label="under its own absence"
            ),
        ]
        if board["control"].any():
            marks.append(Line2D([], [], marker="o", color="#7a7a7a", linestyle="", label="order by position"))
        fig.legend(handles=marks, loc="outside lower left", ncols=3, handletextpad=0.2, fontsize=8)
        axes.spines["left"].set_color(NOTHING)
        fig.suptitle("\n".join(lines), x=0.01, ha="left")
    return fig
