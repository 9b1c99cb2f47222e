"""Explorers for JupyterLab: type a text, choose, look. This and panel.py are the only files that import ipywidgets.

All explorers of a notebook share one text and answer. What is shown is computed in views.py, and no notebook needs a
widget for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as ipy
import matplotlib as mpl
import numpy as np
from IPython.display import Javascript, display

from xai_utils.attribution.absence import BASELINES
from xai_utils.attribution.methods import DEFAULT_METHOD, METHODS, method_name
from xai_utils.attribution.target import UNITS
from xai_utils.study.explainer import Explainer
from xai_utils.widgets import views
from xai_utils.widgets.panel import LABEL, STYLE, Explorer, Question, Stage

WHOLE = 1024  # passes that a swap, or a card's deletion tests, may take
QUICK = "cp_lrp"  # the first picture: one pass forward and one back
PAGE = """
const focusable = ":is(input, select, button, .noUi-handle, [contenteditable])";
window.xaiExplorers ??= new MutationObserver(() => {
  for (const control of document.querySelectorAll(`.xai-explorer ${focusable}`)) {
    control.setAttribute("data-lm-suppress-shortcuts", "true");
  }
  for (const handle of document.querySelectorAll(".xai-explorer .noUi-handle")) {
    handle.setAttribute("aria-label", handle.closest(".widget-slider").querySelector("label").textContent);
  }
  for (const cell of document.querySelectorAll(".xai-heads button")) {
    cell.setAttribute("aria-label", cell.title);
    cell.tabIndex = -1;
  }
});
window.xaiExplorers.observe(document.body, {childList: true, subtree: true});
"""  # JupyterLab would take arrow keys and letters for its cells, and ipywidgets names all controls but the sliders.
# The Tab key passes the map of heads by: the list beside it holds the same heads.


def _choice(label: str, options: Sequence[Any], value: Any = None) -> ipy.Dropdown:
    first = options[0][1] if isinstance(options[0], tuple) else options[0]
    chosen = first if value is None else value
    return ipy.Dropdown(options=options, value=chosen, description=label, style=LABEL, layout={"width": "max-content"})


def _flag(label: str, value: bool) -> ipy.Checkbox:
    return ipy.Checkbox(value, description=label, indent=False, style=LABEL, layout={"width": "max-content"})


def _rows(by: str) -> ipy.Dropdown:
    return _choice("Rows", [("words", "word"), ("tokens", "token")], by)


def _setting(book: Explainer, methods: Sequence[str]) -> dict[str, ipy.DOMWidget]:
    """What the explorers of scores have in common; settings that the chosen method lacks are switched off."""
    study = book.study
    sigma = ipy.FloatLogSlider(study.sigma, min=-3, max=1, step=0.25, description="Sigma", style=LABEL)
    sigma.continuous_update, sigma.layout.width = False, "220px"
    controls = {
        "target": _choice("Target", [(name.replace("_", " "), name) for name in UNITS]),
        "method": _choice("Method", [(method_name(name), name) for name in methods], DEFAULT_METHOD),
        "baseline": _choice("Baseline", list(BASELINES), study.baseline),
        "sigma": sigma,
        "keep_sink": _flag("Keep the first position", study.keep_sink),
    }

    def fit(_: object = None) -> None:
        line = METHODS[controls["method"].value]
        free = set(line.settings) - set(line.fixed)
        for name in ("baseline", "keep_sink", "sigma"):
            controls[name].disabled = not free & ({"baseline", "absence"} if name == "baseline" else {name})

    controls["method"].observe(fit, "value")
    fit()
    return controls


def _staged(
    asked: views.Asked, labels: Sequence[str], view: Callable[[str, bool], views.View], last: str
) -> list[Stage]:
    """A first picture where the method takes more than a pass, then the method's own, then with all that tests it."""
    most = sum(asked.passes(label) for label in labels)
    found = [Stage(method_name(asked.method), most, lambda: view(asked.method, False))]
    if most > len(labels):
        found.insert(0, Stage(method_name(QUICK), len(labels), lambda: view(QUICK, False)))
    return [*found, Stage(last, WHOLE, lambda: view(asked.method, True))]


def attribution(question: Question, methods: Sequence[str] = tuple(METHODS)) -> Explorer:
    """Any method: its scores with their certificate and trust card."""
    book = question.book
    controls = {"model": _choice("Model", list(book.models))} | _setting(book, methods) | {"by": _rows("word")}

    def stages(model: str, by: str, **values: Any) -> list[Stage]:
        asked = views.Asked(book, **values)
        asked.model(model)

        def view(method: str, whole: bool) -> views.View:
            return views.scores(book, model=model, by=by, tests=whole, **values | {"method": method})

        return _staged(asked, [model], view, "deletion tests")

    return Explorer(question, controls, stages)


def influence(question: Question) -> Explorer:
    """Methods that take words away, or noise them."""
    return attribution(question, [name for name, line in METHODS.items() if line.family == "influence"])


def comparison(question: Question) -> Explorer:
    """Two models: both sentences in colour, their words side by side, and what makes the difference."""
    book, labels = question.book, list(question.book.models)
    pair = {"base": _choice("Model", labels), "other": _choice("Other model", labels, labels[-1])}

    def stages(base: str, other: str, **values: Any) -> list[Stage]:
        asked = views.comparable(book, base, other, **values)

        def view(method: str, whole: bool) -> views.View:
            own = values | {"method": method}
            return views.comparison(book, base=base, other=other, parts=whole, tests=whole, **own)

        return _staged(asked, [base, other], view, "what makes the difference, and deletion tests")

    return Explorer(question, pair | _setting(book, list(METHODS)), stages)


def attention(question: Question) -> Explorer:
    """Any head of any layer: a map of all of them to click on, and the same heads in a list, the liveliest first."""
    book = question.book
    controls = {
        "model": _choice("Model", list(book.models)),
        "head": ipy.Dropdown(description="Head", style=LABEL, layout={"width": "max-content"}),
        "by": _rows("token"),
        "apart": _flag("First position set apart", False),
        "weighted": _flag("Times value norms", False),
    }
    heads, look, fitted = ipy.ToggleButtons(), ipy.HTML(), list[tuple[str, str]]()
    heads.add_class("xai-heads")
    heads.add_class(f"xai-heads-{id(heads)}")
    told = ipy.HTML(
        "<b>All heads</b>: a column is a layer, a row a head. The darker, the more it looks at one earlier token that "
        "is neither the first nor the one just before. Click on one, or choose it under <i>Head</i>."
    )

    def fit(text: str, model: str) -> None:
        """The heads of this model on this text."""
        if fitted == [(text, model)]:
            return
        found = views.interest(book, text=text, model=model)
        order = [divmod(int(place), found.shape[1]) for place in np.argsort(-found, axis=None, kind="stable")]
        kept = controls["head"].value if fitted and fitted[0][1] == model else order[0]
        by_row = [(layer, head) for head in range(found.shape[1]) for layer in range(found.shape[0])]
        explorer.quiet = True
        controls["head"].options = [(f"layer {x}, head {y} ({found[x, y]:.2f})", (x, y)) for x, y in order]
        heads.options = [(f"{x}.{y}", (x, y)) for x, y in by_row]
        heads.tooltips = [f"layer {x}, head {y}: {found[x, y]:.2f}" for x, y in by_row]
        look.value = _coloured(id(heads), found.shape[0], [found[place] for place in by_row])
        controls["head"].value = heads.value = kept
        explorer.quiet = False
        fitted[:] = [(text, model)]

    def stages(text: str, answer: str, contrast: str, model: str, head: Any, **values: Any) -> list[Stage]:
        views.on_text(book, text)
        fit(text, model)
        layer, head = controls["head"].value
        case = {"text": text, "model": model, "layer": layer, "head": head} | values
        return [Stage("attention", 1, lambda: views.head(book, **case))]

    def follow(change: Any) -> None:
        if not explorer.quiet and change["new"] is not None:
            other = heads if change["owner"] is controls["head"] else controls["head"]
            other.value = change["new"]

    explorer = Explorer(question, controls, stages, [ipy.VBox([look, told, heads], layout={"margin": "0 0 0 16px"})])
    for control in (heads, controls["head"]):
        control.observe(follow, "value")
    return explorer


def _coloured(name: int, layers: int, values: Sequence[float]) -> str:
    """The style of a map of heads: a cell a button, darker for a greater value."""
    colours, most = mpl.colormaps["Blues"], max(*values, 1e-9)
    cells = "".join(
        f".xai-heads-{name} button:nth-child({place}) {{background: rgb({', '.join(f'{255 * c:.0f}' for c in rgb)})}}\n"
        for place, value in enumerate(values, 1)
        for rgb in [colours(float(value) / most)[:3]]
    )
    return (
        f"<style>.xai-heads-{name} > div {{display: grid; grid-template-columns: repeat({layers}, 14px); gap: 1px}}\n"
        f".xai-heads-{name} button {{width: 14px; height: 14px; margin: 0; padding: 0; font-size: 0; min-width: 0}}\n"
        f"{cells}.xai-heads-{name} button.mod-active {{outline: 3px solid #e08214; z-index: 1}}</style>"
    )


EXPLORERS: dict[str, Callable[[Question], Explorer]] = {
    "attribution": attribution,
    "attention": attention,
    "influence": influence,
    "comparison": comparison,
}


def explore(book: Explainer, *names: str) -> None:
    """Show explorers by name, several as tabs, each started when it is seen; nothing in a headless run."""
    if os.environ.get("XAI_HEADLESS"):
        return
    question = Question(book)
    explorers = [EXPLORERS[name](question) for name in names]
    tabs = ipy.Tab(explorers, titles=[name.capitalize() for name in names])

    def seen(_: object = None) -> None:
        explorer = explorers[tabs.selected_index or 0]
        if explorer.stale:
            explorer.start()

    def changed() -> None:
        for explorer in explorers:
            explorer.stale = True
            explorer.cancel()
        seen()

    question.changed = changed
    tabs.observe(seen, "selected_index")
    whole = ipy.VBox([ipy.HTML(STYLE), question, tabs if len(names) > 1 else explorers[0]])
    display(Javascript(PAGE), whole)
    seen()
