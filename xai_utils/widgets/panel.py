"""One explorer on the page: controls above, progress, what it shows, and one line of proof or of what went wrong.

It computes in a thread of its own, one at a time, so that the page stays alive and it can be stopped; whatever changes
starts it anew. A first picture from a quick method comes before that of the chosen one.
"""

from __future__ import annotations

import html
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as ipy

from xai_utils.errors import UserError
from xai_utils.models.watch import Stopped, Watch
from xai_utils.study.explainer import Explainer
from xai_utils.text.words import visible
from xai_utils.widgets import views
from xai_utils.widgets.views import View

ONE_AT_A_TIME = threading.Lock()  # models are shared, and attention switches them
REFRESH = 0.2  # seconds between two reports of progress
REMEMBERED = 64  # pictures of an explorer
OFFERED = 4  # answers of the models' own
LABEL = {"description_width": "initial"}
LABELS = {"text": "Text", "answer": "Answer", "contrast": "Instead of"}
STYLE = """<style>
.xai-faded {opacity: 0.35}
.xai-explorer img {max-width: 100%}
.xai-explorer .jupyter-widgets-output-area, .xai-explorer .widget-html-content {line-height: 1.4}
.xai-explorer td, .xai-explorer th {padding: 0 .5em !important}
</style>"""


@dataclass(frozen=True)
class Stage:
    """A step of a computation: its name while it runs, about how many passes it may take, and what makes its view."""

    name: str
    most: int
    make: Callable[[], View]


def text_field(label: str, value: str | None, hint: str) -> ipy.Text:
    """A line of text that counts when Enter is pressed or the line is left."""
    look: dict[str, Any] = {"style": LABEL, "layout": {"width": "100%"}}
    return ipy.Text(value or "", description=label, placeholder=hint, continuous_update=False, **look)


class Question(ipy.VBox):
    """The text that all explorers of a notebook are asked about, its answer, and how each model goes on.

    A new text empties answer and contrast: they belonged to the old one. `changed` is called when one of them changes.
    """

    def __init__(self, book: Explainer):
        first = book.study.texts[0]
        self.book, self.changed = book, lambda: None
        self.text = text_field(LABELS["text"], first.text, "any sentence")
        self.answer = text_field(LABELS["answer"], first.answer, "empty: the model's own next token")
        self.contrast = text_field(LABELS["contrast"], first.contrast, "for the target contrast")
        self.said, self.offers = ipy.HTML(), ipy.HBox(layout={"flex_flow": "row wrap", "align_items": "center"})
        self._asked: dict[str, str] = {}
        self._quiet = False
        for field in (self.text, self.answer, self.contrast):
            field.observe(self._change, "value")
        super().__init__([self.text, ipy.HBox([self.answer, self.contrast]), self.said, self.offers])
        self.add_class("xai-explorer")
        self.add_class("xai-question")

    @property
    def values(self) -> dict[str, str]:
        return {"text": self.text.value, "answer": self.answer.value, "contrast": self.contrast.value}

    def _change(self, change: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        if change["owner"] is self.text:
            self._quiet = True
            self.answer.value = self.contrast.value = ""
            self._quiet = False
            self.said.value, self.offers.children = "", ()
        self.changed()

    def look(self) -> None:
        """Ask the models how they go on, unless that is what is shown. Raises UserError for a text without a word."""
        values = self.values
        if values == self._asked:
            return
        table = views.goes_on(self.book, **values)
        said, offered = [], dict[str, None]()
        for row in table.to_dict("records"):
            own, after = str(row["next_text"]), str(row["continuation"])
            line = f"<b>{html.escape(row['model'])}</b>: {_quoted(own)} {row['next_probability']:.2f}"
            if values["answer"]:
                line += f", {_quoted(values['answer'])} {row['probability']:.2g} (rank {row['rank']})"
            said.append(f"{line}; by itself it writes {_quoted(after)}")
            word = re.match(r"\s*(\w+|\S)", after)
            offered |= dict.fromkeys([own, *([word[0]] if word else [])])
        self.said.value = f'<div role="status">{"<br>".join(said)}</div>'
        whole = [answer for answer in offered if answer.strip() and answer.isprintable() and "\ufffd" not in answer]
        offers = [self._offer(answer, values["text"]) for answer in whole[:OFFERED]]
        self.offers.children = (ipy.Label("Explain:"), *offers) if offers else ()
        self._asked = values

    def _offer(self, answer: str, text: str) -> ipy.Button:
        button = ipy.Button(description=f"“{visible(answer)}”", tooltip=f"Explain the answer “{visible(answer)}”")
        button.layout.width = "auto"

        def take(_: object) -> None:
            if self.text.value == text:
                self.answer.value = answer

        button.on_click(take)
        return button


class Explorer(ipy.VBox):
    """Controls, a bar with its buttons, and what is shown for them; `beside` stands at its right.

    `stages` takes the question's and the controls' values by name and gives what is computed, the best last; it refuses
    what cannot be. A UserError becomes the line, as does being stopped; the last picture stays, faded.
    """

    def __init__(
        self,
        question: Question,
        controls: Mapping[str, ipy.DOMWidget],
        stages: Callable[..., Sequence[Stage]],
        beside: Sequence[ipy.DOMWidget] = (),
    ):
        self.question, self.controls, self._stages = question, dict(controls), stages
        self._models = [model.model for model in question.book.models.values()]
        self._watch: Watch | None = None
        self._seen: dict[tuple[Any, ...], View] = {}
        self.thread: threading.Thread | None = None
        self.stale, self.quiet = True, False
        self.explain = ipy.Button(description="Explain", button_style="primary", tooltip="Compute with these settings")
        self.stop = ipy.Button(description="Stop", disabled=True, tooltip="Stop computing")
        self.bar = ipy.FloatProgress(max=1, style=LABEL, layout={"width": "160px"})
        self.at, self.picture, self.line = ipy.Label("Idle"), ipy.HTML(), ipy.HTML()
        self.picture.add_class("xai-picture")
        self.explain.on_click(self.start)
        self.stop.on_click(lambda _: self.cancel())
        for control in self.controls.values():
            control.observe(self._change, "value")
        wrapped = ipy.Layout(flex_flow="row wrap", grid_gap="2px 16px", align_items="center")
        row = ipy.HBox([self.explain, self.stop, self.bar, self.at])
        shown = ipy.HBox([self.picture, *beside]) if beside else self.picture
        super().__init__([ipy.HBox(list(self.controls.values()), layout=wrapped), row, self.line, shown])
        self.add_class("xai-explorer")

    def _change(self, _: object) -> None:
        if not self.quiet:
            self.start()

    def start(self, _: object = None) -> None:
        """Compute with the present values, in place of what is being computed."""
        self.cancel()
        self.stale = False
        watch = Watch(self._models, self._report)
        self._watch = watch
        self.thread = threading.Thread(target=self._work, args=(watch,), daemon=True)
        self.thread.start()

    def cancel(self) -> None:
        """Stop what is being computed, if anything is."""
        if self._watch is not None:
            self._watch.stop()

    def _work(self, watch: Watch) -> None:
        self._fade(True)
        self.stop.disabled = False
        self._say("")
        with ONE_AT_A_TIME:
            if watch is not self._watch:
                return
            whole = False
            try:
                with watch:
                    line = self._compute(watch)
                whole = True
            except Stopped:
                line = f"<b>Stopped</b> after {_passes(watch.passes)}; what is shown is not complete."
            except UserError as error:
                line = _problem(on_screen(str(error)))
            except Exception as error:  # a thread's traceback would be lost
                line = _problem(f"{type(error).__name__}: {error}")
            if watch is self._watch:
                self._fade(not whole)
                self._say(line)
                self.stop.disabled, self.bar.value, self.at.value = True, 0, "Idle"

    def _compute(self, watch: Watch) -> str:
        """Show the stages one after the other. The line under the last."""
        self._began = time.monotonic()
        asked = self.question.values
        self._enter(watch, "reading the text", len(self._models))
        try:
            stages = self._stages(**asked, **{name: c.value for name, c in self.controls.items()})
        except UserError:
            self._look(watch)  # what the models would say may be the way out
            raise
        values = tuple(c.value for c in self.controls.values())  # what the stages may have set
        key = (*asked.values(), *values)
        for stage in [] if key in self._seen else stages:
            self._enter(watch, stage.name, stage.most)
            view = stage.make()
            if watch.stopped:
                raise Stopped
            self.picture.value = view.html
            self._fade(False)
            if stage is not stages[-1]:
                self._say(f"{html.escape(view.line)} <i>More is being computed.</i>")
                self._look(watch)
            else:
                self._seen = dict([*self._seen.items()][-REMEMBERED:]) | {key: view}
        self._look(watch)
        view = self._seen[key]
        self.picture.value = view.html
        cost = f"{_passes(watch.passes)} through a model" if watch.passes else "remembered"
        return f"{html.escape(visible(view.line))} <small>({cost}, {time.monotonic() - self._began:.1f} s)</small>"

    def _enter(self, watch: Watch, stage: str, most: float) -> None:
        self._stage, self._since, watch.error = stage, watch.passes, None
        self.bar.max, self.bar.value = max(most, 1), 0

    def _look(self, watch: Watch) -> None:
        """How the models go on: said once a question, after its first picture."""
        self._enter(watch, "how the models go on", 16 * len(self._models))
        self.question.look()

    def _say(self, line: str) -> None:
        self.line.value = f'<div role="status">{line}</div>'

    def _fade(self, faded: bool) -> None:
        (self.picture.add_class if faded else self.picture.remove_class)("xai-faded")

    _said = 0.0

    def _report(self, passes: float) -> None:
        """What is being computed, how far it is, and since when."""
        now = time.monotonic()
        if now - self._said < REFRESH or self._watch is None:
            return
        self._said, done = now, passes - self._since
        self.bar.max = max(self.bar.max, done)
        self.bar.value = done
        at = f"{self._stage}: {done:.0f} of at most {self.bar.max:.0f} passes"
        if self._watch.error is not None:
            at += ", error {:.2g} (goal {:.2g})".format(*self._watch.error)
        self.at.value = f"{at}, {now - self._began:.0f} s"


def on_screen(message: str) -> str:
    """A message with the labels on the screen in place of the names in a study file.

    >>> on_screen("text 'own': target contrast needs a `contrast` text beside its answer; add one")
    'target contrast needs a text in “Instead of” beside its answer; add one'
    >>> on_screen("answer: ' ': it is empty")
    "Answer: ' ': it is empty"
    """
    message = re.sub(rf"^text '{views.OWN}': ", "", " ".join(message.split()))
    message = message.replace("a `contrast` text", f"a text in “{LABELS['contrast']}”")
    message = message.replace("answer and contrast are both", f"{LABELS['answer']} and “{LABELS['contrast']}” are both")
    return re.sub(r"^(text|answer|contrast)(?=: )", lambda found: LABELS[found[0]], message)


def _passes(passes: float) -> str:
    return "1 pass" if round(passes) == 1 else f"{passes:.0f} passes"


def _quoted(text: str) -> str:
    return f"“{html.escape(visible(text))}”"


def _problem(text: str) -> str:
    return f'<b style="color: #b2182b">{html.escape(visible(text))}</b>'
