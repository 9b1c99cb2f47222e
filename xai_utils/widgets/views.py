"""What an explorer shows for one setting: HTML without script, the figure that stands for it on a page, and its proof.

Each view is a function of a study's Explainer and plain values, so that a notebook can show the same without a widget,
and a test can compare the two. The text need not be one of the study's. Scores, trust cards and comparisons are those
of the front door; methods' settings are the study's.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure

from xai_utils import api
from xai_utils.attention.heads import looking_back
from xai_utils.attention.layers import Layer, pool, stream, without_sink
from xai_utils.attribution.methods import METHODS
from xai_utils.attribution.result import Attribution
from xai_utils.attribution.target import UNITS
from xai_utils.errors import UserError, nearest
from xai_utils.fields import checked
from xai_utils.models.loading import LoadedModel
from xai_utils.plots import heatmaps, sentence, style
from xai_utils.plots.html import comparison_html, result_html
from xai_utils.study.comparison import behaviours
from xai_utils.study.config import setting
from xai_utils.study.explainer import Explainer
from xai_utils.text.cases import Case, units, word_weights
from xai_utils.text.entry import TextEntry

OWN = "own"  # the id of a text that was typed
ROWS = ("word", "token")
SETTINGS = ("baseline", *dict.fromkeys(name for line in METHODS.values() for name in line.settings))


@dataclass(frozen=True)
class View:
    """What an explorer shows, one line under it, and how a page shows the same: a figure with its alt text."""

    html: str
    line: str
    alt: str
    draw: Callable[[], Figure]

    @cached_property
    def figure(self) -> Figure:
        return self.draw()


class Asked:
    """One question to the models of a study. Raises UserError, before anything is computed, for what cannot be asked.

    `settings` are methods' own (baseline, keep_sink, sigma); those that this method lacks are left out.
    """

    def __init__(
        self,
        book: Explainer,
        *,
        text: str,
        method: str,
        answer: str = "",
        contrast: str = "",
        target: str = "logprob",
        **settings: Any,
    ):
        _one_of("method", method, METHODS)
        _one_of("target", target, UNITS)
        for name in settings:
            _one_of("setting", name, SETTINGS)
        self.text, self.answer, self.method, self.target = text, answer, method, target
        self.own = on_text(book, text, answer, contrast)
        self.settings = _accepted(method, settings)

    def model(self, label: str) -> LoadedModel:
        """The model; raises UserError where it is not there, or cannot be asked this."""
        _one_of("model", label, self.own.models)
        self.own.target(label, OWN, self.target)
        return self.own.models[label]

    def explained(self, label: str, tests: bool) -> Attribution:
        """The attribution, kept with the study's, and its trust card."""
        model, asked = self.model(label), behaviours(self.own, label).to_dict("records")[0]
        found = self.own.attribute(label, OWN, self.method, self.target, **self.settings)
        return api.with_card(model, found, tests, asked)

    def passes(self, label: str) -> int:
        """The most passes of the model that the method may take, roughly."""
        values, case, line = self.own.settings(self.method) | self.settings, self.own.case(label, OWN), self.method
        words, single = len(units(case)), METHODS[line].cost in ("one gradient", "one pass")
        if single or "budget" not in values:
            return 1 if single else values.get("draws", 1) * (len(case.tokens) + words)
        most: int = values["budget"] if METHODS[line].family == "gradients" else min(2**words, values["budget"])
        return most * len(values.get("absences", [0]))


def on_text(book: Explainer, text: str, answer: str = "", contrast: str = "") -> Explainer:
    """An Explainer on a text of one's own. Raises UserError for a text or an answer that cannot be explained."""
    entry = checked(TextEntry, id=OWN, text=text, answer=answer or None, contrast=contrast or None, target="logprob")
    return book.on(entry)


def goes_on(book: Explainer, text: str, answer: str = "", contrast: str = "") -> pd.DataFrame:
    """The table `behaviour` of all models on one text: how each goes on, and how sure it is of the answer."""
    return behaviours(on_text(book, text, answer, contrast))


def scores(book: Explainer, *, model: str, by: str = "word", tests: bool = True, **asked: Any) -> View:
    """One attribution by `word` or `token` with its trust card; `asked` as for `Asked`.

    `tests` allows the card's deletion tests. Raises UserError for what cannot be asked, with the nearest that can.
    """
    _one_of("by", by, ROWS)
    question = Asked(book, **asked)
    found = question.explained(model, tests)
    alt = f"{question.text} → {found.target.text!r}. {sentence.panel_of(found, by).describe()}"
    line = f"{'; '.join(found.verdicts)}.{_remarks(found.case, question)}"
    return View(result_html(found, by=by), line, alt, lambda: sentence.bars_of(found, by))


def comparable(book: Explainer, base: str, other: str, **asked: Any) -> Asked:
    """A question to two models. Raises UserError where they are one, without an answer, and as `Asked` does."""
    if base == other:
        raise UserError(f"both models are {base!r}; expected two different ones; choose another model")
    question = Asked(book, **asked)
    if not question.answer:
        raise UserError("answer: it is empty, and two models are compared on one answer; choose or write one")
    question.model(base), question.model(other)
    return question


def comparison(book: Explainer, *, base: str, other: str, parts: bool = True, tests: bool = True, **asked: Any) -> View:
    """One answer under two models: both sentences on one scale, word by word, and what makes the difference.

    `parts` asks for the swap attribution, `tests` for the cards' deletion tests. Raises UserError as `comparable` does.
    """
    question = comparable(book, base, other, **asked)
    first, second = question.explained(base, tests), question.explained(other, tests)
    pair = api.compared(question.model(base), question.model(other), first, second, parts=parts)
    words = pair.words
    counts = words["difference"].abs() > words["floor"]
    line = f"{counts.sum()} of {len(words)} differences are large enough to count"
    if words["stands"].notna().any():
        line += f", {words['stands'].sum()} of them have one sign under all absences"
    line += "." + _remarks(max(first.case, second.case, key=lambda case: case.cut), question)
    largest = words.iloc[int(words["difference"].abs().fillna(0).argmax())]
    alt = f"{question.text}: {other} minus {base} is largest for {largest['word']!r}, {largest['difference']:+.3g}"
    return View(comparison_html(pair), line, f"{alt} {first.unit}. {line}", pair.plot)


def _accepted(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that a method has, checked; a baseline is the absence of a method that removes words."""
    given = {name: value for name, value in settings.items() if value is not None}
    if "baseline" in given:
        given = {"absence": given["baseline"]} | given
    line = METHODS[method]
    return {name: setting(name, given[name]) for name in given if name in line.settings and name not in line.fixed}


def _one_of(what: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(f"there is no {what} {value!r}; {nearest(str(value), known)}")


def _remarks(case: Case, question: Asked | None = None) -> str:
    """What a person should know of their own text: its end was cut off, or the answer would be glued to it."""
    cut = f" The text is too long: its last {case.cut} tokens were left out (max_tokens of the study)." * (case.cut > 0)
    glued = question and question.answer[:1].isalnum() and question.text.rstrip()[-1:].isalnum()
    return cut + (" The answer begins without a space, so it goes on inside the text's last word." if glued else "")


# ---- attention


def interest(book: Explainer, *, text: str, model: str) -> Float[np.ndarray, "layer head"]:
    """How lively each head is on a text (attention/heads.py)."""
    _one_of("model", model, book.models)
    return looking_back(book.models[model], on_text(book, text).case(model, OWN).ids)


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
    _one_of("model", model, book.models)
    _one_of("by", by, ROWS)
    case = on_text(book, text).case(model, OWN)
    found = _layer(book.models[model], case, layer)
    if not (isinstance(head, int) and 0 <= head < len(found.weights)):
        raise UserError(f"model '{model}' has no head {head!r}; expected 0 to {len(found.weights) - 1}; choose another")
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
    alt = f"{title}. {_strongest(matrix.numpy(), labels)}"
    source = base64.b64encode(style.png(figure)).decode()
    picture = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{source}">'
    return View(picture, line + _remarks(case), alt, lambda: figure)


def _layer(model: LoadedModel, case: Case, index: int) -> Layer:
    """One layer's attention, from one pass. Raises UserError where there is no such layer."""
    kept: list[Layer] = []
    layers = model.model.config.get_text_config().num_hidden_layers
    if not (isinstance(index, int) and 0 <= index < layers):
        raise UserError(f"model '{model.label}' has no layer {index!r}; expected 0 to {layers - 1}; choose another")
    stream(model, case.ids, lambda layer: kept.append(layer) if layer.index == index else None, norms=True)
    return kept[0]


def _strongest(matrix: np.ndarray, labels: list[str]) -> str:
    """The key that is looked at most, on average over the queries."""
    keys = np.nan_to_num(matrix).mean(0)
    return f"Most looked at: {labels[int(keys.argmax())].strip()!r}, {keys.max():.0%} on average."
