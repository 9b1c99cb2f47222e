"""Where in a model, and at which words, an adaptation made an answer likelier, as maps of layers by words; and what is
left of the difference when the adaptation is undone in some layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from xai_utils.errors import UserError
from xai_utils.plots.style import (
    INK,
    LETTER,
    NOTHING,
    OPPOSES,
    ROW,
    SUPPORTS,
    centred,
    diverging,
    figure,
    heading,
    readable,
    style,
)

CELL = (0.42, 0.155)  # inches
MARGIN = 0.95  # inches of the bars at the side and above
WIDTH = 5.4  # inches of the dots
DOTS = (  # column, what it is, marker, colour
    ("best", "best found", "D", "white"),
    ("highest", "highest of the map", "o", SUPPORTS),
    ("lowest", "lowest of the map", "o", OPPOSES),
)
OUTSIDE = {"input": "input rows", "rest": "other", "head": "output rows"}  # what stands outside the layers


@dataclass(frozen=True)
class LayerMap:
    """Scores [level, word]: levels from the input upwards, words in reading order, in the unit of the target."""

    title: str
    levels: tuple[str, ...]
    words: tuple[str, ...]
    scores: np.ndarray
    unit: str
    note: str = ""  # the total and its certificate
    converged: bool = True
    across: str = "word"  # what the columns are

    def describe(self) -> str:
        """The finding in a sentence, for an alt text."""
        by_level, by_word = self.scores.sum(1), self.scores.sum(0)
        level, word = int(np.abs(by_level).argmax()), int(np.abs(by_word).argmax())
        kind = "" if not self.levels[level].isdigit() else "layer "
        return (
            f"{self.title}: {self.note}; most in {kind}{self.levels[level]} ({by_level[level]:+.3g}) and at "
            f"{self.words[word].strip()!r} ({by_word[word]:+.3g} {self.unit})."
        )


def layer_map(table: pd.DataFrame, certificate: pd.Series | None = None, title: str = "") -> LayerMap:
    """One text and target's rows of the adapter path by word (`AdapterPath.word_rows`).

    Raises UserError for rows of several texts, pairs or targets.
    """
    if len(table.groupby(["text", "base", "other", "target", "target_text"])) != 1:
        raise UserError("a map of layers shows one text, pair of models and target; select one of each")
    outside = table["half"].map(OUTSIDE)
    levels = table["layer"].astype("Int64").astype("string").fillna(outside)
    inner = sorted({int(layer) for layer in table["layer"].dropna()})
    named = [
        OUTSIDE["input"],
        *(str(layer) for layer in range(max(inner, default=-1) + 1)),
        OUTSIDE["rest"],
        OUTSIDE["head"],
    ]
    present = [level for level in named if level.isdigit() or (levels == level).any()]
    grid = table.assign(level=levels).pivot_table("score", "level", "order", "sum", fill_value=0.0)
    words = table.drop_duplicates("order").sort_values("order")["word"]
    scores = grid.reindex(present, fill_value=0.0).to_numpy(float)
    first = table.iloc[0]
    note = f"{scores.sum():+.2f} {first['unit']}" + (_proof(certificate) if certificate is not None else "")
    converged = certificate is None or bool(certificate["converged"])
    return LayerMap(
        title or str(first["target_text"]), tuple(present), tuple(words), scores, first["unit"], note, converged
    )


def _proof(certificate: pd.Series) -> str:
    error = max(certificate["bound"], certificate["relative_delta"])
    if not certificate["converged"]:
        return f", NOT CONVERGED (integration error {error:.0%})"
    return f", integration error at most {max(error, 1e-4):.2%}"


def layer_maps(maps: Sequence[LayerMap], title: str = "") -> Figure:
    """Maps beside each other on one scale of colours: layers upwards, words across, their sums in the margins."""
    sizes = [_size(one) for one in maps]
    norm = centred(np.concatenate([one.scores.ravel() for one in maps]))
    wide = sum(width for width, _ in sizes) + 0.75
    lines = heading(title, wide) if title else []
    with style():
        fig = figure(wide, max(height for _, height in sizes) + 0.1 * bool(lines) + 0.2 * len(lines))
        panels = fig.subfigures(1, len(maps) + 1, squeeze=False, width_ratios=[*(width for width, _ in sizes), 0.75])[0]
        for panel, one in zip(panels[:-1], maps, strict=True):
            _draw(panel, one, norm)
        bar = panels[-1].add_axes((0.05, 0.25, 0.16, 0.5))
        fig.colorbar(mpl.cm.ScalarMappable(norm, diverging()), cax=bar, label=f"score ({maps[0].unit})")
        if lines:
            fig.suptitle("\n".join(lines), x=0.01, ha="left")
    return fig


def _size(one: LayerMap) -> tuple[float, float]:
    """Inches of a map with its margins and labels."""
    across, down = CELL
    width = max(len(one.words) * across + MARGIN + 0.9, 3.4)
    return width, len(one.levels) * down + MARGIN + 1.0 + LETTER * max(len(readable(word, 16)) for word in one.words)


def _draw(panel: SubFigure, one: LayerMap, norm: Normalize) -> None:
    across, down = len(one.words) * CELL[0], len(one.levels) * CELL[1]
    grid = panel.subplots(2, 2, width_ratios=[across, MARGIN], height_ratios=[MARGIN * 0.8, down])
    (above, corner), (main, side) = grid
    corner.remove()
    main.pcolormesh(one.scores, cmap=diverging(), norm=norm, edgecolors="white", linewidth=0.4)
    numbers = [(place, name) for place, name in enumerate(one.levels) if not name.isdigit() or int(name) % 5 == 0]
    main.set_yticks([place + 0.5 for place, _ in numbers], [name for _, name in numbers])
    main.set_xticks(np.arange(len(one.words)) + 0.5, [readable(word, 16) for word in one.words], rotation=90)
    main.tick_params(length=0)
    main.set_ylabel("layer")
    for axes, sums, draw in ((side, one.scores.sum(1), side.barh), (above, one.scores.sum(0), above.bar)):
        draw(np.arange(len(sums)) + 0.5, sums, 0.78, color=np.where(sums >= 0, SUPPORTS, OPPOSES))
        axes.tick_params(labelsize=7, length=2)
    side.set_ylim(main.get_ylim())
    side.set_yticks([])
    side.axvline(0, color=INK, linewidth=0.6)
    side.locator_params(axis="x", nbins=3)
    side.set_xlabel(f"by layer\n({one.unit})", fontsize=8)
    above.set_xlim(main.get_xlim())
    above.set_xticks([])
    above.axhline(0, color=INK, linewidth=0.6)
    above.locator_params(axis="y", nbins=3)
    above.set_ylabel(f"by {one.across}", fontsize=8)
    above.set_title(f"{readable(one.title, 10**6)}\n{one.note}", color=INK if one.converged else OPPOSES, fontsize=9)
    main.set_facecolor(NOTHING)


# ---- the adaptation undone in some layers


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
    better = int((table["highest"] > table["random_95"]).sum())
    return (
        f"Undoing the adaptation in the {table['removed'].max()} layers that the map ranks highest undoes "
        f"{table['highest'].mean():.1%} of the difference on average, random layers {table['random'].mean():.1%}, the "
        f"best found {table['best'].mean():.1%}; the highest undo more than 95 % of random choices on {better} of "
        f"{len(table)} texts."
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
