"""What an explorer shows for one setting: a figure, a sentence that says what it shows, and a line with its proof.

Each view is a function of a study's Explainer and plain values, so that a notebook can draw the same picture without
a widget, and a test can compare the two. The text need not be one of the study's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import ValidationError

from xai_utils.attention.layers import Layer, pool, stream, without_sink
from xai_utils.attribution.methods import method_name, method_named
from xai_utils.errors import UserError
from xai_utils.evaluation.statistics import CASE, differences, real
from xai_utils.models.loading import LoadedModel
from xai_utils.plots import heatmaps, pairs, style
from xai_utils.study.explainer import Explainer
from xai_utils.text.cases import Case, units, word_weights
from xai_utils.text.entry import TextEntry

OWN = "own"  # the id of a text that was typed


@dataclass(frozen=True)
class View:
    """One picture, its alt text, and one line under it."""

    figure: Figure
    alt: str
    line: str

    def png(self) -> bytes:
        """The figure as PNG, the same bytes for the same figure."""
        buffer = io.BytesIO()
        with style.style():
            self.figure.savefig(buffer, format="png", metadata={"Software": None, "Description": self.alt})
        return buffer.getvalue()


def on_text(book: Explainer, text: str, answer: str = "", contrast: str = "") -> Explainer:
    """An Explainer on a text of one's own. Raises UserError for a text or an answer that cannot be explained."""
    try:
        return book.on(TextEntry(id=OWN, text=text, answer=answer or None, contrast=contrast or None))
    except ValidationError as error:
        problem = error.errors()[0]
        reason = problem.get("ctx", {}).get("error", problem["msg"])
        where = f"{problem['loc'][0]}: " if problem["loc"] else ""
        raise UserError(f"{where}{reason}") from None


def scores(
    book: Explainer,
    *,
    text: str,
    model: str,
    method: str,
    answer: str = "",
    contrast: str = "",
    target: str = "logprob",
    by: str = "word",
    **settings: Any,
) -> View:
    """Bars of one attribution by `token` or `word`, its certificate under them.

    `settings` are the method's own (baseline, keep_sink, sigma); those that it does not have are left out.
    Raises UserError as text, target and method do.
    """
    own = on_text(book, text, answer, contrast)
    tables = own.tables([method], models=[model], target=target, **_accepted(method, settings))
    goal, proofs = own.target(model, OWN, target), tables["certificates"]
    name = method_name(method)
    bars = style.panel(tables, by=by, title=f"{model}: {name} by {by}")
    title = f"{text} → {goal.text!r}"
    figure = style.bars([bars], title=title)
    if len(proofs):
        line = f"Certificate: {'converged' if bars.converged else 'NOT CONVERGED'}."
    else:
        line = f"{name.capitalize()} carries no certificate."
    alt = f"{title}. {bars.describe()} {bars.note}".strip()
    return View(figure, alt, line + _remarks(own.case(model, OWN), text, answer))


def _accepted(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that a method has; a baseline is the absence of a method that removes words."""
    line = method_named(method)
    if "baseline" in settings:
        settings = settings | {"absence": settings["baseline"]}
    return {name: value for name, value in settings.items() if name in line.settings and name not in line.fixed}


def _remarks(case: Case, text: str, answer: str = "") -> str:
    """What a person should know of their own text: its end was cut off, or the answer would be glued to it."""
    cut = f" The text is too long: its last {case.cut} tokens were left out (max_tokens of the study)." * (case.cut > 0)
    glued = answer[:1].isalnum() and text.rstrip()[-1:].isalnum()
    return cut + (" The answer begins without a space, so it goes on inside the text's last word." if glued else "")


def head(
    book: Explainer,
    *,
    text: str,
    model: str,
    layer: int,
    head: int,
    by: str = "token",
    apart: bool = False,
    weighted: bool = False,
) -> View:
    """One head's attention map between tokens or words.

    `apart` sets the first position apart and renormalises, `weighted` multiplies the weights by value norms.
    Raises UserError where there is no such layer or head, and where the model's value norms are not known.
    """
    chosen = book.models[model]
    case = on_text(book, text).case(model, OWN)
    found = _layer(chosen, case, layer)
    if not 0 <= head < len(found.weights):
        raise UserError(f"model '{model}' has no head {head}; expected 0 to {len(found.weights) - 1}; choose another")
    weights = found.contributions if weighted else found.weights
    if weights is None:
        raise UserError(f"the values of model '{model}' are kept in a place that is not known; choose plain weights")
    matrix, labels = weights[head].double().cpu(), case.labels
    shares = word_weights(case)
    if apart:
        if len(case.tokens) < 3:
            raise UserError("the text is too short to set its first position apart; expected two tokens behind it")
        matrix, labels, shares = without_sink(matrix), labels[1:], shares[1:]
    if by == "word":
        there = shares.sum(0) > 0
        matrix = pool(matrix, torch.from_numpy(shares[:, there]))
        labels = [unit.text for unit, kept in zip(units(case), there, strict=True) if kept]
    measured = "weights times value norms" if weighted else "attention"
    title = f"{model}: layer {layer}, head {head}, {measured} by {by}"
    figure = heatmaps.heatmap(matrix.numpy(), labels, title, rest=apart)
    sink = found.weights[head, 1:, 0].mean().item() if len(case.tokens) > 1 else 1.0
    line = f"The first position takes {sink:.0%} of this head's attention; a row is a query, and rows sum to 1."
    return View(figure, f"{title}. {_strongest(matrix.numpy(), labels)}", line + _remarks(case, text))


def _layer(model: LoadedModel, case: Case, index: int) -> Layer:
    """One layer's attention, from one pass. Raises UserError where there is no such layer."""
    kept: list[Layer] = []
    layers = model.model.config.get_text_config().num_hidden_layers
    if not 0 <= index < layers:
        raise UserError(f"model '{model.label}' has no layer {index}; expected 0 to {layers - 1}; choose another")
    stream(model, case.ids, lambda layer: kept.append(layer) if layer.index == index else None, norms=True)
    return kept[0]


def _strongest(matrix: np.ndarray, labels: list[str]) -> str:
    """The key that is looked at most, on average over the queries."""
    keys = np.nan_to_num(matrix).mean(0)
    return f"Most looked at: {labels[int(keys.argmax())].strip()!r}, {keys.max():.0%} on average."


def comparison(
    book: Explainer,
    *,
    text: str,
    base: str,
    other: str,
    method: str,
    answer: str = "",
    contrast: str = "",
    target: str = "logprob",
    baseline: str | None = None,
    keep_sink: bool = True,
) -> View:
    """Two models' word scores side by side, and their difference over its floor.

    Without a `baseline` the study's own is taken. The sign of a difference is asked of all the study's baselines where
    the method has one. Raises UserError where the models are one, or where no certified scores are left to compare.
    """
    if base == other:
        raise UserError(f"both models are '{base}'; expected two different ones; choose another model")
    own, baseline = on_text(book, text, answer, contrast), baseline or book.study.baseline
    has_choice = bool(_accepted(method, {"baseline": baseline}))
    names = list(dict.fromkeys([baseline, *book.study.baselines])) if has_choice else [""]
    settings = [_accepted(method, {"baseline": name, "keep_sink": keep_sink}) for name in names]
    found = [
        own.tables([method], models=[label], target=target, **setting)
        for label in (base, other)
        for setting in settings
    ]
    proofs = pd.concat([tables["certificates"] for tables in found]).reindex(columns=[*CASE, "converged"])
    proofs = proofs.astype({"converged": bool})
    words = pd.concat([tables["word_scores"] for tables in found], ignore_index=True)
    table = differences(words, proofs, base, other, baseline)
    if table.empty:
        raise UserError(f"{method} did not converge for both models, so nothing is compared; raise the study's budget")
    name, goal = method_name(method), own.target(base, OWN, target)
    at = f" at the {baseline} baseline" if has_choice else ""
    figure = pairs.pair(table, f"{text}: {name} of {goal.text!r}{at}")
    largest = table.iloc[int(table["difference"].abs().argmax())]
    alt = f"{text}: {other} minus {base} is largest for {largest['word']!r}, {largest['difference']:+.3g} {goal.unit}. "
    line = _counted(table, names, proofs)
    longest = max((own.case(label, OWN) for label in (base, other)), key=lambda case: case.cut)
    return View(figure, alt + line, line + _remarks(longest, text, answer))


def _counted(table: pd.DataFrame, baselines: list[str], proofs: pd.DataFrame) -> str:
    signs = f" and keep their sign at the baselines {', '.join(baselines)}" if len(baselines) > 1 else ""
    left_out = (~proofs["converged"]).sum()
    if left_out:
        proof = f"{left_out} of {len(proofs)} attributions did not converge and are left out."
    else:
        proof = f"All {len(proofs)} certificates converged." if len(proofs) else "This method carries no certificate."
    return f"{real(table).sum()} of {len(table)} differences count: they are beyond their floor{signs}. {proof}"
