"""The explained sentence itself in colour, and bars of its words: blue supports the answer, red opposes it; a word
whose score stands is underlined.

Several results share one scale. html.py and terminal.py show the same runs of text with the same colours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextToPath

from xai_utils.attribution.methods import method_name
from xai_utils.attribution.result import Attribution
from xai_utils.errors import UserError
from xai_utils.evaluation.comparison import Comparison
from xai_utils.plots.style import INK, STYLE, Bars, Drawing, bars, centred, diverging, fonts, heading, readable, style
from xai_utils.text.cases import units
from xai_utils.text.words import visible

WIDTH, HEIGHT = 9.0, 0.45  # inches of the figure and of a line in it
WORD, SCORE = 11.0, 7.0  # points of letters


@dataclass(frozen=True)
class Run:
    """A stretch of a text: a word with its row in `Attribution.word_scores`, or what stands between words."""

    text: str
    row: int | None


def runs(result: Attribution) -> Iterator[Run]:
    """The whole text in reading order; what the model did not read, since it was cut off, has no row."""
    text, end = result.case.text, 0
    words = [(unit, row) for row, unit in enumerate(units(result.case)) if unit.is_word]
    for unit, row in sorted(words, key=lambda word: word[0].start or 0):
        start, stop = unit.start or 0, unit.end or 0
        if start > end:
            yield Run(text[end:start], None)
        yield Run(text[start:stop], row)
        end = stop
    if end < len(text):
        yield Run(text[end:], None)


def reach_of(results: Sequence[Attribution]) -> float:
    """The largest absolute word score of some results: the end of the colour scale that they share."""
    finite = np.concatenate([np.abs(result.word_scores[np.isfinite(result.word_scores)]) for result in results])
    return float(finite.max()) if finite.size else 0.0


def colours(score: float, reach: float) -> tuple[str, str]:
    """Background and letters for a score on a scale that ends at `reach`.

    >>> colours(0.0, 1.0), colours(1.0, 1.0)
    (('#f6f7f7', '#000000'), ('#053061', '#ffffff'))
    """
    red, green, blue, _ = diverging()(centred([reach])(score))
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    return to_hex((red, green, blue)), "#000000" if light > 0.55 else "#ffffff"


# ---- labels


def shown_rows(result: Attribution) -> list[int]:
    """The rows of `Attribution.word_scores` that are words, or that have a score."""
    scored = np.isfinite(result.word_scores)
    return [row for row, unit in enumerate(units(result.case)) if unit.is_word or scored[row]]


def title_of(result: Attribution) -> str:
    """What is explained, how, and under which model, in one line."""
    absent = f" ({result.baseline})" if result.baseline not in ("", "panel") else ""
    what = f"{result.case.model}: {method_name(result.method)}{absent}, {result.target.kind} of “{result.target.text}”"
    sure = result.trust and result.target.ids and result.trust.competence.probability
    return f"{what} (the answer's probability {sure:.2g})" if sure else what


def stands(result: Attribution, row: int | None) -> bool:
    """Whether a word's score is known to have one sign over the panel."""
    return row is not None and result.stands is not None and bool(result.stands[row])


def value_of(result: Attribution, row: int) -> str:
    """A word's score with its unit, its error, its range over a panel, and whether it stands."""
    score, error = result.word_scores[row], result.word_errors[row]
    if np.isnan(score):
        return "fixed, not explained"
    text = f"{score:+.3g}" + (f" ± {error:.2g}" if error > 0 else "") + f" {result.unit}"
    if result.low is None or result.high is None or result.stands is None:
        return text
    return f"{text} ({result.low[row]:+.3g} to {result.high[row]:+.3g})" + (", stands" if result.stands[row] else "")


def bar(score: float, reach: float, length: int) -> str:
    """A bar of block characters, at most so long: full where the score supports, light where it opposes.

    >>> bar(1.0, 2.0, 8), bar(-2.0, 2.0, 8), bar(float("nan"), 2.0, 8)
    ('████', '░░░░░░░░', '')
    """
    if np.isnan(score) or not reach:
        return ""
    return ("█" if score >= 0 else "░") * round(length * min(abs(score) / reach, 1))


def change_mark(change: float, floor: float, stands: Any, reach: float, length: int) -> str:
    """What stands behind a difference: its bar and whether it stands, or that it is too small to count.

    >>> change_mark(1.0, 0.1, True, 2.0, 4), change_mark(0.1, 0.2, False, 2.0, 4)
    ('██ stands', 'too small to count')
    """
    if not abs(change) > floor:
        return "too small to count"
    return bar(change, reach, length) + (" stands" if stands is True else "")


def shared_lines(pair: Comparison) -> list[str]:
    """What the shares of the parts add up to, or why there are none."""
    if pair.swap is None:
        return [pair.refused] if pair.refused else []
    change = pair.swap.f_other - pair.swap.f_base
    how = "exact" if pair.swap.exact else "sampled"
    return [
        f"{pair.base.target.kind}: {pair.swap.f_base:.3g} under {pair.labels[0]}, {pair.swap.f_other:.3g} under "
        f"{pair.labels[1]}; the difference of {change:+.3g} {pair.base.unit} by part ({how}):"
    ]


def part_name(row: Any) -> str:
    """A row of `Comparison.parts` as a reader calls it."""
    names = {"reading": f"reading “{row.part}”", "writing": "writing the answer"}
    return visible(names.get(row.kind, row.part))


# ---- figures


def bars_of(result: Attribution, by: str = "word") -> Figure:
    """Bars of one result by `word` or by `token`, with errors or the panel's range."""
    one = panel_of(result, by)
    return bars([dataclasses.replace(one, title="")], one.title)


def panel_of(result: Attribution, by: str = "word") -> Bars:
    """What `bars_of` draws."""
    if by not in ("word", "token"):
        raise UserError(f"by is {by!r}; expected word or token")
    table = result.words if by == "word" else result.tokens
    return Bars(
        title=title_of(result),
        axis=f"score ({result.unit})",
        labels=tuple(table[by]),
        scores=table["score"].to_numpy(float),
        errors=table["error"].to_numpy(float),
        absent="fixed",
        note=" ".join(f"{line[0].upper()}{line[1:]}." for line in result.verdicts),
        converged=result.certified,
        low=table["low"].to_numpy(float) if by == "word" else None,
        high=table["high"].to_numpy(float) if by == "word" else None,
    )


def sentences(results: Sequence[Attribution], title: str = "") -> Figure:
    """Results under each other on one scale: each sentence in colour, with the scores below the words."""
    reach, heads = reach_of(results), heading(title, WIDTH) if title else []
    broken = [_lines(result) for result in results]
    height = 0.1 + 0.2 * len(heads) + sum(0.35 + HEIGHT * len(lines) for lines in broken)
    right = max(left + width for lines in broken for line in lines for left, width, _ in line)
    width = WIDTH if title else max(right, *(_wide(title_of(result), 8) for result in results)) + 0.2
    with style():
        fig = Drawing(figsize=(width, height))
        axes = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        down = 0.1
        if heads:
            axes.text(0.1, down, "\n".join(heads), va="top", fontsize=STYLE["figure.titlesize"])
            down += 0.2 * len(heads)
        for result, lines in zip(results, broken, strict=True):
            axes.text(0.1, down + 0.05, readable(title_of(result), 130), va="top", fontsize=8, color="#555555")
            down += 0.3
            for number, line in enumerate(lines):
                for left, wide, run in line:
                    _draw(axes, result, run, (left, down + number * HEIGHT, wide), reach)
            down += HEIGHT * len(lines) + 0.05
    return fig


def _lines(result: Attribution) -> list[list[tuple[float, float, Run]]]:
    """The runs with their left edge and width in inches, broken into lines."""
    lines: list[list[tuple[float, float, Run]]] = [[]]
    left, answer = 0.1, f"→ {result.target.text.strip()}"
    for run in (*runs(result), Run(" ", None), Run(answer, None)):
        width = 0.06 if run.text.isspace() else max(_wide(run.text, WORD), _wide(_score(result, run), SCORE)) + 0.06
        if left + width > WIDTH - 0.1 and lines[-1] and not run.text.isspace():
            lines.append([])
            left = 0.1
        lines[-1].append((left, width, run))
        left += width
    return lines


def _score(result: Attribution, run: Run) -> str:
    score = np.nan if run.row is None else result.word_scores[run.row]
    return "" if np.isnan(score) else f"{score:+.2g}"


@functools.cache
def _wide(text: str, points: float) -> float:
    """Inches that a text takes."""
    letters = FontProperties(family=list(fonts()), size=points)
    drawn = readable(text).replace(r"\$", "$")
    return float(TextToPath().get_text_width_height_descent(drawn, letters, False)[0]) / 72 if drawn else 0.0


def _draw(axes: Axes, result: Attribution, run: Run, place: tuple[float, float, float], reach: float) -> None:
    """One run at (left, top, width): its colour, its letters and its score below."""
    left, top, width = place
    score = np.nan if run.row is None else result.word_scores[run.row]
    back, ink = ("none", "#000000") if np.isnan(score) else colours(score, reach)
    if np.isfinite(score):
        hatch = None if result.certified else "/////"
        axes.add_patch(Rectangle((left, top), width, 0.24, facecolor=back, edgecolor="white", hatch=hatch, linewidth=0))
    if stands(result, run.row):
        axes.hlines(top + 0.255, left + 0.02, left + width - 0.02, color=INK, linewidth=1.2)
    text = readable(run.text) if run.text.strip() else ""
    axes.text(left + width / 2, top + 0.12, text, ha="center", va="center", fontsize=WORD, color=ink)
    axes.text(left + width / 2, top + 0.275, _score(result, run), ha="center", va="top", fontsize=SCORE, color=INK)
