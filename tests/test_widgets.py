"""Explorers without a browser: controls start a computation, its view is shown, errors and stopping are a line."""

import re
import threading

import ipywidgets
import pytest
import torch
from matplotlib.figure import Figure

from xai_utils.errors import UserError
from xai_utils.text.words import visible
from xai_utils.widgets import explorers, panel, views
from xai_utils.widgets.panel import Explorer, Question, Stage
from xai_utils.widgets.views import View

TEXT = "The dog ran after the cat"


def joined(explorer):
    explorer.thread.join(120)
    assert not explorer.thread.is_alive()
    return explorer.picture.value


def run(explorer):
    explorer.start()
    return joined(explorer)


def values(explorer):
    return explorer.question.values | {name: control.value for name, control in explorer.controls.items()}


def faded(explorer):
    return "xai-faded" in explorer.picture._dom_classes


@pytest.fixture
def question(twins):
    return Question(twins)


@pytest.mark.parametrize("name", ["attribution", "influence", "comparison"])
def test_a_quick_picture_comes_first_and_the_views_own_last(twins, question, name):
    explorer = explorers.EXPLORERS[name](question)
    assert explorer.thread is None  # nothing is computed before it is shown
    question.text.value, question.answer.value = f"A word on {name}", " Paris."  # results are kept: each its own text
    pictures = []
    explorer.picture.observe(lambda change: pictures.append(change["new"]), "value")
    last = run(explorer)
    compute = views.comparison if name == "comparison" else views.scores
    assert last == compute(twins, **values(explorer)).html
    case = values(explorer) | {"method": "cp_lrp", "tests": False} | ({"parts": False} if name == "comparison" else {})
    assert pictures[0] == compute(twins, **case).html
    assert not faded(explorer) and explorer.stop.disabled and explorer.at.value == "Idle"
    assert "passes through a model" in explorer.line.value
    assert run(explorer) == last and "remembered" in explorer.line.value


def test_a_new_text_empties_answer_and_contrast_and_offers_the_models_own(twins, question):
    called = []
    question.contrast.value = " London."
    question.changed = lambda: called.append(question.values)
    question.text.value = TEXT
    assert called == [{"text": TEXT, "answer": "", "contrast": ""}]  # once, for all three
    question.look()
    own = views.goes_on(twins, TEXT)
    for row in own.itertuples():
        assert f"<b>{row.model}</b>: “" in question.said.value and f"{row.next_probability:.2f}" in question.said.value
    offers = [button for button in question.offers.children if isinstance(button, ipywidgets.Button)]
    assert offers and len({button.description for button in offers}) == len(offers)
    offers[0].click()
    taken = question.answer.value
    assert f"“{visible(taken)}”" == offers[0].description and called[-1]["answer"] == taken
    assert any(taken == row.next_text or row.continuation.startswith(taken) for row in own.itertuples())
    question.look()
    assert f"{views.goes_on(twins, TEXT, question.answer.value)['probability'][1]:.2g} (rank" in question.said.value
    question.text.value = "The cat sat"
    assert not question.offers.children and not question.said.value
    offers[0].click()
    assert question.answer.value == ""  # an offer for another text


def test_what_is_explained_belongs_to_the_text(twins, question):
    """The answer of the study's text used to be explained for a text that was typed."""
    explorer = explorers.attribution(question)
    run(explorer)
    assert "Paris" in explorer.picture.value
    question.text.value = TEXT
    assert "Paris" not in run(explorer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer": ""}, "Answer: it is empty, and two models are compared on one answer"),
        ({"other": "base"}, "both models are &#x27;base&#x27;"),
        ({"target": "contrast"}, "target contrast needs a text in “Instead of”"),
        ({"text": " "}, "Text: &#x27; &#x27;: it is empty; write at least one visible character"),
    ],
)
def test_a_refusal_is_a_line_in_the_words_on_screen_and_computes_nothing(
    twins, question, monkeypatch, settings, message
):
    explorer = explorers.comparison(question)
    before = run(explorer)
    monkeypatch.setattr(views.Asked, "explained", lambda *_: pytest.fail("computed"))
    for name, value in settings.items():
        monkeypatch.setattr(explorer, "start", lambda _=None: None)
        control = explorer.controls.get(name) or getattr(question, name)
        question.changed = lambda: None
        control.value = value
    monkeypatch.undo()
    monkeypatch.setattr(views.Asked, "explained", lambda *_: pytest.fail("computed"))
    assert run(explorer) == before and faded(explorer)  # the last picture stays
    assert message in explorer.line.value


def test_heads_are_a_map_and_a_list_that_agree(twins, question):
    explorer = explorers.attention(question)
    (box,) = explorer.children[-1].children[1:]
    heads = box.children[-1]
    first = run(explorer)
    found = views.interest(twins, text=question.text.value, model="base")
    best = divmod(int(found.argmax()), found.shape[1])
    assert explorer.controls["head"].value == heads.value == best and len(heads.options) == found.size
    case = {"text": question.text.value, "model": "base"}
    assert first == views.head(twins, **case, layer=best[0], head=best[1]).html
    other = (1 - best[0], best[1])
    heads.value = other  # a click on the map
    assert joined(explorer) == views.head(twins, **case, layer=other[0], head=other[1]).html
    assert explorer.controls["head"].value == other
    explorer.controls["head"].value = best
    assert joined(explorer) == first and heads.value == best
    seen = {first}
    for name, value in [("by", "word"), ("apart", True), ("weighted", True), ("model", "twin")]:
        explorer.controls[name].value = value
        seen.add(joined(explorer))
    assert len(seen) == 5


def test_every_control_has_a_label(question):
    for make in explorers.EXPLORERS.values():
        explorer = make(question)
        own = (question.text, question.answer, question.contrast, explorer.explain, explorer.stop)
        for control in (*explorer.controls.values(), *own):
            assert control.description
            if "description_width" in control.style.keys:
                assert control.style.description_width == "initial"


def test_settings_that_a_method_lacks_are_switched_off(question, monkeypatch):
    monkeypatch.setattr(Explorer, "start", lambda self, _=None: None)
    controls = explorers.attribution(question).controls
    off = {}
    for method in ("ablation", "sensitivity", "fixed_steps", "panel_shapley"):
        controls["method"].value = method
        off[method] = [name for name, control in controls.items() if control.disabled]
    assert off["ablation"] == ["sigma"] and off["sensitivity"] == ["baseline"]
    assert off["fixed_steps"] == off["panel_shapley"] == ["baseline", "sigma", "keep_sink"]  # the original's are fixed


def made(question, compute):
    """An explorer of one stage."""
    return Explorer(question, {}, lambda text, **_: [Stage("work", 10, lambda: compute(text))])


@pytest.mark.parametrize(
    ("error", "line"),
    [(UserError("<script>x</script>"), "&lt;script&gt;"), (ZeroDivisionError("zero"), "ZeroDivision")],
)
def test_an_error_is_a_line_and_the_last_picture_stays_faded(question, error, line):
    def compute(text):
        if text == TEXT:
            raise error
        return View("shown", "line", "alt", Figure)

    explorer = made(question, compute)
    assert run(explorer) == "shown"
    question.text.value = TEXT
    assert run(explorer) == "shown" and faded(explorer)
    assert line in explorer.line.value and "<script>" not in explorer.line.value


@pytest.fixture
def endless(twins, question):
    """An explorer that passes its model through again and again, and an event that tells of its first pass."""
    model, running = twins.models["base"].model, threading.Event()

    def compute(text):
        while text == TEXT:
            model(input_ids=torch.ones(1, 3, dtype=torch.long))
            running.set()
        return View(text, text, text, Figure)

    explorer = made(question, compute)
    before = run(explorer)
    question.text.value = TEXT
    explorer.start()
    assert running.wait(60)
    yield explorer, before
    explorer.cancel()


def test_stop_stops_and_the_last_picture_stays_faded(endless):
    explorer, before = endless
    assert not explorer.stop.disabled
    explorer.stop.click()
    assert joined(explorer) == before and faded(explorer)
    assert re.search(r"Stopped</b> after [1-9]\d* pass", explorer.line.value)
    assert explorer.stop.disabled


def test_a_change_takes_the_place_of_what_runs(endless):
    explorer, _ = endless
    first = explorer.thread
    explorer.question.changed = explorer.start
    explorer.question.text.value = "short"
    assert joined(explorer) == "short"
    assert not first.is_alive() and not faded(explorer)


def test_progress_says_what_runs_how_far_it_is_and_since_when(endless, monkeypatch):
    monkeypatch.setattr(panel, "REFRESH", 0.0)
    explorer, _ = endless
    moved = threading.Event()
    explorer.bar.observe(lambda change: change["new"] > 12 and moved.set(), "value")
    explorer._watch.error = (0.25, 0.01)
    assert moved.wait(60)
    told = explorer.at.value
    assert re.fullmatch(r"work: \d+ of at most \d+ passes, error 0.25 \(goal 0.01\), \d+ s", told)
    assert explorer.bar.max > 12  # more than was thought: the bar grows


def test_methods_tell_their_error(twins, question):
    seen = []
    question.text.value = "A bird sang in the old tree"  # one that no other test has asked about: results are kept
    explorer = explorers.attribution(question)
    explorer.quiet = True
    explorer.controls["method"].value = "integrated_gradients"
    explorer.controls["keep_sink"].value = False
    explorer._report = lambda passes: seen.append(explorer._watch.error)
    run(explorer)
    errors = [error for error in seen if error]
    assert errors and errors[-1][1] == twins.study.tolerance


def test_headless_runs_build_no_widget(twins, monkeypatch):
    built = []
    monkeypatch.setattr(ipywidgets.Widget, "open", lambda self: built.append(self))
    monkeypatch.setenv("XAI_HEADLESS", "1")
    explorers.explore(twins, "attention", "comparison")
    assert built == []
    monkeypatch.delenv("XAI_HEADLESS")
    monkeypatch.setattr(explorers, "display", lambda *shown: None)
    monkeypatch.setattr(Explorer, "start", lambda self, _=None: None)
    explorers.explore(twins, "attention")
    assert built


def test_a_tab_starts_when_it_is_seen_and_what_is_asked_has_changed(twins, monkeypatch):
    shown, started = [], []

    def start(self, _=None):
        self.stale = False
        started.append(self)

    monkeypatch.setattr(explorers, "display", lambda script, widget: shown.append(widget))
    monkeypatch.setattr(Explorer, "start", start)
    monkeypatch.delenv("XAI_HEADLESS", raising=False)
    explorers.explore(twins, "attribution", "attention")
    _, question, tabs = shown[0].children
    assert tabs.titles == ("Attribution", "Attention")
    first, second = tabs.children
    assert started == [first]
    tabs.selected_index = 1
    assert started == [first, second]
    tabs.selected_index = 0
    assert started == [first, second]  # nothing has changed
    question.text.value = TEXT
    tabs.selected_index = 1
    assert started == [first, second, first, second]
