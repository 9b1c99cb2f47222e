"""What the runner's line says, and when: on given times, without a kernel."""

import os
from collections import deque
from dataclasses import replace

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from xai_utils.attribution.relevance import cp_lrp
from xai_utils.models.entry import ModelEntry
from xai_utils.study import progress
from xai_utils.study.execute import headings
from xai_utils.study.progress import Line


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_time_left_is_what_similar_cases_took(clock):
    """Cheap and dear cases in turn: 2 s and 10 s, told from the first pair on."""
    items, seconds, left = [("cheap", "a"), ("dear", "a"), ("cheap", "b"), ("dear", "b")], {"cheap": 2, "dear": 10}, []
    for kind, _ in progress._told(items, "explaining", lambda message: left.append(message.get("left"))):
        clock.now += seconds[kind]
    assert left == [None, 3 * 2, 12, 10, None]


def test_only_recent_cases_count():
    took = {"a": deque([(1, 9.0)] * progress.RECENT, maxlen=progress.RECENT)}
    took["a"].extend([(1, 1.0)] * progress.RECENT)
    assert progress.expected([("a", 1)] * 3, took) == 3


def test_long_cases_come_first_and_short_ones_are_not_taken_for_them(twins, clock):
    """Russian under a model of English costs four times the tokens: by the case, the time left was thrice too long."""
    job, left = twins.job("base", "capital", cp_lrp), []
    long, short = (replace(job, cases=(replace(job.case, tokens=job.case.tokens * times),)) for times in (4, 1))
    for item in progress._told([long] * 3 + [short] * 3, "x", lambda message: left.append(message.get("left"))):
        clock.now += progress._size(item)
    assert left[1:6] == [sum(map(progress._size, ([long] * 3 + [short] * 3)[done:])) for done in range(1, 6)]


def test_the_line_changes_each_second_and_never_counts_below_nothing(clock, tmp_path):
    line = Line(7, tmp_path)
    line.notebook("02_integrated_gradients", ["starting", *["The study"] * 11])
    assert line.text() == "02_integrated_gradients (1 of 7), starting Python, 0 s since the start"
    line.next_cell()
    clock.now += 5
    assert line.text() == "02_integrated_gradients (1 of 7), cell 1 of 12: starting, 5 s since the start"
    line.told({"what": "explaining", "case": "base/planets", "done": 3, "of": 64, "left": 90.0})
    before = line.text()
    clock.now += 1
    assert line.text() != before
    assert "explaining 4 of 64: base/planets, 1 s, 1:29 min left, 6 s since the start" in line.text()
    clock.now += 500
    assert ", 0 s left, " in line.text()
    line.told({})
    assert "explaining" not in line.text()


def test_a_cell_is_told_by_its_heading():
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# 01 · A title"),
            new_code_cell("import os"),
            new_markdown_cell("## One\n\ntext # no heading"),
            new_code_cell("1"),
            new_markdown_cell("words"),
            new_code_cell("2"),
            new_code_cell(" "),
            new_markdown_cell("### Two `x`"),
            new_code_cell("3"),
        ]
    )
    assert headings(notebook) == ["starting", "One", "One", "Two `x`"]


def test_models_are_told_while_they_are_loaded(monkeypatch):
    entries = [ModelEntry(label=label, model="m") for label in ("base", "twin")]
    said = []
    assert list(progress._told(entries, "loading", said.append)) == entries
    assert [(one.get("what"), one.get("case")) for one in said] == [
        ("loading", "base"),
        ("loading", "twin"),
        (None, None),
    ]


def test_a_notice_is_written_out_and_ends_no_case(tmp_path, capsys):
    line = Line(1, tmp_path)
    line.told({"what": "explaining", "case": "base/planets", "done": 3, "of": 64, "left": 90.0})
    line.told({"notice": "another process is making model: waiting for it"})
    assert capsys.readouterr().err == "another process is making model: waiting for it\n"
    assert "explaining 4 of 64" in line.text()


def test_the_first_figure_of_a_run_is_told_once(tmp_path, capsys):
    (tmp_path / "old.png").touch()
    os.utime(tmp_path / "old.png", (1, 1))
    line = Line(1, tmp_path)
    line.first_figure()
    assert capsys.readouterr().err == ""
    for name in ("new.png", "newer.png"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (line._begun + 65, line._begun + 65 + (name == "newer.png")))
    line.first_figure()
    line.first_figure()
    assert capsys.readouterr().err == f"first figure after 1:05 min: {tmp_path / 'new.png'}\n"


def test_a_log_gets_whole_lines(tmp_path, capsys):
    with Line(2, tmp_path) as line:
        line.notebook("01_preprocess", ["starting"] * 3)
    assert capsys.readouterr().err == "01_preprocess (1 of 2), starting Python, 0 s since the start\n"
