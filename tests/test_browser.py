"""The explorers as a person uses them: notebooks in JupyterLab, in a browser, on loopback.

What is on the page is compared with the same picture computed here, from the same study, without a widget. The models
are tiny and random; the notebooks are the repository's own, with another study in their parameter cell.
"""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from playwright.sync_api import expect

from tests.tiny import save_tiny
from xai_utils.files import ROOT
from xai_utils.study.config import load_study
from xai_utils.study.explainer import Explainer
from xai_utils.widgets import views

PATIENCE = 120_000  # milliseconds until a condition that must come true is given up
TEXT = "The cat sat on the mat"
MARKUP = "<b>cat</b> costs $x$ {{ y }}"
LONG = "The cat sat on the mat and the dog ran after the cat in the garden of the house"
EXPLORER = ".xai-explorer:visible"
PICTURE = f"{EXPLORER} .xai-picture:not(.xai-faded) img"


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
    for source in sorted((ROOT / "notebooks").glob("0[36]_*.ipynb")):
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
    page = browser.new_context(viewport={"width": 1280, "height": 720}, locale="en-US").new_page()
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


def pixels(png):
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"), dtype=int)


def sees(page, view):
    """The visible explorer comes to show this view's picture: the same pixels, whole on the screen's width."""
    picture = page.locator(PICTURE)
    expect(picture).to_have_attribute("alt", view.alt)
    there, here = pixels(base64.b64decode(picture.get_attribute("src").split(",")[1])), pixels(view.png())
    assert there.shape == here.shape
    assert np.abs(there - here).max() <= 4
    expect(page.locator(EXPLORER).get_by_role("status")).to_contain_text(view.line)
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    assert box["x"] > 0
    assert box["x"] + box["width"] < 1280
    return here


def differ(first, second):
    return first.shape != second.shape or (np.abs(first - second).max(-1) > 50).mean() > 0.01


def typed(page, label, text):
    field = page.locator(EXPLORER).get_by_label(label, exact=True)
    field.fill(text)
    field.press("Enter")


def pressed(page, role, label, key, times=1):
    """A control worked by keyboard."""
    control = page.locator(EXPLORER).get_by_role(role, name=label, exact=True)
    control.focus()
    for _ in range(times):
        page.keyboard.press(key)


def chosen(page, label, option):
    page.locator(EXPLORER).get_by_label(label, exact=True).select_option(option)


def test_attention_in_its_notebook(browser, lab, book):
    with opened(browser, lab, "03_attention.ipynb") as page:
        known = {"text": book.study.texts[0].text, "model": "base", "layer": 0, "head": 0}
        first = sees(page, views.head(book, **known))
        typed(page, "Text", TEXT)
        second = sees(page, views.head(book, **known | {"text": TEXT}))
        pressed(page, "slider", "Layer", "ArrowRight")
        pressed(page, "slider", "Head", "ArrowRight", times=2)
        known = {"text": TEXT, "model": "base", "layer": 1, "head": 2}
        third = sees(page, views.head(book, **known))
        pressed(page, "checkbox", "First position set apart", "Space")
        pressed(page, "combobox", "Rows", "ArrowUp")  # words stand above tokens
        fourth = sees(page, views.head(book, **known, by="word", apart=True))
        assert differ(first, second)
        assert differ(second, third)
        assert differ(third, fourth)
        chosen(page, "Model", "twin")
        typed(page, "Text", MARKUP)
        known |= {"text": MARKUP, "model": "twin"}
        sees(page, views.head(book, **known, by="word", apart=True))


def test_all_explorers_in_their_notebook(browser, lab, book):
    case = {"text": book.study.texts[0].text, "answer": book.study.texts[0].answer}
    setting = {"model": "base", "method": "integrated_gradients", "keep_sink": True}
    setting["baseline"] = book.study.baseline
    with opened(browser, lab, "06_explorer.ipynb") as page:
        line = page.locator(EXPLORER).get_by_role("status")
        first = sees(page, views.scores(book, **case, **setting))
        assert "Certificate: converged" in line.inner_text()
        a_bad_text_is_one_line(page, line)
        typed(page, "Text", TEXT)
        case["text"] = TEXT
        assert differ(first, sees(page, views.scores(book, **case, **setting)))

        chosen(page, "Method", "ablation")
        setting["method"] = "ablation"
        sees(page, views.scores(book, **case, **setting))
        assert "passes through a model" in line.inner_text()
        chosen(page, "Rows", "tokens")
        sees(page, views.scores(book, **case, **setting, by="token"))
        assert "remembered" in line.inner_text()

        typed(page, "Text", LONG)
        case["text"] = LONG
        sees(page, views.scores(book, **case, **setting, by="token"))
        stop_stops(page, line, book.study.budget)
        chosen(page, "Method", "ablation")  # nothing still holds the explorers' lock
        sees(page, views.scores(book, **case, **setting, by="token"))

        page.get_by_role("tab", name="Attribution").focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        typed(page, "Text", MARKUP)
        chosen(page, "Method", "ablation")
        pair = {"base": "base", "other": "twin", "method": "ablation", "answer": case["answer"]}
        pair["baseline"] = book.study.baseline
        sees(page, views.comparison(book, text=MARKUP, **pair))


def a_bad_text_is_one_line(page, line):
    typed(page, "Text", "  ")
    expect(line).to_have_text("text: it is empty; write at least one visible character")
    expect(page.locator(PICTURE)).to_have_count(0)


def stop_stops(page, line, most):
    """Shapley values of a long text would take minutes."""
    chosen(page, "Method", "Shapley values")
    stop = page.locator(EXPLORER).get_by_role("button", name="Stop")
    expect(stop).to_be_enabled()
    expect(page.locator(f"{EXPLORER} .progress-bar")).not_to_have_attribute("style", re.compile("width: 0%"))
    stop.click()
    expect(line).to_contain_text("Stopped after")
    assert 0 < int(re.search(r"after (\d+) passes", line.inner_text())[1]) < most
    expect(page.locator(PICTURE)).to_have_count(0)
    expect(stop).to_be_disabled()
