"""The five notebooks through the real runner on the real model, and the committed ones as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from xai_utils.files import ROOT
from xai_utils.study.config import load_study
from xai_utils.study.results import read_table
from xai_utils.study.run import NOTEBOOKS

COMMITTED = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
TOLD = [path for path in COMMITTED if "01" <= path.stem[:2] <= "05"]
LINES = 9  # of a cell, imports apart
IMPORT = re.compile(r"(from [\w.]+ )?import ")
FIRST = 12  # cells before the first figure, prose among them
KEYS = ["study", "text", "model", "role"]
COLUMNS = {
    "tokenization": [*KEYS, "tokens", "words", "tokens_per_word", "characters", "truncated", "padded"],
    "attributions": [
        *KEYS,
        "target",
        "target_text",
        "method",
        "baseline",
        "sink",
        "unit",
        "position",
        "token",
        "start",
    ],
    "certificates": [*KEYS, "tolerance", "evaluations", "forwards", "delta", "relative_delta", "bound", "converged"],
    "attention_heads": [*KEYS, "layer", "head", "entropy", "sink", "diagonal", "previous", "distance"],
    "behaviour": [*KEYS, "answer", "probability", "rank", "margin", "next_text", "next_probability", "continuation"],
    "faithfulness": [*KEYS, "method", "baseline", "absence", "own", "comprehensiveness", "sufficiency", "share"],
    "agreement": [*KEYS, "target", "method_a", "method_b", "spearman", "top_k_overlap"],
}


def state(*folders: str) -> dict[Path, int]:
    """Every published file and when it was last written."""
    return {path: path.stat().st_mtime_ns for folder in folders for path in (ROOT / folder).rglob("*")}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small study, run from a cold cache, and two of its notebooks again: where its results lie, and what is kept
    after each run."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "xai_utils", "run", "--study", "studies/small.yaml"]
    published = state("notebooks", "figs", "report")
    kept = []
    for more in ([], ["--only", "02,04"]):
        done = subprocess.run(
            command + more, cwd=ROOT, env=os.environ | {"XAI_RUNS": str(runs)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        kept.append({path: path.stat().st_mtime_ns for path in runs.rglob("cache/**/*") if path.is_file()})
    assert state("notebooks", "figs", "report") == published  # another study writes under runs/ alone
    return runs, kept


@pytest.fixture
def table(small, monkeypatch):
    monkeypatch.setenv("XAI_RUNS", str(small[0]))
    return lambda name: read_table(load_study("studies/small.yaml"), name)


def test_all_five_notebooks_run(small):
    names = [path.name for path in sorted((small[0] / "small" / "notebooks").glob("*.ipynb"))]
    assert [name.split("_")[0] for name in names] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("name", COLUMNS)
def test_their_tables_have_the_documented_columns(table, name):
    frame = table(name)
    assert set(COLUMNS[name]) <= set(frame.columns) and set(frame["study"]) == {"small"}
    assert set(frame["text"]) == {"capital", "capital-ru"}


def test_france_is_what_the_capital_of_france_hangs_on(table):
    frame = table("word_scores").query(
        "text == 'capital' and model == 'base' and method == 'ablation' and target == 'logprob' and baseline == 'mean'"
    )
    ranked = frame.dropna(subset="score").assign(size=lambda f: f["score"].abs()).sort_values("size", ascending=False)
    assert "France" in [word.strip() for word in ranked["word"].head(2)]


def test_the_real_model_knows_the_capital(smollm2):
    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    for text in (ids, torch.cat([torch.tensor([[smollm2.document_start]]), ids], 1)):
        assert smollm2.tokenizer.decode(smollm2.model(text).logits[0, -1].argmax()) == " Paris"


def test_a_second_run_computes_nothing_that_is_kept(small):
    first, second = small[1]
    assert first == second and len(first) > 20


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_no_two_figures_can_have_one_name(path):
    """A label stands behind the only dot: labels such as base and texts_base would else meet in 02_ig_texts_base."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    names = re.findall(r"\"([^\"]*)\.png\"|\bshow\(\s*f?\"([^\"]*)\"", "\n".join(cells))
    names = [saved or shown for saved, shown in names]
    kinds = [name.split(".")[0] for name in names]
    assert all(re.fullmatch(r"[0-9]{2}_[a-z_{}]+(\.\{[^{}]+\})?", name) for name in names), names
    assert names and len(set(kinds)) == len(kinds)


def pictures(cell) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", TOLD, ids=lambda path: path.stem)
def test_a_notebook_argues(path):
    """Short cells, a figure soon, a sentence below each figure, and no more tables than figures."""
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    for cell in code:
        assert len([line for line in cell.source.splitlines() if line and not IMPORT.match(line)]) <= LINES, cell.source
    assert any(map(pictures, cells[:FIRST])), "a figure within the first cells"
    for cell in code:
        shown = re.findall(r"^ *show\(", cell.source, re.MULTILINE)
        sentences = [output for output in cell.outputs if "text/markdown" in output.get("data", {})]
        assert not shown or len(sentences) == pictures(cell) >= 1, cell.source
    tables = sum("text/html" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert tables <= sum(map(pictures, code))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_notebook_is_fit_to_be_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert "widgets" not in notebook.metadata and path.stat().st_size <= 1 << 20
    assert not [cell for cell in code if re.search(r"^\s*def ", cell.source, re.MULTILINE)]
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1 and "injected-parameters" not in tags
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            shown = output.get("text", "") + str({k: v for k, v in output.get("data", {}).items() if k != "image/png"})
            assert not re.search(r"(/home|/root|/tmp|/work|/Users)/|[A-Z]:\\\\", shown)
