"""One style for all figures, the helper that saves them with an alt text, and bars of attributions.

Every figure is a function that returns a matplotlib Figure made without pyplot, so that nothing is drawn twice and no
state is left. Colours: blue supports, red opposes (ColorBrewer RdBu, safe for colour-blind readers), grey has no value
or no proof.
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.textpath import TextToPath
from PIL import Image as Pictures
from PIL.PngImagePlugin import PngInfo

from xai_utils.attribution.methods import method_name
from xai_utils.attribution.result import Certificate
from xai_utils.errors import UserError
from xai_utils.files import write_whole

SUPPORTS, OPPOSES, NOTHING, INK = "#2166ac", "#b2182b", "#bdbdbd", "#333333"
PALETTE = ("#4d4d4d", "#e08214", "#8073ac", "#35978f", "#bf812d", "#c51b7d")  # of models, safe beside each other
FALLBACK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "Noto Sans Arabic")
DPI = 110  # of a saved figure
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": NOTHING,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#e6e6e6",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "figure.titlesize": 10.5,
    "savefig.dpi": DPI,
}
ROW, LETTER = 0.215, 0.078  # inches that a bar and a letter of its label take
LONGEST = 48  # letters of a label before its middle is left out


@functools.cache
def fonts() -> tuple[str, ...]:
    """DejaVu Sans, which comes with matplotlib, then what is installed of those that draw more scripts."""
    installed = {font.name for font in fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in FALLBACK if name in installed))


def style() -> Any:
    """The context in which figures are made and saved."""
    return mpl.rc_context(STYLE | {"font.family": list(fonts())})


class Drawing(Figure):
    """A figure that shows itself in a notebook without pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(fig: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with style(), _laid_out(fig):
        fig.savefig(buffer, format="png")
    return buffer.getvalue()


@contextmanager
def _laid_out(fig: Figure) -> Iterator[None]:
    """The figure's layout is made once: `savefig` by itself would draw everything for it and then once more."""
    engine = fig.get_layout_engine()
    fig.set_dpi(DPI)
    if engine is not None:
        engine.execute(fig)
        fig.set_layout_engine("none")
    try:
        yield
    finally:
        fig.set_layout_engine(engine)


def figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, with a margin."""
    fig = Drawing(figsize=(width, height), layout="constrained")
    fig.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    return fig


@functools.cache
def _drawable(character: str) -> bool:
    return any(get_font(findfont(name)).get_char_index(ord(character)) for name in fonts())


def readable(text: str, longest: int = LONGEST) -> str:
    r"""A text as matplotlib draws it letter by letter: no mathematics, no invisible lead, no empty boxes, not too long.

    >>> readable(" cost $5"), readable("a\u200b"), readable("x" * 60, longest=9)
    ('·cost \\$5', 'a‹U+200B›', 'xxxx…xxxx')
    """
    inner = text.lstrip(" ")
    shown = "·" * (len(text) - len(inner)) + inner
    if len(shown) > longest:
        half = (longest - 1) // 2
        shown = f"{shown[:half]}…{shown[-half:]}"
    drawn = (c if c.isprintable() and _drawable(c) else f"‹U+{ord(c):04X}›" for c in shown)
    return "".join(drawn).replace("$", r"\$")


def centred(values: Any) -> Normalize:
    """A colour scale with zero in its middle, also for values that are all zero or not there.

    >>> float(centred([-1.0, 3.0, float("nan")])(0.0)), float(centred([0.0])(0.0))
    (0.5, 0.5)
    """
    finite = np.abs(np.asarray(values, dtype=float))
    finite = finite[np.isfinite(finite)]
    reach = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    return Normalize(-reach, reach)


def diverging() -> Colormap:
    """Red to blue through white; grey where there is no value."""
    return mpl.colormaps["RdBu"].with_extremes(bad=NOTHING)


def save(fig: Figure, path: Path, *, alt: str) -> Image:
    """Write a figure as PNG, the same bytes for the same figure, with its alt text inside; hand it back for display.

    Raises UserError without an alt text, and when the file cannot be written.
    """
    if not alt.strip():
        raise UserError(f"{path.name}: a figure needs an alt text; expected a sentence that states what it shows")
    buffer, metadata = io.BytesIO(), PngInfo()
    metadata.add_text("Description", alt)
    picture = Pictures.open(io.BytesIO(png(fig))).convert(
        "RGB"
    )  # 256 colours: a quarter of the bytes, so that notebooks stay small
    picture.quantize(256, Pictures.Quantize.FASTOCTREE, dither=Pictures.Dither.NONE).save(
        buffer, "PNG", optimize=True, pnginfo=metadata
    )
    write_whole(path, lambda file: file.write_bytes(buffer.getvalue()))
    return Image(data=buffer.getvalue(), format="png", alt=alt)


@dataclass(frozen=True)
class Bars:
    """One panel of horizontal bars, in reading order; `scores` are nan where there is no value."""

    title: str
    axis: str  # what the bars measure, with its unit
    labels: tuple[str, ...]
    scores: np.ndarray
    errors: np.ndarray | None = None
    absent: str = "no value"  # what stands in a bar's place
    note: str = ""
    converged: bool = True
    low: np.ndarray | None = None  # least and greatest score over a panel, drawn as a line over the bar
    high: np.ndarray | None = None

    def describe(self) -> str:
        """The finding in a sentence, for an alt text."""
        if np.isnan(self.scores).all():
            return f"{self.title}: no values."
        highest, lowest = int(np.nanargmax(self.scores)), int(np.nanargmin(self.scores))
        ends = [f"{self.labels[i].strip()!r} {self.scores[i]:.3g}" for i in (highest, lowest)]
        proof = "" if self.converged else "; not converged"
        return f"{self.title}, {self.axis}: highest {ends[0]}, lowest {ends[1]}{proof}."


def select(frame: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The rows of a table whose columns have these values. Raises UserError, naming what is there, when none has."""
    rows = frame
    for column, value in where.items():
        found = rows[rows[column] == value]
        if found.empty:
            there = ", ".join(map(repr, rows[column].unique()))
            raise UserError(f"no row has {column} {value!r}; expected one of {there}; compute it first")
        rows = found
    return rows


MEASURE = {"sensitivity": "standard deviation"}  # all others: a score


def panel(tables: Mapping[str, pd.DataFrame], by: str = "token", title: str = "", **where: Any) -> Bars:
    """The bars of one attribution by `token` or `word`, out of the tables of an Explainer.

    `where` names columns and values that leave one model, text, target, method and baseline. Raises UserError when they
    leave nothing, or more than one attribution.
    """
    rows = select(tables["attributions" if by == "token" else "word_scores"], **where)
    keys = [name for name in ("text", "model", "target", "target_text", "method", "baseline", "sink") if name in rows]
    several = [name for name in keys if rows[name].nunique() > 1]
    if several:
        raise UserError(f"more than one attribution is left, with different {', '.join(several)}; name one of each")
    first = rows.iloc[0]
    proofs = tables.get("certificates", pd.DataFrame())
    if len(proofs):
        proofs = proofs[(proofs[keys] == first[keys]).all(axis=1)]
    return Bars(
        title=title or f"{method_name(first['method'])} by {by}",
        axis=f"{MEASURE.get(first['method'], 'score')} ({first['unit']})",
        labels=tuple(rows[by]),
        scores=rows["score"].to_numpy(float),
        errors=rows["error"].to_numpy(float),
        absent="kept" if first["sink"] == "kept" else "no value",
        note=proof(proofs.iloc[0], first["unit"]) if len(proofs) else "",
        converged=bool(proofs["converged"].all()) if len(proofs) else True,
    )


def share(part: float) -> str:
    """A part of what is explained, as a reader takes it in.

    >>> share(0.0042), share(448.27)
    ('0.42%', '448 times it')
    """
    return f"{part:.2%}" if part < 10 else f"{part:.0f} times it"


def proof(certificate: Certificate | pd.Series, unit: str) -> str:
    """A certificate, or its row in the table, as the text under a figure."""
    token = certificate.token_error
    of_token = "unknown" if math.isnan(token) else share(token)
    verdict = "converged" if certificate.converged else "NOT CONVERGED"
    return (
        f"F(x) = {certificate.f_input:.4g}, F(baseline) = {certificate.f_baseline:.4g} {unit}. "
        f"Completeness error {certificate.delta:.3g} {unit} = {share(certificate.relative_delta)}; "
        f"bound {share(certificate.bound)}, worst token {of_token}, allowed {share(certificate.tolerance)}. "
        f"{certificate.evaluations} gradient evaluations: {verdict}"
    )


def heading(title: str, width: float) -> list[str]:
    """The lines of a title over a figure of `width` inches, as long as its letters allow."""
    letters, paths = FontProperties(family=list(fonts()), size=STYLE["figure.titlesize"]), TextToPath()
    count = min(len(title), int(width / 0.04))  # a line of the narrowest letters
    while True:
        lines = [readable(line, 10**6) for line in textwrap.wrap(title, max(count, 1))]
        drawn = (line.replace(r"\$", "$") for line in lines)
        longest = max((paths.get_text_width_height_descent(line, letters, False)[0] for line in drawn), default=0)
        if longest <= 72 * 0.93 * width or count <= 1:  # hinting makes letters up to a twentieth wider
            return lines
        count = int(0.95 * count)


def bars(panels: Sequence[Bars], title: str = "") -> Figure:
    """Panels of bars beside each other, as tall as their bars need; labels that all have stand once, on the left."""
    shared = all(one.labels == panels[0].labels for one in panels)
    letters = LETTER * max(min(len(readable(label)), LONGEST) for one in panels for label in one.labels)
    labels = letters * (1 if shared else len(panels))
    width = max(3.0 * len(panels) + labels, 6.0)
    each, slots, lines = (width - labels) / len(panels), max(len(one.labels) for one in panels), heading(title, width)
    notes = 0.15 * max(len(_wrapped(one.note, each)) for one in panels)
    with style():
        fig = figure(width, slots * ROW + 0.85 + notes + 0.2 * len(lines))
        for column, (axes, one) in enumerate(zip(fig.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)):
            _draw(axes, one, slots)
            if one.note and not (column and panels[column - 1].note == one.note):
                annotate_below(axes, one.note, each)
            if column and shared:
                axes.set_yticklabels([])
        if lines:
            fig.suptitle("\n".join(lines), x=0.01, ha="left")
    return fig


def _wrapped(note: str, width: float) -> list[str]:
    return textwrap.wrap(note, int(width / 0.066))


def annotate_below(axes: Axes, note: str, width: float) -> None:
    """Small print under an axis of `width` inches and its label."""
    text = "\n".join(map(functools.partial(readable, longest=10**6), _wrapped(note, width)))
    axes.annotate(
        text, (0, 0), (0, -34), ("axes fraction", "axes fraction"), "offset points", va="top", fontsize=7.5, color=INK
    )


def _draw(axes: Axes, one: Bars, slots: int) -> None:
    """One panel with space for `slots` bars."""
    places = np.arange(len(one.labels))
    there = np.isfinite(one.scores)
    colours = np.where(one.scores >= 0, SUPPORTS, OPPOSES)
    look: dict[str, Any] = {"color": colours[there]}
    if not one.converged:
        look = {"color": "#e0e0e0", "edgecolor": "#8c8c8c", "hatch": "/////", "linewidth": 0.5}
    axes.barh(places[there], one.scores[there], height=0.72, **look)
    if one.errors is not None:
        marked = there & np.isfinite(one.errors) & (one.errors > 0)
        axes.errorbar(
            one.scores[marked], places[marked], xerr=one.errors[marked], fmt="none", ecolor=INK, elinewidth=0.8
        )
    if one.low is not None and one.high is not None:
        axes.hlines(places[there], one.low[there], one.high[there], color=INK, linewidth=0.8)
    for place in places[~there]:
        axes.annotate(
            one.absent, (0, place), (3, 0), textcoords="offset points", color="#757575", style="italic", va="center"
        )
    axes.axvline(0, color="#757575", linewidth=0.8)
    axes.set_ylim(slots - 0.4, -0.6)
    axes.set_yticks(places, [readable(label) for label in one.labels])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.05)
    if not there.any():
        axes.set_xlim(-1, 1)
    axes.set_title(readable(one.title if one.converged else f"{one.title} (not converged)", 10**6))
    axes.set_xlabel(readable(one.axis, 10**6))
