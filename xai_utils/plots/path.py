"""Figures over a quantity that grows: the path of integrated gradients, and the response to noise.

The figure of a path shows why an attribution converged or not (after Sturmfels, Lundberg & Lee 2020, doi
10.23915/distill.00022): completeness says that the cumulative attribution follows F(alpha) - F(0) all the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from xai_utils.attribution.result import FLOOR, Attribution, Certificate, Piece
from xai_utils.errors import UserError
from xai_utils.plots.style import (
    INK,
    LETTER,
    NOTHING,
    OPPOSES,
    SUPPORTS,
    annotate_below,
    centred,
    diverging,
    figure,
    proof,
    readable,
    style,
)

WIDTH = 5.2  # inches a path
NAMED = 6  # words that a dose-response figure names; the others are grey


@dataclass(frozen=True)
class PathView:
    """One path of integrated gradients: its pieces, from the baseline (alpha 0) to the input (alpha 1)."""

    title: str
    pieces: Sequence[Piece]
    certificate: Certificate
    unit: str

    @property
    def edges(self) -> np.ndarray:
        return np.array([self.pieces[0].start, *(piece.end for piece in self.pieces)])

    @property
    def cumulative(self) -> np.ndarray:
        """Attribution of the path up to each edge, all positions added."""
        return np.cumsum([0.0, *(piece.scores.sum() for piece in self.pieces)])

    @property
    def rise(self) -> np.ndarray:
        """F(alpha) - F(0) at each edge."""
        return np.cumsum([0.0, *(piece.scores.sum() - piece.residual for piece in self.pieces)])

    @property
    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """alpha and F(alpha) - F(0) at each node."""
        alphas = np.concatenate([piece.alphas for piece in self.pieces])
        values = np.concatenate([piece.values for piece in self.pieces])
        return alphas, values - self.certificate.f_baseline


def view(found: Attribution) -> PathView:
    """The path of an attribution that carries a certificate; a fixed rule's pieces have one node each."""
    if found.certificate is None or not found.path:
        raise UserError(f"{found.method} at baseline {found.baseline!r} has no single path; choose another baseline")
    start = f"from the {found.baseline} baseline, first position {found.sink}"
    fixed = all(len(piece.alphas) == 1 for piece in found.path)
    title = f"{len(found.path)} fixed steps {start}" if fixed else f"Refined {start}"
    return PathView(title, found.path, found.certificate, found.unit)


def paths(views: Sequence[PathView], title: str = "") -> Figure:
    """Cumulative attribution and F(alpha) - F(0) against alpha, one path a column.

    Below each, the error of each piece where it lies on the path, and the length of the pieces there: where they are
    short, refinement went. Axes are linear near zero and logarithmic beyond what is to be explained, so that a path
    that misses it a hundredfold fits beside one that does not.
    """
    with style():
        fig = figure(WIDTH * len(views), 5.8)
        grid = fig.subplots(2, len(views), sharex=True, squeeze=False, height_ratios=[3, 1.3])
        for view, (above, below) in zip(views, grid.T, strict=True):
            _draw_path(above, view)
            _draw_pieces(below, view)
            above.legend(loc="best", fontsize=8)
        if title:
            fig.suptitle(readable(title, 10**6), x=0.01, ha="left")
    return fig


def _draw_path(axes: Axes, view: PathView) -> None:
    wanted = view.certificate.f_input - view.certificate.f_baseline
    alphas, values = view.nodes
    every = np.concatenate([view.edges, alphas])
    order = np.argsort(every, kind="stable")
    axes.plot(
        every[order], np.concatenate([view.rise, values])[order], color=INK, linewidth=1, label="F(α) - F(baseline)"
    )
    axes.plot(alphas, values, ".", color=INK, markersize=3, label="nodes")
    single = len(alphas) == len(view.pieces)  # a fixed rule: its sum is known behind every node
    look: Any = {"linestyle": "-" if single else "none", "marker": "" if single else "o", "markersize": 6}
    colour = SUPPORTS if view.certificate.converged else OPPOSES
    axes.plot(view.edges, view.cumulative, color=colour, linewidth=1.8, label="cumulative attribution", **look)
    axes.axhline(wanted, color=INK, linewidth=1, linestyle="--", label="F(x) - F(baseline)")
    lowest = min(view.cumulative.min(), values.min(), 0.0)
    highest = max(view.cumulative.max(), values.max(), 0.0)
    linear = 10.0 ** math.ceil(math.log10(2 * max(abs(wanted), FLOOR)))
    if max(highest, -lowest) > linear:
        axes.set_yscale("symlog", linthresh=linear)
        axes.set_ylim(min(1.5 * lowest, -0.2 * linear), max(1.5 * highest, 0.2 * linear))
    axes.grid(axis="y")
    axes.set_title(f"{readable(view.title, 10**6)}\n{view.certificate.verdict}")
    scale = "\nlogarithmic beyond the first tick" if axes.get_yscale() == "symlog" else ""
    axes.set_ylabel(f"change of the target ({view.unit}){scale}")


def _draw_pieces(axes: Axes, view: PathView) -> None:
    lengths, missed = np.diff(view.edges), [max(abs(piece.residual), 1e-12) for piece in view.pieces]
    axes.stairs(missed, view.edges, fill=True, color=NOTHING)
    axes.plot(view.edges[:-1] + lengths / 2, missed, ".", color=INK, markersize=3)  # a short piece has no width to see
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(min(missed), max(missed) * 1e-6) / 2)
    axes.set_ylabel(f"error ({view.unit})")
    axes.set_xlim(0, 1)
    for edge in view.edges[1:-1]:
        axes.axvline(edge, ymin=0, ymax=0.12, color=SUPPORTS, linewidth=0.6)
    axes.set_xlabel(f"α (0: baseline, 1: input); ticks part {len(lengths)} pieces")
    annotate_below(axes, proof(view.certificate, view.unit), WIDTH - 0.8)


def dose_response(table: pd.DataFrame, title: str = "", sigma: float | None = None) -> Figure:
    """Response to noise of growing size on one word: scatter of the target, and the share of draws whose predicted
    next token stays. `table` is that of `noise.dose_response`, for one model and text; a line marks `sigma`.
    """
    marked = table.loc[np.isclose(table["sigma"], sigma), "relative_sigma"].head(1) if sigma else ()
    units = list(table[["word", "start"]].drop_duplicates().itertuples(index=False))
    largest = table.groupby(["word", "start"], dropna=False, sort=False)["deviation"].max()
    named = set(largest.nlargest(NAMED).index)
    colours = iter(mpl.colormaps["viridis"](np.linspace(0, 0.9, len(named))))
    with style():
        fig = figure(9.0, 3.8)
        spread, kept = fig.subplots(1, 2)
        for word, start in units:
            same = table[(table["word"] == word) & (table["start"].eq(start).fillna(pd.isna(start)))]
            known = (word, start) in named
            look = {"color": next(colours) if known else NOTHING, "linewidth": 1.6 if known else 0.8}
            label = readable(word) if known else None
            spread.errorbar(
                same["relative_sigma"], same["deviation"], same["deviation_error"], label=label, capsize=2, **look
            )
            kept.plot(same["relative_sigma"], same["keeps_prediction"], ".-", label=label, **look)
        for axes in (spread, kept):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid()
            for place in marked:
                axes.axvline(place, color=INK, linewidth=0.8, linestyle="--", zorder=1)
            axes.set_xlabel("noise (in root mean squares of the embeddings)")
        spread.set_yscale("log")
        spread.set_ylabel(f"standard deviation of the target ({table['unit'].iloc[0]})")
        kept.set_ylim(-0.03, 1.03)
        kept.set_ylabel("share of draws that keep the prediction")
        fig.legend(*spread.get_legend_handles_labels(), loc="outside right upper", title="noise on")
        if title:
            fig.suptitle(readable(title, 10**6), x=0.01, ha="left")
    return fig


def describe_dose(table: pd.DataFrame) -> str:
    """The finding of `dose_response` in a sentence, for an alt text."""
    most = table[table["sigma"] == table["sigma"].max()].sort_values("deviation").iloc[-1]
    return (
        f"Noise of {most['relative_sigma']:.2g} root mean squares on {most['word']!r} scatters the target most, by "
        f"{most['deviation']:.3g} {most['unit']}; {most['keeps_prediction']:.0%} of the draws keep the prediction."
    )


def describe_continuation(table: pd.DataFrame, certificates: pd.DataFrame) -> str:
    """The finding of `continuation` in a sentence, for an alt text: the strongest cell of each row."""
    best = table.loc[table.groupby("step")["score"].idxmax()]
    cells = "; ".join(f"{row.generated!r} owes most to {row.token!r} ({row.score:.3g})" for row in best.itertuples())
    passed = int(certificates["converged"].sum())
    return f"{cells} ({table['unit'].iloc[0]}); {passed} of {len(certificates)} rows converged."


def continuation(table: pd.DataFrame, certificates: pd.DataFrame, title: str = "") -> Figure:
    """What each token of the prompt, and of the continuation so far, adds to each token that the model goes on with.

    `table` and `certificates` are those of `Explainer.continuations` for one model. Rows are the generated tokens, grey
    cells have no value (kept, or not yet written); a row that did not converge is hatched and says so.
    """
    matrix = table.pivot(index="step", columns="position", values="score")
    last = table[table["step"] == table["step"].max()].sort_values("position")
    steps = certificates.drop_duplicates("step").set_index("step")
    proofs = steps.loc[matrix.index, ["generated", "converged"]].to_numpy()
    names = [readable(token) + ("" if converged else " (not converged)") for token, converged in proofs]
    width = 2.2 + 0.36 * matrix.shape[1] + LETTER * max(map(len, names))
    height = 1.3 + 0.36 * len(matrix) + LETTER * max(len(readable(token)) for token in last["token"])
    with style():
        fig = figure(max(width, 5.0), height)
        axes = fig.subplots()
        mesh = axes.pcolormesh(np.ma.masked_invalid(matrix), cmap=diverging(), norm=centred(matrix), edgecolors="white")
        axes.set_facecolor(NOTHING)
        for place in np.flatnonzero(~proofs[:, 1].astype(bool)).tolist():
            axes.axhspan(place, place + 1, facecolor="none", edgecolor="#8c8c8c", hatch="/////", linewidth=0)
        axes.invert_yaxis()
        axes.set_yticks(np.arange(len(names)) + 0.5, names)
        axes.set_xticks(np.arange(matrix.shape[1]) + 0.5, [readable(token) for token in last["token"]], rotation=90)
        axes.tick_params(length=0)
        axes.set_ylabel("generated")
        fig.colorbar(mesh, ax=axes, label=f"score ({table['unit'].iloc[0]})", aspect=12, pad=0.02)
        if title:
            axes.set_title(readable(title, 10**6))
    return fig
