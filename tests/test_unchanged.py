"""Which notebooks a report keeps: those that would give what is there."""

import dataclasses
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from xai_utils.errors import UserError
from xai_utils.files import ROOT
from xai_utils.study import results, unchanged
from xai_utils.study.config import load_study
from xai_utils.study.run import run

STUDY = 'study = "studies/default.yaml"'
WRITES = """
import re
from pathlib import Path
from xai_utils.study import results
from xai_utils.study.config import load_study
place = results.folders(load_study(study))
for path in (place.data / "scores" / "{n}.parquet", place.tables / "t{n}.csv", place.figs / "{n}_a.png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{n}")
open({log!r}, "a").write("{n} ")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Three notebooks that note that they ran, a study on a model in a folder, and runs of its own."""
    monkeypatch.setenv("XAI_RUNS", str(tmp_path / "runs"))
    (tmp_path / "notebooks").mkdir()
    for number in ("01", "02", "05"):
        write(tmp_path, number)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "mine.yaml").write_text("models: [{label: a, model: model}]\ntexts: [{id: a, text: b}]\n")
    return tmp_path


def write(place: Path, number: str, more: str = "", parameters: str = STUDY) -> None:
    first = new_code_cell(parameters)
    first.metadata["tags"] = ["parameters"]
    cells = [first, new_code_cell(WRITES.format(n=number, log=str(place / "log")) + more)]
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, place / "notebooks" / f"{number}_{'abcdef'[int(number)]}.ipynb")


def ran(place: Path, **more: object) -> str:
    """The notebooks that a report runs now."""
    (place / "log").write_text("")
    run(place / "mine.yaml", notebooks=place / "notebooks", **{"changed": True} | more)
    return (place / "log").read_text().strip()


def files(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (place / "runs").rglob("*.*") if path.is_file()}


def test_nothing_runs_again_and_all_stays(place):
    assert ran(place) == "01 02 05"
    before = files(place)
    assert ran(place) == "" and files(place) == before
    assert {Path(name).name for name in before} >= {"05.parquet", "t01.csv", "02_a.png", "05_f.ipynb"}


def test_from_a_notebook_that_changed_on_all_run(place):
    ran(place)
    write(place, "02", "1")
    assert ran(place) == "02 05"
    assert ran(place) == ""


def test_a_result_that_is_not_as_it_was_written_is_made_again(place):
    ran(place)
    next((place / "runs").rglob("05_a.png")).unlink()
    assert ran(place) == "05"
    next((place / "runs").rglob("01.parquet")).write_text("by hand")
    assert ran(place) == "01 02 05"
    assert next((place / "runs").rglob("01.parquet")).read_text() == "01"


def test_another_study_model_or_machine_runs_all(place, monkeypatch):
    ran(place)
    (place / "mine.yaml").write_text((place / "mine.yaml").read_text() + "seed: 1\n")
    assert ran(place) == "01 02 05"
    (place / "model" / "config.json").write_text('{"a": 1}')
    assert ran(place) == "01 02 05"
    monkeypatch.setattr(unchanged, "_packages", lambda: ["other 1.0"])
    assert ran(place) == "01 02 05"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert ran(place) == "01 02 05"
    assert ran(place) == ""


@pytest.mark.parametrize("pattern", unchanged.CODE)
def test_a_line_of_code_makes_another_key(place, monkeypatch, pattern):
    monkeypatch.setattr(unchanged, "ROOT", place)
    path = place / pattern.replace("**", "some").replace("*", "a")
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = []
    for line in "123":
        path.write_text(line)
        unchanged._at_first.cache_clear()
        keys.append(unchanged._common(load_study(place / "mine.yaml")))
    unchanged._at_first.cache_clear()
    assert len(set(keys)) == 3 and list(ROOT.glob(pattern))


def test_what_ran_while_code_was_edited_is_not_kept(place, monkeypatch):
    monkeypatch.setattr(unchanged, "ROOT", place)
    unchanged._at_first.cache_clear()
    (place / "xai_utils").mkdir()
    edits = f"\nPath({str(place / 'xai_utils' / 'a.py')!r}).write_text('1')"
    write(place, "02", edits)
    ran(place)
    (place / "xai_utils" / "a.py").unlink()  # as it was
    assert ran(place) == "02 05"
    unchanged._at_first.cache_clear()


def test_what_an_own_run_has_left_beside_them_goes(place):
    ran(place)
    beside = next((place / "runs").rglob("05.parquet")).with_name("07.parquet")
    beside.write_text("a part of a notebook that the study does not have")
    os.utime(beside, (1, 1))  # before the next run, also where the clock of files is coarse
    assert ran(place) == "" and not beside.exists()


def test_results_may_lie_behind_a_link(place, monkeypatch):
    (place / "elsewhere" / "far").mkdir(parents=True)
    (place / "linked").symlink_to(place / "elsewhere" / "far")
    monkeypatch.setenv("XAI_RUNS", str(place / "linked"))
    folders = results.folders(load_study(place / "mine.yaml"))
    monkeypatch.setattr(results, "folders", lambda study: dataclasses.replace(folders, figs=place / "figs"))
    write(place, "02", f"\nPath({str(place / 'figs')!r}).mkdir(exist_ok=True)")
    write(place, "05", f"\nPath({str(place / 'figs' / '05_b.png')!r}).write_text('b')")
    assert ran(place) == "01 02 05"
    assert ran(place) == "" and (place / "figs" / "05_b.png").exists()


def test_what_was_done_before_a_failure_is_kept(place):
    write(place, "02", "1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        ran(place)
    write(place, "02")
    assert ran(place) == "02 05"


def test_a_run_of_some_or_with_settings_is_no_whole_run(place):
    ran(place)
    write(place, "02", "1")
    assert ran(place, only=["02"], changed=False) == "02"
    assert ran(place) == "02 05"
    write(place, "01", "more = 1", parameters=STUDY + "\nmore = 0")
    assert ran(place, settings=["more=2"], changed=False) == "01 02 05"
    assert ran(place) == "01 02 05"


def test_run_executes_all_of_them(place):
    ran(place)
    assert ran(place, changed=False) == "01 02 05"


@pytest.mark.parametrize(
    ("entry", "kept"),
    [
        ("model: some/hub-name", False),
        ("model: some/hub-name, revision: main", False),
        (f"model: some/hub-name, revision: {'a1' * 20}", True),
        ("model: model, tokenizer: some/hub-name", False),
        ("model: smollm2-135m-instruct", True),
    ],
)
def test_a_model_that_may_have_gone_on_on_the_hub_is_asked_for_again(place, entry, kept):
    (place / "mine.yaml").write_text(f"models: [{{label: a, {entry}}}]\ntexts: [{{id: a, text: b}}]\n")
    ran(place)
    assert ran(place) == ("" if kept else "01 02 05")


def test_a_record_that_cannot_be_read_keeps_nothing(place):
    ran(place)
    (place / "runs" / "mine" / "executed.json").write_text("[{")
    assert ran(place) == "01 02 05"
    (place / "runs" / "mine" / "executed.json").write_text('{"a": 1}')
    assert ran(place) == "01 02 05"


def test_what_a_notebook_says_stands_in_templates_that_are_looked_at():
    looked_at = {path for pattern in unchanged.CODE for path in ROOT.glob(pattern) if path.suffix == ".j2"}
    names = {path.relative_to(ROOT / "report/template").as_posix(): path.read_text() for path in looked_at}
    used = {
        name for text in names.values() for name in re.findall(r'{%-? *(?:include|from|import|extends) "(.*?)"', text)
    }
    assert "answers/swap.md.j2" in names and used and used <= set(names)
