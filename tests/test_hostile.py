"""Hostile texts through the real runner, on tiny models: the report and every page stay what they are.

One study holds markup of every kind that meets a page, scripts of the world, a text without a word, one of one letter
and one of thousands of words; a run and its report are made once, and what came out is parsed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from report.clean import TAGS
from tests.kills import left
from tests.tiny import save_tiny
from xai_utils.files import ROOT

MARKS = "<script>alert(1)</script> {{ 7*191 }} | **b** $x^{2$ \u202eend"
TEXTS = {
    "marks": MARKS,
    "html": "<img src=x onerror=alert(1)></td></table><h1>&amp;&#60; </p><style>*{color:red}</style>",
    "braces": "{% raw %} ${7*191} {{< hugo >}} #{7*191} <%= 7*191 %> {# gone #} %s %(a)d {0}",
    "markdown": "# Head\n[a](javascript:x) ![b](http://example.org/x.png) `c` ~~~\n> d\n1. $$ \\frac \\",
    "table": "a | b\n|---|---|\n| c | d \\| e |\n\n<!-- f",
    "scripts": "中文 한국어 ไทย हिन्दी עולם مرحبا ქართ አማ 👩‍👧🏳️‍🌈 𝔘 " + unicodedata.normalize("NFD", "Йё각") + "ﬁÅ",
    "wordless": "?! ... --- ,,,",
    "letter": "a",
    "long": "word " * 3000,
}
EVALUATED = str(7 * 191)
PAGES = ("index", "appendix", *(f"0{number}" for number in range(1, 6)))


class Page(HTMLParser):
    """Tags with attributes, the text that is seen, and the width of each row of each table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.tables: list[list[list[tuple[int, int]]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attributes}
        self.tags.append((tag, own))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append((int(own.get("colspan", 1)), int(own.get("rowspan", 1))))

    def handle_data(self, text: str) -> None:
        self.text += text

    def widths(self) -> list[set[int]]:
        """How many columns the rows of each table have, counting cells that reach down from above."""
        found = []
        for table in self.tables:
            wide = [sum(across for across, _ in row) for row in table]
            for place, row in enumerate(table):
                for across, down in row:
                    for below in range(place + 1, min(place + down, len(table))):
                        wide[below] += across
            found.append(set(wide))
        return found


def reported(home: Path) -> str:
    """What the command says that writes the report."""
    done = subprocess.run(
        [sys.executable, "-m", "xai_utils", "report", "--study", "hostile.yaml"],
        cwd=home,
        env=os.environ | {"XAI_RUNS": str(home / "runs"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder of the study's results."""
    home = tmp_path_factory.mktemp("hostile")
    models = [
        {"label": label, "role": role, "model": save_tiny(home / label, seed=seed).name}
        for seed, (label, role) in enumerate((("base", "base"), ("twin", "adapted")))
    ]
    texts = [{"id": name, "text": text, "answer": " Paris.", "group": MARKS} for name, text in TEXTS.items()]
    texts[0] |= {"answer": " <b>{{ 7*191 }}</b> |", "contrast": " **$x$**", "rewordings": [MARKS[20:]]}
    few = {"budget": 20, "draws": 3, "steps": 2, "continuation": 1, "tolerance": 0.5, "max_tokens": 60}
    study = {"models": models, "texts": texts, "methods": ["ablation"], "absences": ["mean"], **few}
    (home / "hostile.yaml").write_text(json.dumps(study, ensure_ascii=False), encoding="utf-8")
    assert "kept" not in reported(home)
    return home / "runs" / "hostile"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_it_is_whatever_a_text_says(made, name):
    (path,) = (made / "report/site").glob(f"{name}*.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.tags} <= TAGS | {"html", "head", "meta", "title", "style", "body", "nav", "main"}
    for tag, own in page.tags:
        assert not [key for key in own if key.startswith("on")], own
        assert not re.search(r"javascript:|url\(", own.get("href", "") + own.get("style", "")), own
        assert not own.get("src", "").startswith("http"), own
        assert tag != "img" or own["alt"].strip(), own
    assert EVALUATED not in page.text
    assert name[0] == "0" or not re.search("[\u202a-\u202e\u2066-\u2069]", page.text)  # a cell's output is a block
    assert page.tables and all(len(widths) == 1 for widths in page.widths())


def test_the_texts_are_told_as_they_were_written(made):
    page = Page((made / "report/site/appendix.html").read_text(encoding="utf-8"))
    for part in ("<script>alert(1)</script> {{ 7*191 }}", "[a](javascript:x)", "| c | d", "‹U+202E›end", "中文 한국어"):
        assert part in page.text, part
    for path in (made / "report/blog").glob("*.md"):
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"\{\{|\{%|<script|<img", text), path.name
        assert "{{" not in path.read_text(encoding="utf-8"), path.name  # Hugo looks into code too


def test_what_cannot_be_compared_is_left_out_and_said(made):
    notebook = nbformat.read(made / "notebooks/05_comparison.ipynb", as_version=4)
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert re.search(r"^long: left out, since it loses \d+ tokens under base; raise max_tokens\.$", said, re.MULTILINE)
    why = (made / "report/tables/not_comparable.csv").read_text(encoding="utf-8")
    assert "long,cut off under base" in why and "letter,cut" not in why


def test_what_was_not_asked_for_is_not_shown(made):
    assert (made / "figs/04_methods.png").exists() and not (made / "figs/04_noise.png").exists()
    assert "sensitivity" not in Page((made / "report/site/index.html").read_text(encoding="utf-8")).text


def test_nobody_s_machine_and_no_progress_is_in_a_notebook(made):
    for path in (made / "notebooks").glob("*.ipynb"):
        raw = path.read_text(encoding="utf-8")
        raw = raw.replace(str(made.parents[1] / "hostile.yaml"), "")  # the parameter that names the study
        assert str(made.parents[1]) not in raw and "it/s]" not in raw and "UserWarning" not in raw, path.name


def test_the_next_report_executes_nothing_and_ends_in_the_same_bytes(made):
    before = left(made)
    assert "hostile: kept as they are, for nothing that they read has changed: 01, 02, 03, 04, 05" in reported(
        made.parents[1]
    )
    assert left(made) == before and "report/site/05_comparison.html" in before
