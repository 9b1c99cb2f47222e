"""Explorers without a browser: controls start a computation, its view is shown, errors and stopping are a line."""

import base64
import re
import threading

import ipywidgets
import pytest
import torch
from matplotlib.figure import Figure

from xai_utils.errors import UserError
from xai_utils.widgets import explorers, views
from xai_utils.widgets.views import View


def shown(explorer):
    explorer.thread.join(120)
    assert not explorer.thread.is_alive()
    found = re.search(r'alt="([^"]*)" src="data:image/png;base64,([^"]*)"', explorer.picture.value)
    return base64.b64decode(found[2]) if found else None


def values(explorer):
    return {name: control.value for name, control in explorer.controls.items()}


@pytest.mark.parametrize("name", list(explorers.EXPLORERS))
def test_the_picture_is_the_views(twins, name):
    explorer = explorers.EXPLORERS[name](twins)
    assert explorer.thread is None  # nothing is computed before it is shown
    explorer.start()
    compute = {"attention": views.head, "comparison": views.comparison}.get(name, views.scores)
    before = shown(explorer)
    assert before == compute(twins, **values(explorer)).png()
    explorer.controls["text"].value = "The dog ran after the cat"
    after = shown(explorer)
    assert after == compute(twins, **values(explorer)).png()
    assert after != before
    assert explorer.stop.disabled
    assert explorer.bar.description == "Idle"


def test_layer_head_and_rows_change_the_picture(twins):
    explorer = explorers.attention(twins)
    seen = set()
    for name, value in [("layer", 1), ("head", 2), ("by", "word"), ("apart", True), ("weighted", True)]:
        explorer.controls[name].value = value
        picture = shown(explorer)
        assert picture == views.head(twins, **values(explorer)).png()
        seen.add(picture)
    assert len(seen) == 5


def test_every_control_has_a_label(twins):
    for make in explorers.EXPLORERS.values():
        explorer = make(twins)
        for control in (*explorer.controls.values(), explorer.explain, explorer.stop):
            assert control.description
            if "description_width" in control.style.keys:
                assert control.style.description_width == "initial"


def test_settings_that_a_method_lacks_are_switched_off(twins, monkeypatch):
    monkeypatch.setattr(explorers.Explorer, "start", lambda self, _=None: None)
    controls = explorers.influence(twins).controls
    off = {}
    for method in ("ablation", "sensitivity", "ablation"):
        controls["method"].value = method
        off[method] = [name for name, control in controls.items() if control.disabled]
    assert off == {"ablation": ["sigma"], "sensitivity": ["baseline"]}
    controls = explorers.attribution(twins).controls
    controls["method"].value = "fixed_steps"
    assert controls["baseline"].disabled  # the original's setting is fixed


def test_a_user_error_is_a_line_and_takes_the_picture_away(twins):
    explorer = explorers.influence(twins)
    explorer.start()
    assert shown(explorer)
    explorer.controls["text"].value = "  "
    assert shown(explorer) is None
    assert "text: it is empty; write at least one visible character" in explorer.line.value
    explorer.controls["text"].value = "The dog"
    assert shown(explorer)


def test_text_is_escaped(twins):
    def refuse(**_):
        raise UserError("<script>alert(1)</script>")

    explorer = explorers.Explorer({"text": ipywidgets.Text(description="Text")}, refuse, twins, 1)
    explorer.start()
    assert shown(explorer) is None
    assert "&lt;script&gt;" in explorer.line.value
    assert "<script>" not in explorer.line.value


def test_an_unexpected_error_is_told_too(twins):
    def fail(**_):
        raise ZeroDivisionError("by nothing")

    explorer = explorers.Explorer({}, fail, twins, 1)
    explorer.start()
    assert shown(explorer) is None
    assert "ZeroDivisionError: by nothing" in explorer.line.value


@pytest.fixture
def endless(twins):
    """An explorer that passes its model through again and again, and an event that tells of its first pass."""
    model, running = twins.models["base"].model, threading.Event()

    def compute(text):
        while text == "endless":
            model(input_ids=torch.ones(1, 3, dtype=torch.long))
            running.set()
        return View(Figure(), text, text)

    control = ipywidgets.Text("endless", description="Text", continuous_update=False)
    explorer = explorers.Explorer({"text": control}, compute, twins, 10)
    yield explorer, running
    explorer.cancel()


def test_stop_stops(endless):
    explorer, running = endless
    explorer.start()
    assert running.wait(60)
    assert not explorer.stop.disabled
    assert explorer.bar.description == "Computing"
    explorer.stop.click()
    assert shown(explorer) is None
    assert re.search(r"Stopped</b> after [1-9]\d* pass", explorer.line.value)
    assert explorer.stop.disabled


def test_a_change_takes_the_place_of_what_runs(endless):
    explorer, running = endless
    explorer.start()
    first = explorer.thread
    assert running.wait(60)
    explorer.controls["text"].value = "short"
    assert shown(explorer)
    assert not first.is_alive()
    assert "short" in explorer.line.value


def test_progress_is_reported(endless, monkeypatch):
    monkeypatch.setattr(explorers, "REFRESH", 0.0)
    explorer, running = endless
    moved = threading.Event()
    explorer.bar.observe(lambda change: change["new"] > 12 and moved.set(), "value")
    explorer.start()
    assert moved.wait(60)
    assert explorer.bar.max > 12  # more than was thought: the bar grows
    explorer.stop.click()
    shown(explorer)


def test_headless_runs_build_no_widget(twins, monkeypatch):
    built = []
    monkeypatch.setattr(ipywidgets.Widget, "open", lambda self: built.append(self))
    monkeypatch.setenv("XAI_HEADLESS", "1")
    explorers.explore(twins, "attention", "comparison")
    assert built == []
    monkeypatch.delenv("XAI_HEADLESS")
    monkeypatch.setattr(explorers, "display", lambda *shown: None)
    monkeypatch.setattr(explorers.Explorer, "start", lambda self, _=None: None)
    explorers.explore(twins, "attention")
    assert built


def test_a_tab_starts_when_it_is_first_seen(twins, monkeypatch):
    shown_widgets, started = [], []
    monkeypatch.setattr(explorers, "display", lambda script, widget: shown_widgets.append(widget))
    monkeypatch.setattr(explorers.Explorer, "start", lambda self, _=None: started.append(self))
    monkeypatch.delenv("XAI_HEADLESS", raising=False)
    explorers.explore(twins, "attribution", "attention")
    (tabs,) = shown_widgets
    assert tabs.titles == ("Attribution", "Attention")
    assert started == [tabs.children[0]]
    tabs.selected_index = 1
    assert started == list(tabs.children)
