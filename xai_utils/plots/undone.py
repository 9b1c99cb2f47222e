"""What undoing an adaptation in some layers undoes of its effect, text by text; and its map of layers over texts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from xai_utils.plots.layers import LayerMap
from xai_utils.plots.style import INK, LETTER, NOTHING, OPPOSES, ROW, SUPPORTS, figure, heading, readable, style

WIDTH = 5.4  # inches of the dots
DOTS = (  # column, what it is, marker, colour
    ("best", "best found", "D", "white"),
    ("highest", "highest of the map", "o", SUPPORTS),
    ("lowest", "lowest of the map", "o", OPPOSES),
)


def undone(table: pd.DataFrame, title: str = "") -> Figure:
    """A row a text of the table `layer_deletion`: shares undone by the map's layers beside random ones."""
    lines, places = heading(title, WIDTH + 1.5), np.arange(len(table))
    letters = max((len(readable(text)) for text in table["text"]), default=0)
    with style():
        fig = figure(WIDTH + LETTER * letters, 1.2 + 0.2 * len(lines) + 1.5 * ROW * len(table))
        axes = fig.subplots()
        mean, most = (table[name].to_numpy(float) for name in ("random", "random_95"))
        axes.hlines(places, mean, most, color=NOTHING, linewidth=5, label="random layers: mean to 95th percentile")
        for name, said, marker, colour in DOTS:
            axes.scatter(
                table[name],
                places,
                s=32,
                marker=marker,
                color=colour,
                edgecolor=INK,
                linewidth=0.7,
                label=said,
                zorder=3,
            )
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.set_yticks(places, [readable(text) for text in table["text"]])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel(f"share of the difference undone by {table['removed'].max()} layers")
        fig.legend(loc="outside lower left", ncols=2, handletextpad=0.4, fontsize=8)
        fig.suptitle("\n".join(lines), x=0.01, ha="left")
    return fig


def describe_undone(table: pd.DataFrame) -> str:
    """The finding in a sentence, for an alt text."""
    better = int((table["highest"] > table["random"]).sum())
    return (
        f"Undoing the adaptation in the {table['removed'].max()} layers that the map ranks highest undoes "
        f"{table['highest'].mean():.0%} of the difference on average, random layers {table['random'].mean():.0%}, the "
        f"best found {table['best'].mean():.0%}; the highest undo more than random ones on {better} of {len(table)} "
        "texts."
    )


def over_texts(table: pd.DataFrame) -> LayerMap:
    """The adapter path's sums by layer, a column a text in place of a word."""
    inner = table.dropna(subset="layer")
    grid = inner.pivot_table("score", "layer", "text", "sum", fill_value=0.0, sort=False).sort_index()
    grid = grid.reindex(range(int(inner["layer"].max()) + 1), fill_value=0.0)
    return LayerMap(
        "By prompt",
        tuple(map(str, grid.index)),
        tuple(map(str, grid.columns)),
        grid.to_numpy(float),
        str(table["unit"].iloc[0]),
        f"{grid.shape[1]} prompts",
        across="prompt",
    )
