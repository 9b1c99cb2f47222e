"""Explorers for JupyterLab: type a text, choose, look. The only file that imports ipywidgets.

An explorer is a set of labelled controls, a function from their values to a `View`, and the place where that is shown.
The function runs in a thread of its own, one at a time, so that the page stays alive and it can be stopped; whatever
changes a control starts it anew. What is shown is computed in views.py, and no notebook needs a widget for it.
"""

from __future__ import annotations

import base64
import html
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as ipy
from IPython.display import Javascript, display

from xai_utils.attribution.absence import BASELINES
from xai_utils.attribution.methods import METHODS, method_name
from xai_utils.attribution.target import UNITS
from xai_utils.errors import UserError
from xai_utils.models.watch import Stopped, Watch
from xai_utils.study.explainer import Explainer
from xai_utils.widgets import views
from xai_utils.widgets.views import View

ONE_AT_A_TIME = threading.Lock()  # models are shared, and attention switches them
REFRESH = 0.2  # seconds between two reports of progress
FADED = "<style>.xai-faded {opacity: 0.35} .xai-explorer img {max-width: 100%}</style>"
LABEL = {"description_width": "initial"}
PAGE = """
const focusable = ":is(input, select, button, .noUi-handle, [contenteditable])";
window.xaiExplorers ??= new MutationObserver(() => {
  for (const control of document.querySelectorAll(`.xai-explorer ${focusable}`)) {
    control.setAttribute("data-lm-suppress-shortcuts", "true");
  }
  for (const handle of document.querySelectorAll(".xai-explorer .noUi-handle")) {
    handle.setAttribute("aria-label", handle.closest(".widget-slider").querySelector("label").textContent);
  }
});
window.xaiExplorers.observe(document.body, {childList: true, subtree: true});
"""  # JupyterLab would take arrow keys and letters for its cells, and ipywidgets names all controls but the sliders


class Explorer(ipy.VBox):
    """Controls above, then a bar with its buttons, the picture, and one line: the proof, or what went wrong.

    `compute` takes the controls' values by name; `most` is the number of passes that fill the bar. A UserError becomes
    the line, as does being stopped; a picture that does not belong to the controls is taken away.
    """

    def __init__(
        self, controls: Mapping[str, ipy.DOMWidget], compute: Callable[..., View], book: Explainer, most: float
    ):
        self.controls, self._compute, self._most = dict(controls), compute, most
        self._models = [model.model for model in book.models.values()]
        self._watch: Watch | None = None
        self.thread: threading.Thread | None = None
        self.explain = ipy.Button(description="Explain", button_style="primary", tooltip="Compute with these settings")
        self.stop = ipy.Button(description="Stop", disabled=True, tooltip="Stop computing")
        self.bar = ipy.FloatProgress(description="Idle", max=most, style=LABEL, layout={"width": "260px"})
        self.picture, self.line = ipy.HTML(), ipy.HTML()
        self.picture.add_class("xai-picture")
        self.explain.on_click(self.start)
        self.stop.on_click(lambda _: self.cancel())
        for control in self.controls.values():
            control.observe(self.start, "value")
        rows = [_grid(self.controls), ipy.HBox([self.explain, self.stop, self.bar]), self.picture, self.line]
        super().__init__([ipy.HTML(FADED), *rows])
        self.add_class("xai-explorer")

    def start(self, _: object = None) -> None:
        """Compute with the controls' present values, in place of what is being computed."""
        self.cancel()
        watch = Watch(self._models, self._reporter())
        values = {name: control.value for name, control in self.controls.items()}
        self._watch = watch
        self.thread = threading.Thread(target=self._work, args=(watch, values), daemon=True)
        self.thread.start()

    def cancel(self) -> None:
        """Stop what is being computed, if anything is."""
        if self._watch is not None:
            self._watch.stop()

    def _work(self, watch: Watch, values: dict[str, Any]) -> None:
        self._busy(True)
        with ONE_AT_A_TIME:
            if watch is not self._watch:
                return
            begun = time.monotonic()
            png, alt = b"", ""
            try:
                with watch:
                    view = self._compute(**values)
                    png, alt, line = view.png(), view.alt, html.escape(view.line)
                cost = f"{_passes(watch)} through a model" if watch.passes else "remembered"
                line += f" <small>({cost}, {time.monotonic() - begun:.1f} s)</small>"
            except Stopped:
                line = f"<b>Stopped</b> after {_passes(watch)}."
            except UserError as error:
                line = _problem(str(error))
            except Exception as error:  # a thread's traceback would be lost
                line = _problem(f"{type(error).__name__}: {error}")
            if watch is self._watch:
                self._show(png, alt, line)
                self._busy(False)

    def _show(self, png: bytes, alt: str, line: str) -> None:
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        self.picture.value = f'<img alt="{html.escape(alt)}" src="{source}">' if png else ""
        self._say(line)

    def _say(self, line: str) -> None:
        self.line.value = f'<div role="status">{line}</div>'

    def _busy(self, busy: bool) -> None:
        self.stop.disabled = not busy
        self.bar.description = "Computing" if busy else "Idle"
        self.bar.value = 0
        if busy:
            self._say("Computing …")
        (self.picture.add_class if busy else self.picture.remove_class)("xai-faded")

    def _reporter(self) -> Callable[[float], None]:
        said = time.monotonic()

        def report(passes: float) -> None:
            nonlocal said
            if time.monotonic() - said > REFRESH:
                said = time.monotonic()
                self.bar.max = max(self._most, passes)
                self.bar.value = passes

        return report


def _passes(watch: Watch) -> str:
    return "1 pass" if round(watch.passes) == 1 else f"{watch.passes:.0f} passes"


def _problem(text: str) -> str:
    return f'<b style="color: #b2182b">{html.escape(" ".join(text.split()))}</b>'


def _grid(controls: Mapping[str, ipy.DOMWidget]) -> ipy.Widget:
    """The text over the whole width, the others beside each other, as many as fit."""
    columns = ipy.Layout(grid_template_columns="repeat(auto-fit, minmax(240px, 1fr))", grid_gap="0 12px")
    rest = [control for name, control in controls.items() if name != "text"]
    return ipy.VBox([*(controls[name] for name in controls if name == "text"), ipy.GridBox(rest, layout=columns)])


# ---- controls


def _text(label: str, value: str | None, hint: str = "") -> ipy.Text:
    """A line of text that counts when Enter is pressed or the line is left."""
    look: dict[str, Any] = {"style": LABEL, "layout": {"width": "auto"}}
    return ipy.Text(value or "", description=label, placeholder=hint, continuous_update=False, **look)


def _choice(label: str, options: Sequence[Any], value: Any = None) -> ipy.Dropdown:
    first = options[0][1] if isinstance(options[0], tuple) else options[0]
    chosen = first if value is None else value
    return ipy.Dropdown(options=options, value=chosen, description=label, style=LABEL, layout={"width": "auto"})


def _flag(label: str, value: bool) -> ipy.Checkbox:
    return ipy.Checkbox(value, description=label, indent=False, style=LABEL, layout={"width": "auto"})


def _number(label: str, most: int) -> ipy.IntSlider:
    look: dict[str, Any] = {"style": LABEL, "layout": {"width": "auto"}}
    return ipy.IntSlider(0, 0, most, description=label, continuous_update=False, **look)


def _texts(book: Explainer) -> dict[str, ipy.DOMWidget]:
    first = book.study.texts[0]
    return {
        "text": _text("Text", first.text, "any sentence"),
        "answer": _text("Answer", first.answer, "the model's own next token"),
        "contrast": _text("Instead of", first.contrast, "for the target contrast"),
    }


def _setting(book: Explainer, methods: Sequence[str]) -> dict[str, ipy.DOMWidget]:
    """What the explorers of scores have in common."""
    study = book.study
    preferred = next((name for name in study.methods if name in methods), methods[0])
    return {
        "target": _choice(
            "Target", [(name.replace("_", " "), name) for name in UNITS], study.texts[0].target or study.target
        ),
        "method": _choice("Method", [(method_name(name), name) for name in methods], preferred),
        "baseline": _choice("Baseline", list(BASELINES), study.baseline),
    }


def _rows(by: str) -> ipy.Dropdown:
    return _choice("Rows", [("words", "word"), ("tokens", "token")], by)


def _with(compute: Callable[..., View], book: Explainer) -> Callable[..., View]:
    return lambda **values: compute(book, **values)


def _fitted(controls: dict[str, ipy.DOMWidget]) -> dict[str, ipy.DOMWidget]:
    """Switch off, now and at every choice of a method, the settings that the method does not have."""

    def fit(_: object = None) -> None:
        line = METHODS[controls["method"].value]
        free = set(line.settings) - set(line.fixed)
        for name in ("baseline", "keep_sink", "sigma"):
            if name in controls:
                controls[name].disabled = not free & ({"baseline", "absence"} if name == "baseline" else {name})

    controls["method"].observe(fit, "value")
    fit()
    return controls


# ---- explorers


def attribution(book: Explainer) -> Explorer:
    """Any text, any method: its scores with their certificate."""
    chosen = {"model": _choice("Model", list(book.models))} | _setting(book, list(METHODS))
    rest = {"by": _rows("word"), "keep_sink": _flag("Keep the first position", book.study.keep_sink)}
    return Explorer(_fitted(_texts(book) | chosen | rest), _with(views.scores, book), book, book.study.budget)


def attention(book: Explainer) -> Explorer:
    """Any head of any layer on any text."""
    shapes = [model.model.config.get_text_config() for model in book.models.values()]
    controls = {
        "text": _text("Text", book.study.texts[0].text, "any sentence"),
        "model": _choice("Model", list(book.models)),
        "layer": _number("Layer", max(shape.num_hidden_layers for shape in shapes) - 1),
        "head": _number("Head", max(shape.num_attention_heads for shape in shapes) - 1),
        "by": _rows("token"),
        "apart": _flag("First position set apart", False),
        "weighted": _flag("Times value norms", False),
    }
    return Explorer(controls, _with(views.head, book), book, 1)


def influence(book: Explainer) -> Explorer:
    """What the target does when one token or word is taken away, or shaken with noise of size sigma."""
    chosen = {"model": _choice("Model", list(book.models))} | _setting(
        book, [name for name, line in METHODS.items() if line.family == "influence"]
    )
    sigma = ipy.FloatLogSlider(book.study.sigma, min=-3, max=1, step=0.25, description="Sigma", style=LABEL)
    sigma.continuous_update, sigma.layout.width = False, "auto"
    rest = {"sigma": sigma, "by": _rows("word"), "keep_sink": _flag("Keep the first position", book.study.keep_sink)}
    most = 20 * book.study.draws  # a sentence of a dozen words
    return Explorer(_fitted(_texts(book) | chosen | rest), _with(views.scores, book), book, most)


def comparison(book: Explainer) -> Explorer:
    """Two models on one's own sentence, words aligned, with the difference over its floor."""
    labels = list(book.models)
    pair = {"base": _choice("Model", labels), "other": _choice("Other model", labels, labels[-1])}
    rest = {"keep_sink": _flag("Keep the first position", book.study.keep_sink)}
    controls = _texts(book) | pair | _setting(book, list(METHODS)) | rest
    most = 2 * len(book.study.baselines) * book.study.budget
    return Explorer(_fitted(controls), _with(views.comparison, book), book, most)


EXPLORERS = {"attribution": attribution, "attention": attention, "influence": influence, "comparison": comparison}


def explore(book: Explainer, *names: str) -> None:
    """Show explorers by name, several as tabs, each started when it is first seen; nothing in a headless run."""
    if os.environ.get("XAI_HEADLESS"):
        return
    explorers = [EXPLORERS[name](book) for name in names]
    if len(explorers) == 1:
        display(Javascript(PAGE), explorers[0])
        explorers[0].start()
        return
    tabs = ipy.Tab(explorers, titles=[name.capitalize() for name in names])

    def seen(_: object = None) -> None:
        explorer = explorers[tabs.selected_index]
        if explorer.thread is None:
            explorer.start()

    tabs.observe(seen, "selected_index")
    display(Javascript(PAGE), tabs)
    seen()
