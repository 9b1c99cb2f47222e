"""Figures that lay models and methods side by side: words with their floor, differences over texts, agreement, scores.

Each function takes the rows of a table and returns a matplotlib Figure. A filled mark or a full colour is a difference
that counts (beyond its floor, sign stable over the certified baselines); a hollow or hatched one does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from xai_utils.attribution.methods import method_name
from xai_utils.evaluation.statistics import real
from xai_utils.plots.style import (
    INK,
    NOTHING,
    OPPOSES,
    PALETTE,
    ROW,
    SUPPORTS,
    centred,
    diverging,
    figure,
    heading,
    readable,
    style,
)

BASE_COLOUR, OTHER_COLOUR, BAND = PALETTE[0], PALETTE[1], "#d9d9d9"  # base, other, floor
CELL = 0.85  # inches of a word's cell in the map of differences


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_yticks(range(len(labels)), [readable(label) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color="#757575", linewidth=0.8, zorder=0)
    axes.grid(axis="x")


def pair(difference: pd.DataFrame, title: str = "") -> Figure:
    """Words on one axis: both models' scores on the left; on the right their difference over its floor, as a band.

    `difference` holds the rows of one text and method of the table of that name.
    """
    rows = difference.reset_index(drop=True)
    base, other, unit = (str(rows[name].iloc[0]) for name in ("base", "other", "unit"))
    places, lines = np.arange(len(rows)), heading(title, 8.4)
    with style():
        fig = figure(8.4, 1.4 + 0.2 * len(lines) + 1.25 * ROW * len(rows))
        left, right = fig.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
        left.hlines(places, rows["score_base"], rows["score_other"], color=BAND, linewidth=2.5, zorder=1)
        _dots(left, rows["score_base"], None, BASE_COLOUR, "o", 0.0)
        _dots(left, rows["score_other"], None, OTHER_COLOUR, "D", 0.0)
        marks = [
            Line2D([], [], marker=marker, color=colour, linestyle="", label=readable(label))
            for marker, colour, label in (("o", BASE_COLOUR, base), ("D", OTHER_COLOUR, other))
        ]
        left.legend(handles=marks, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
        left.set_xlabel(f"score ({unit})")
        _floor(right, rows)
        right.set_xlabel(f"{readable(other)} - {readable(base)} ({unit})")
        _rows(left, rows["word"].tolist())
        _rows(right, rows["word"].tolist())
        right.tick_params(labelleft=False)
        for axes, bins in ((left, 7), (right, 5)):
            axes.locator_params(axis="x", nbins=bins)
        fig.suptitle("\n".join(lines), x=0.01, ha="left")
    return fig


def _dots(axes: Axes, values: pd.Series, errors: pd.Series | None, colour: str, marker: str, shift: float) -> None:
    places = np.arange(len(values)) + shift
    if errors is not None:
        axes.errorbar(values, places, xerr=errors.fillna(0), fmt="none", ecolor=NOTHING, elinewidth=3, zorder=2)
    axes.plot(values, places, marker, color=colour, markersize=5, zorder=3)


def _floor(axes: Axes, rows: pd.DataFrame) -> None:
    """Differences as marks over a band of plus and minus the floor; hollow where they do not count."""
    for place, row in rows.iterrows():
        axes.add_patch(Rectangle((-row["floor"], float(str(place)) - 0.4), 2 * row["floor"], 0.8, color=BAND, zorder=0))
    counts = real(rows).to_numpy()
    places = np.arange(len(rows))
    value = rows["difference"].to_numpy()
    colours = np.where(value >= 0, SUPPORTS, OPPOSES).tolist()
    axes.hlines(places, 0, value, colors=colours, linewidth=1.2, zorder=2)
    faces = np.where(counts, colours, "white").tolist()
    axes.scatter(value, places, s=34, c=faces, edgecolors=colours, linewidths=1.2, zorder=3)
    axes.margins(x=0.08)
    key: list[Any] = [
        Line2D([], [], marker="o", color=INK, linestyle="", label="counts"),
        Line2D([], [], marker="o", color=INK, markerfacecolor="white", linestyle="", label="does not count"),
        Patch(color=BAND, label="floor"),
    ]
    axes.legend(
        handles=key,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        borderaxespad=0.2,
        columnspacing=0.8,
        handletextpad=0.3,
    )


def differences(difference: pd.DataFrame, title: str = "") -> Figure:
    """Map text x word of the differences of one method; hatched where they do not count, empty without a word."""
    texts = list(dict.fromkeys(difference["text"]))
    lines = [difference[difference["text"] == text].sort_values("start") for text in texts]
    width = max(map(len, lines))
    norm = centred(difference["difference"])
    colours = diverging()
    with style():
        fig = figure(1.6 + CELL * width, 1.2 + 0.5 * len(lines))
        axes = fig.subplots()
        for place, rows in enumerate(lines):
            for column, (row, counts) in enumerate(zip(rows.itertuples(), real(rows), strict=True)):
                colour = colours(norm(row.difference))
                look: dict[str, Any] = {} if counts else {"hatch": "/////", "edgecolor": "#8c8c8c", "linewidth": 0.0}
                axes.add_patch(Rectangle((column, place), 1, 1, facecolor=colour, **look))
                ink = "white" if abs(norm(row.difference) - 0.5) > 0.32 and counts else "black"
                back: dict[str, Any] = (
                    {} if counts else {"bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}}
                )
                word = readable(str(row.word), 12)
                word = word if any(map(str.isalnum, word)) else f"“{word}”"  # a lone comma is hardly seen
                said = f"{word}\n{round(row.difference, 2) + 0.0:+.2f}"
                axes.text(column + 0.5, place + 0.5, said, ha="center", va="center", fontsize=7, color=ink, **back)
        axes.set(xlim=(0, width), ylim=(len(lines), 0), xticks=[])
        axes.set_yticks(np.arange(len(lines)) + 0.5, [readable(text) for text in texts])
        axes.tick_params(axis="y", length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        unit = difference["unit"].iloc[0]
        bar = fig.colorbar(ScalarMappable(norm, colours), ax=axes, fraction=0.05, pad=0.01, aspect=12)
        bar.set_label(f"difference ({unit})")
        bar.outline.set_visible(False)
        axes.legend(
            handles=[Patch(facecolor="white", edgecolor="#8c8c8c", hatch="/////", label="does not count")],
            loc="upper left",
            bbox_to_anchor=(0, -0.01),
            borderaxespad=0.2,
        )
        fig.suptitle(readable(title, 10**6), x=0.01, ha="left")
    return fig


def agreement(matrix: pd.DataFrame, title: str = "") -> Figure:
    """Rank correlations between methods, one triangle a model beside the other; methods that agree stand together.

    `matrix` is square, labelled by (model, method) on both sides. All models show the order of the last one's clusters.
    """
    labels = list(dict.fromkeys(matrix.index.get_level_values("model")))
    squares = {label: matrix.loc[label, label] for label in labels}
    order = _clustered(squares[labels[-1]])
    size, names = 0.42 * len(order), [readable(method_name(name)) for name in order]
    with style():
        fig = figure(2.6 + (size + 0.4) * len(labels), 2.0 + size)
        for axes, label in zip(fig.subplots(1, len(labels), sharey=True, squeeze=False)[0], labels, strict=True):
            own = squares[label].reindex(index=order, columns=order).to_numpy(float)
            sns.heatmap(
                own,
                mask=np.triu(np.ones_like(own, dtype=bool)),
                vmin=-1,
                vmax=1,
                cmap=diverging(),
                annot=True,
                fmt=".1f",
                annot_kws={"fontsize": 7},
                cbar=label == labels[-1],
                cbar_kws={"label": "Spearman's rank correlation", "shrink": 0.7},
                ax=axes,
            )
            axes.set(xlim=(0, len(order) - 1), ylim=(len(order), 1), title=readable(label))
            axes.set_xticks(
                np.arange(len(order) - 1) + 0.5, names[:-1], rotation=45, ha="right", rotation_mode="anchor"
            )
            axes.set_yticks(np.arange(1, len(order)) + 0.5, names[1:], rotation=0)
            axes.tick_params(length=0)
        fig.suptitle(readable(title, 10**6), x=0.01, ha="left")
    return fig


def _clustered(square: pd.DataFrame) -> list[str]:
    """Methods in the order of a tree of average distances, so that those that agree are neighbours."""
    if len(square) < 3:
        return list(square.index)
    apart = 1 - np.nan_to_num(square.to_numpy(float), nan=0.0)
    np.fill_diagonal(apart, 0.0)
    tree = hierarchy.linkage(squareform((apart + apart.T) / 2, checks=False), "average", optimal_ordering=True)
    return [square.index[place] for place in hierarchy.leaves_list(tree)]


def by_text(table: pd.DataFrame, column: str, title: str = "", axis: str = "") -> Figure:
    """One column of a table (not below 0) text by text, a mark a model."""
    texts, lines = list(dict.fromkeys(table["text"])), heading(title, 6.2)
    with style():
        fig = figure(6.2, 1.1 + 0.2 * len(lines) + ROW * 1.2 * len(texts))
        axes = fig.subplots()
        for number, label in enumerate(dict.fromkeys(table["model"])):
            values = table[table["model"] == label].set_index("text")[column].reindex(texts)
            look: dict[str, Any] = {"markersize": 9, "markerfacecolor": "none"} if number == 0 else {"markersize": 5}
            colour, marker = PALETTE[number % len(PALETTE)], "o" if number == 0 else "D"
            axes.plot(values, range(len(texts)), marker, color=colour, label=readable(str(label)), **look)
        _rows(axes, texts)
        axes.set_xlim(left=-0.02 * axes.get_xlim()[1])
        axes.set_xlabel(axis or column)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, borderaxespad=0.2)
        fig.suptitle("\n".join(lines), x=0.01, ha="left")
    return fig
