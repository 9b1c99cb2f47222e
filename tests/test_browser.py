"""The explorers as a person uses them: a notebook in JupyterLab, in a browser, by keyboard alone.

What is on the page is compared with the same view computed here, from the same study, without a widget. The models are
tiny and random; the notebook is the repository's own, with another study in its parameter cell.
"""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from playwright.sync_api import expect

from tests.tiny import save_tiny
from xai_utils.files import ROOT
from xai_utils.study.config import load_study
from xai_utils.study.explainer import Explainer
from xai_utils.text.words import visible
from xai_utils.widgets import views

PATIENCE = 30_000  # milliseconds until a condition that must come true is given up
TEXT = "There are eight planets"
MARKUP = "<b>cat</b> costs $x$ {{ y }}"
LONG = "The cat sat on the mat and the dog ran after the cat in the garden of the house"
EXPLORER = ".xai-explorer:not(.xai-question):visible"
PICTURE = f"{EXPLORER} .xai-picture:not(.xai-faded)"


@pytest.fixture(scope="module", autouse=True)
def patience():
    expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two tiny models. Its budget allows Shapley values that take minutes: that is what Stop stops."""
    folder = tmp_path_factory.mktemp("study")
    models = [("base", "base", 0), ("twin", "adapted", 1)]
    content = {
        "models": [
            {"label": label, "role": role, "model": str(save_tiny(folder / label, "llama", seed))}
            for label, role, seed in models
        ],
        "texts": [
            {
                "id": "capital",
                "text": "The capital of France is",
                "answer": " Paris.",
                "rewordings": ["The capital city of France is"],
            },
            {"id": "planets", "text": "Сколько планет в Солнечной системе?", "answer": " Восемь."},
        ],
        "steps": 10,
        "draws": 4,
        "budget": 2 ** len(LONG.split()),
        "continuation": 1,
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def book(study, tmp_path_factory):
    """The same study in this process, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield Explainer(load_study(study))


@pytest.fixture(scope="module")
def lab(browser, study, tmp_path_factory):
    """A JupyterLab with copies of the notebooks, its files in a folder of its own: address and token."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for source in sorted((ROOT / "notebooks").glob("06_*.ipynb")):
        _copy(source, folder / "notebooks" / source.name, study)
    announcements = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (folder / "config" / "labconfig").mkdir(parents=True)
    (folder / "config" / "labconfig" / "page_config.json").write_text(json.dumps(announcements))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root"]
    command += [f"--ServerApp.root_dir={folder / 'notebooks'}", "--LabApp.extension_manager=readonly"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=_environment(folder), cwd=folder, stdout=log, stderr=log)
        try:
            yield _address(folder / "runtime", server, folder / "log")
        finally:
            server.terminate()
            server.wait(30)


def _environment(folder: Path) -> dict[str, str]:
    """Everything that Jupyter and the kernels write goes to `folder`."""
    own = {f"JUPYTER_{kind.upper()}_DIR": str(folder / kind) for kind in ("config", "data", "runtime")}
    own |= {f"JUPYTERLAB_{kind.upper()}_DIR": str(folder / kind) for kind in ("workspaces", "settings")}
    own |= {"XAI_RUNS": str(folder / "runs"), "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    own |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as here, so that sums are rounded alike
    return {name: value for name, value in os.environ.items() if name not in ("XAI_HEADLESS", "MPLBACKEND")} | own


def _copy(source: Path, copy: Path, study: Path) -> None:
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            lines = cell.source.splitlines()
            cell.source = "\n".join(f"study = {str(study)!r}" if line.startswith("study =") else line for line in lines)
    nbformat.write(notebook, copy)


def _address(runtime: Path, server: subprocess.Popen, log: Path) -> tuple[str, str]:
    """What the server says of itself once it listens."""
    for _ in range(PATIENCE // 200):
        assert server.poll() is None, f"JupyterLab ended: {log.read_text()[-2000:]}"
        for file in runtime.glob("jpserver-*.json"):
            about = json.loads(file.read_text() or "{}")
            if about:
                return about["url"], about["token"]
        time.sleep(0.2)
    pytest.fail(f"JupyterLab does not listen: {log.read_text()[-2000:]}")


@contextmanager
def opened(browser, lab, name):
    """A notebook on a small screen, all its cells run."""
    url, token = lab
    page = browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US").new_page()
    page.set_default_timeout(PATIENCE)
    try:
        page.goto(f"{url}lab/tree/{name}?token={token}&reset")
        page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
        page.get_by_text("| Idle").wait_for()  # the status bar; before that a click would ask for a kernel
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.locator(EXPLORER).wait_for()
        yield page
    finally:
        page.context.close()


def words(html):
    """What a reader sees of HTML, without spaces."""
    return re.sub(r"\s", "", re.sub(r"<details>.*?</details>|<[^>]*>", "", html, flags=re.DOTALL))


def sees(page, view):
    """The visible explorer comes to show this view, whole on the screen's width."""
    shown = page.locator(PICTURE)
    line = page.locator(EXPLORER).get_by_role("status")
    expect(line).to_contain_text(view.line)
    expect(line).to_contain_text(re.compile(r"\((remembered|\d+ pass)"))  # the last picture, not an early one
    if "<img" in view.html:
        expect(shown.locator("img")).to_have_attribute("alt", view.alt)
        assert shown.locator("img").evaluate("image => image.complete && image.naturalWidth > 200")
    else:
        there = unescape(words(shown.inner_html()))
        assert there.startswith(unescape(words(view.html)))
    box = shown.bounding_box()
    assert box["x"] > 0 and box["x"] + box["width"] <= 1280
    assert "&lt;" not in shown.inner_text() and "<td" not in shown.inner_text()


def tab_to(page, role, name):
    """Press Tab until a control has the focus."""
    goal = page.locator(".xai-explorer:visible").get_by_role(role, name=name, exact=True).first.element_handle()
    for _ in range(60):
        if goal.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"the Tab key does not reach {name}")


def write(page, label, text):
    """Fill a field from the start of the page on."""
    page.locator(".xai-question").get_by_label("Text", exact=True).focus()
    tab_to(page, "textbox", label)
    page.keyboard.press("Control+a")
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def choose(page, label, option):
    """Choose in a list by the letters of an option."""
    tab_to(page, "combobox", label)
    page.keyboard.type(option, delay=20)
    page.keyboard.press("Enter")


def go_to_tab(page, name):
    page.locator("[role=tab][aria-selected=true]", has_text=re.compile("^(Attribution|Attention|Comparison)$")).focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        if page.evaluate("document.activeElement.textContent").strip() == name:
            break
    page.keyboard.press("Enter")


def test_a_person_with_a_keyboard_alone(browser, lab, book):
    with opened(browser, lab, "06_explorer.ipynb") as page:
        first = book.study.texts[0]
        setting = {"method": "panel_shapley", "model": "base"}
        sees(page, views.scores(book, text=first.text, answer=first.answer, **setting))

        write(page, "Text", TEXT)  # the answer of the old text goes with it
        question = page.locator(".xai-question")
        expect(question.get_by_label("Answer", exact=True)).to_have_value("")
        own = views.goes_on(book, TEXT).set_index("model")["next_text"]
        sees(page, views.scores(book, text=TEXT, **setting))
        for label in ("base", "twin"):
            expect(question.get_by_role("status")).to_contain_text(f"{label}: “{visible(own[label])}”")
        tab_to(page, "button", f"“{visible(own['twin'])}”")
        page.keyboard.press("Enter")
        expect(question.get_by_label("Answer", exact=True)).to_have_value(own["twin"])
        case = {"text": TEXT, "answer": own["twin"]}
        sees(page, views.scores(book, **case, **setting))

        a_bad_text_is_one_line(page)
        write(page, "Text", MARKUP)
        sees(page, views.scores(book, text=MARKUP, **setting))
        stop_stops(page)

        write(page, "Text", TEXT)
        go_to_tab(page, "Comparison")
        line = page.locator(EXPLORER).get_by_role("status")
        expect(line).to_contain_text("Answer: it is empty, and two models are compared on one answer")
        write(page, "Answer", own["twin"])
        sees(page, views.comparison(book, **case, base="base", other="twin", method="panel_shapley"))

        go_to_tab(page, "Attention")
        found = views.interest(book, text=TEXT, model="base")
        best = divmod(int(found.argmax()), found.shape[1])
        sees(page, views.head(book, text=TEXT, model="base", layer=best[0], head=best[1]))
        tab_to(page, "combobox", "Head")
        page.keyboard.press("ArrowDown")
        second = divmod(int(found.ravel().argsort()[::-1][1]), found.shape[1])
        sees(page, views.head(book, text=TEXT, model="base", layer=second[0], head=second[1]))
        page.locator(f"{EXPLORER} .xai-heads button[title^='layer 1, head 2']").click()  # or with a mouse
        sees(page, views.head(book, text=TEXT, model="base", layer=1, head=2))


def a_bad_text_is_one_line(page):
    line = page.locator(EXPLORER).get_by_role("status")
    write(page, "Text", "  ")
    expect(line).to_have_text("Text: '  ': it is empty; write at least one visible character")
    expect(page.locator(f"{EXPLORER} .xai-picture.xai-faded")).to_have_count(1)  # the last picture stays


def stop_stops(page):
    """Shapley values of a long text would take minutes; its first picture is there at once."""
    write(page, "Text", LONG)
    line = page.locator(EXPLORER).get_by_role("status")
    expect(line).to_contain_text("More is being computed")
    expect(page.locator(f"{EXPLORER}")).to_contain_text(re.compile(r"panel Shapley values: \d+ of at most \d+ passes"))
    tab_to(page, "button", "Stop")
    page.keyboard.press("Enter")
    expect(line).to_contain_text(re.compile(r"Stopped after \d+ passes"))
    expect(page.locator(f"{EXPLORER} .xai-picture.xai-faded")).to_contain_text("CP-LRP")
    expect(page.locator(EXPLORER).get_by_role("button", name="Stop")).to_be_disabled()
