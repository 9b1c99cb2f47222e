"""Figures of attention: one head, all heads, statistics by layer and head, groups, rollout, what an adaptation changed.

Weights are drawn on a square-root scale in one light-to-dark blue, so that a weight of a hundredth can still be seen;
what a causal model cannot see is left grey. In every map a row is a query and a column a key.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from xai_utils.attention.words import WordAttention
from xai_utils.plots.style import INK, OPPOSES, PALETTE, centred, diverging, readable, style

UNSEEN = "#ececec"  # where a causal model cannot look
LABEL = 22  # letters of a label on the axis of a map
CELL = 0.26  # inches of a cell with a label of its own, at most
SCREEN = 3.6  # inches that they take together where they can: a laptop's screen then holds map and controls
SIDE = 7.5  # inches that they take together at most
LEAST_CELL = 0.11  # inches of a cell, below which only some of the labels are written
WEIGHT = PowerNorm(0.5, 0, 1)
TICKS = [0, 0.01, 0.1, 0.25, 0.5, 1]


def _blues() -> Colormap:
    return mpl.colormaps["Blues"].with_extremes(bad=UNSEEN)


def _causal(weights: Float[np.ndarray, "query key"]) -> Float[np.ndarray, "query key"]:
    return np.where(np.tri(*weights.shape, dtype=np.bool_), weights, np.nan)


def _cell(count: int) -> float:
    """Inches of a cell: small enough for a screen while each can have its label, then for a page."""
    return min(CELL, max(SCREEN / count, LEAST_CELL), SIDE / count)


def _labelled(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    look: tuple[Colormap, Normalize],
    cell: float,
) -> AxesImage:
    """A map with cells of `cell` inches, a label at each of them, or at every second, third, ... if they are small."""
    image = axes.imshow(values, cmap=look[0], norm=look[1], interpolation="nearest", aspect="equal")
    step = max(math.ceil(LEAST_CELL / cell), 1)
    size = min(8.0, 72 * cell * step * 0.75)
    for axis, labels in ((axes.xaxis, columns), (axes.yaxis, rows)):
        places = range(0, len(labels), step)
        axis.set_ticks(list(places), [readable(labels[place], LABEL) for place in places], fontsize=size)
        axis.set_tick_params(length=0)
    axes.tick_params(axis="x", labelrotation=90)
    axes.spines[:].set_visible(False)
    return image


def _label_width(labels: Sequence[str]) -> float:
    """Inches that the longest label takes."""
    return 0.075 * max(min(len(label), LABEL) for label in labels) + 0.15


def _bar(fig: Figure, image: AxesImage, axes: Any, label: str, place: str = "right") -> Colorbar:
    bar = fig.colorbar(image, ax=axes, label=label, location=place, shrink=0.8, aspect=30, pad=0.02)
    if image.norm is WEIGHT:
        bar.set_ticks(TICKS, labels=[f"{tick:g}" for tick in TICKS])
    bar.outline.set_visible(False)
    return bar


def _title(text: str, width: float) -> str:
    """A title of a figure of `width` inches, in as many lines as it needs."""
    return "\n".join(readable(line, 10**6) for line in textwrap.wrap(text, int(width / 0.085)))


def heatmap(
    weights: Float[np.ndarray, "query key"], labels: Sequence[str], title: str = "", rest: bool = False
) -> Figure:
    """One head's map with the tokens (or words) on both axes; `rest` where the first position was set apart."""
    cell = _cell(len(labels))
    side = len(labels) * cell + _label_width(labels)
    width = max(side + 1.2, 4.0)
    with style():
        fig = Figure(figsize=(width, max(side + 0.8, 3.0)), layout="constrained")
        axes = fig.add_subplot()
        image = _labelled(axes, _causal(np.asarray(weights)), labels, labels, (_blues(), WEIGHT), cell)
        axes.set(xlabel="key: looked at", ylabel="query: looks")
        fig.suptitle(_title(title, width), x=0.01, ha="left")
        _bar(fig, image, axes, "attention, of the rest" if rest else "attention")
    return fig


def _by_head(table: pd.DataFrame, column: str) -> Float[np.ndarray, "layer head"]:
    return table.pivot_table(column, "layer", "head", dropna=False).to_numpy(float)


def _layers_and_heads(
    axes: Axes, values: Float[np.ndarray, "layer head"], colours: Colormap, norm: Normalize, title: str, fig: Figure
) -> None:
    image = axes.imshow(values, cmap=colours, norm=norm, interpolation="nearest", aspect="auto")
    layers, heads = values.shape
    axes.set_yticks(range(0, layers, 1 if layers <= 12 else 5))
    axes.set_xticks(range(0, heads, 1 if heads <= 12 else 4))
    axes.tick_params(labelsize=7, length=2)
    axes.set(xlabel="head", ylabel="layer")
    axes.set_title(title, fontsize=8.5)
    bar = fig.colorbar(image, ax=axes, location="bottom", shrink=0.9, aspect=18)
    bar.ax.tick_params(labelsize=7)
    bar.locator = MaxNLocator(4)
    bar.outline.set_visible(False)


def group_examples(
    examples: Mapping[str, tuple[Float[np.ndarray, "query key"], Sequence[str]]], title: str = ""
) -> Figure:
    """One map a group of heads, `examples` from a name such as "sink: layer 3, head 5" to weights and labels."""
    across = min(len(examples), 2)
    down = math.ceil(len(examples) / across)
    cells = {name: min(0.14, 4.0 / len(labels)) for name, (_, labels) in examples.items()}
    side = max(len(labels) * cells[name] + _label_width(labels) for name, (_, labels) in examples.items())
    with style():
        fig = Figure(figsize=(across * side + 0.2, down * (side + 0.3) + 0.9), layout="constrained")
        panels = np.ravel(fig.subplots(down, across, squeeze=False))
        for axes, (name, (weights, labels)) in zip(panels, examples.items(), strict=False):
            image = _labelled(axes, _causal(np.asarray(weights)), labels, labels, (_blues(), WEIGHT), cells[name])
            axes.set_title(readable(name, 10**6), fontsize=9)
        for axes in panels[len(examples) :]:
            axes.remove()
        _bar(fig, image, panels[: len(examples)].tolist(), "attention", "bottom")
        fig.suptitle(_title(title, across * side), x=0.01, ha="left")
    return fig


def sink_dots(table: pd.DataFrame, title: str = "") -> Figure:
    """A dot a head: the first position's share of its weights against its share of what the head moves.

    `table` is `attention_heads`; means over its texts, a colour a model. Without value norms there is nothing to see.
    """
    with style():
        fig = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = fig.add_subplot()
        for number, (label, rows) in enumerate(table.groupby("model", sort=False)):
            means = rows.groupby(["layer", "head"])[["sink", "norm_sink"]].mean()
            look: Any = {"markerfacecolor": "none"} if number == 0 else {}
            mark, colour = "oD^sv"[number % 5], PALETTE[number % len(PALETTE)]
            name = readable(str(label))
            axes.plot(
                means["sink"], means["norm_sink"], mark, color=colour, markersize=4, alpha=0.7, label=name, **look
            )
        axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=1)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="first position: share of the weights")
        axes.set_ylabel("first position: share of what is moved")
        axes.grid()
        axes.legend(loc="upper left")
        axes.set_title(_title(title, 4.6))
    return fig


def rollout_drift(drift: pd.DataFrame, title: str = "") -> Figure:
    """Rollout's mass on the first position layer by layer, a line a model, beside that of uniform causal attention."""
    with style():
        fig = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = fig.add_subplot()
        looks = zip(PALETTE, ("-", "--", "-.", "-"), strict=False)
        for (name, rows), (colour, line) in zip(drift.groupby("model", sort=False), looks, strict=False):
            means = rows.groupby("layer")[["rollout", "rollout_uniform"]].mean()
            label = readable(str(name))
            axes.plot(means.index + 1, means["rollout"], line, color=colour, linewidth=1.8, label=label)
            plain = f"{label}, uniform attention"
            axes.plot(means.index + 1, means["rollout_uniform"], ":", color=colour, linewidth=1.8, label=plain)
        axes.set(xlabel="layers passed", ylabel="rollout's mass on the first position", ylim=(0, 1.02))
        axes.set_xlim(left=1)
        axes.grid(axis="y")
        axes.legend(loc="lower right")
        axes.set_title(_title(title, 6.0))
    return fig


def divergence_map(change: pd.DataFrame, title: str = "") -> Figure:
    """What an adaptation changed, head by head: divergence, its floor, and a dot on every head that is beyond it."""
    panels = {
        "divergence": "models, all words (nats)",
        "shared": "on shared words (nats)",
        "floor": "rewordings (nats)",
    }
    shown = {name: text for name, text in panels.items() if change[name].notna().any()}
    top = max(float(np.nanmax(change[list(shown)].to_numpy(float))), 1e-9)
    layers, heads = _by_head(change, "divergence").shape
    cell = min(0.22, 6.0 / heads)
    width = max(len(shown) * (heads * cell + 0.8), 4.2)
    with style():
        fig = Figure(figsize=(width, layers * cell * 0.8 + 1.5), layout="constrained")
        for axes, (column, name) in zip(fig.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
            _layers_and_heads(axes, _by_head(change, column), _blues(), PowerNorm(0.5, 0, top), name, fig)
            beyond = change[change["beyond_floor"].fillna(False).astype(bool)]
            if column == "shared":
                axes.plot(beyond["head"], beyond["layer"], "o", color=OPPOSES, markersize=3.5)
                axes.set_title(
                    f"{name}\n" + ("● beyond the floor in most texts" if len(beyond) else "none beyond it"),
                    fontsize=8.5,
                )
        fig.suptitle(_title(title, width), x=0.01, ha="left")
    return fig


def changed_heads(base: WordAttention, other: WordAttention, top: pd.DataFrame, title: str = "") -> Figure:
    """The heads of `top` (rows of `attention_change`) under both models, and the difference, word by word."""
    places = list(zip(top["layer"], top["head"], top["divergence"], strict=True))
    drawn = [_words_seen(each, [place[:2] for place in places]) for each in (base, other)]
    kept = slice(None) if max(np.nanmax(part[..., -1]) for part in drawn) > 0 else slice(-1)
    words, columns = base.words, base.columns[kept]
    before, after = (part[..., kept] for part in drawn)
    cell = min(0.22, 11 / (3 * len(columns)))
    width = 3 * (len(columns) * cell + 0.12) + _label_width(words) + 0.75
    height = len(places) * (len(words) * cell + 0.4) + _label_width(columns) + 1.1
    names = [readable(each.case.model, 30) for each in (base, other)]
    with style():
        fig = Figure(figsize=(width, height), layout="constrained")
        grid = fig.subplots(len(places), 3, squeeze=False, sharex=True, sharey=True)
        for line, (layer, head, value) in enumerate(places):
            for axes, part, name in zip(grid[line], (before, after), names, strict=False):
                image = _labelled(axes, part[line], words, columns, (_blues(), WEIGHT), cell)
                axes.set_title(name, fontsize=8)
            look = (diverging().with_extremes(bad=UNSEEN), centred(after - before))
            changed = _labelled(grid[line, 2], (after - before)[line], words, columns, look, cell)
            grid[line, 2].set_title("difference", fontsize=8)
            grid[line, 0].set_ylabel(f"layer {layer}, head {head}\n{value:.3f} nats", fontsize=8)
        _bar(fig, image, grid[:, :2].ravel().tolist(), "attention", "bottom")
        bar = _bar(fig, changed, grid[:, 2].tolist(), f"{names[1]} minus {names[0]}", "bottom")
        bar.locator = MaxNLocator(4)
        fig.suptitle(_title(title, width), x=0.01, ha="left")
    return fig


def _words_seen(attention: WordAttention, heads: Sequence[tuple[int, int]]) -> Float[np.ndarray, "head word column"]:
    """The maps of some heads, nan where a word of the text comes later."""
    seen = np.tri(len(attention.words), len(attention.columns), 1, dtype=np.bool_)
    seen[:, -1] = True
    return np.stack([np.where(seen, attention.weights[layer, head], np.nan) for layer, head in heads])
