"""The store: what a result's place depends on, results as text and back, and names that never come out of it."""

import dataclasses
import json
import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution import integrated_gradients, noise, perturbation
from xai_utils.attribution.methods import METHODS
from xai_utils.errors import UserError
from xai_utils.files import ROOT, write_text
from xai_utils.study import jobs, store
from xai_utils.study.explainer import complete
from xai_utils.study.store import Store


@pytest.fixture(scope="module")
def model():
    return tiny_loaded("llama")


@pytest.fixture
def kept(tmp_path):
    return Store(tmp_path)


def back(tmp_path, result):
    return store.unpacked(write_text(tmp_path / "a.json", store.packed(result)))


def test_an_attribution_comes_back_as_it_was(model, tmp_path):
    case, target = tiny_case(model, "The capital of France is")
    found = integrated_gradients.integrated_gradients(model, case, target, budget=60, tolerance=1.0)
    kind, fields = back(tmp_path, found)
    again = store.attribution(fields, "a method", case, target)
    assert kind == "attribution" and again.method == "a method"
    for field in dataclasses.fields(found):
        one, other = getattr(found, field.name), getattr(again, field.name)
        if field.name == "path":
            one, other = ([dataclasses.astuple(piece) for piece in path] for path in (one, other))
        if field.name != "method":
            np.testing.assert_equal(other, one)
    assert len(again.path) == 2


def test_a_table_comes_back_to_the_last_bit_and_in_its_types(tmp_path):
    table = pd.DataFrame(
        {
            "real": [1e-300, np.pi, np.nan, -np.inf],
            "count": [1, 2, 3, 2**60],
            "flag": [True, False, True, True],
            "place": pd.array([1, None, 3, 4], dtype="Int64"),
            "known": pd.array([True, None, False, True], dtype="boolean"),
            "word": ["a", None, "системе", "\ud7ff"],
            "list": pd.Series([(np.float64(0.1), 2), [], [3], None], dtype=object),
        }
    )
    for result in (table, table.iloc[:0], {"one": table, "two": table.iloc[:0]}):
        kind, found = back(tmp_path, result)
        assert kind == ("tables" if isinstance(result, dict) else "table")
        pairs = [(found, result)] if kind == "table" else [(found[name], result[name]) for name in ("one", "two")]
        for one, other in pairs:
            expected = other.assign(list=other["list"].map(list, na_action="ignore")).reset_index(drop=True)
            pd.testing.assert_frame_equal(one, expected, check_exact=True)


def test_no_name_is_kept_and_the_reader_s_come_first(tmp_path):
    names = {"study": "s", "text": "t", "model": "m", "role": "base"}
    table = pd.DataFrame([names | {"score": 1.0}, names | {"score": 2.0}])
    _, found = back(tmp_path, table)
    assert list(found.columns) == ["score"]
    renamed = names | {"text": "other"}
    pd.testing.assert_frame_equal(store.named(found, renamed), table.assign(text="other"))
    assert list(store.named(found.iloc[:0], names).columns) == list(table.columns)


def test_the_place_changes_with_all_that_a_result_depends_on_and_with_no_name(model, kept):
    case, target = tiny_case(model, "The capital of France is")
    other_case, other_target = tiny_case(model, "The capital of Spain is", answer=" Madrid.")
    asked = (model, case, target, perturbation.ablation, {"seed": 0})
    changed = {
        0: [dataclasses.replace(model, revision="another"), dataclasses.replace(model, reference=model.embedding[0])],
        1: [other_case],
        2: [other_target],
        3: [noise.sensitivity],
        4: [{}, {"seed": pd.DataFrame({"score": [1.0]})}, {"seed": pd.DataFrame({"score": [1.5]})}],
    }
    places = {kept.file([*asked[:at], new, *asked[at + 1 :]]) for at in changed for new in changed[at]}
    assert len(places | {kept.file(asked)}) == 9
    entry = model.entry.model_copy(update={"label": "renamed", "role": "control"})
    renamed = dataclasses.replace(case, study="s2", text_id="t2", model="renamed", role="control", group="g", padding=0)
    assert kept.file([dataclasses.replace(model, entry=entry), renamed, *asked[2:]]) == kept.file(asked)
    tables = [pd.DataFrame({"score": [1.0], "text": [name], "model": [name]}) for name in "ab"]
    assert kept.file(tables[0]) == kept.file(tables[1])


def test_a_version_raised_is_another_place(model, kept, monkeypatch):
    before = kept.file(perturbation.ablation)
    monkeypatch.setattr(perturbation, "VERSION", 10**6)
    assert kept.file(perturbation.ablation) != before
    before = kept.file(integrated_gradients.integrated_gradients)
    monkeypatch.setattr(store, "VERSION", 10**6)
    assert kept.file(integrated_gradients.integrated_gradients) != before


def test_every_method_s_module_has_a_version():
    modules = {method.function.__module__ for method in METHODS.values()}
    assert all(isinstance(getattr(sys.modules[name], "VERSION", None), int) for name in modules)


TYPED = """
FACTOR = {factor}
def helper(x):
    return {helper}
def method(model, case, target, *, seed=0):
    return helper(FACTOR) if seed in {{"a", "b", "c"}} else [y {sign} 1 for y in (1, 2)]
"""


def typed(monkeypatch, factor="2", helper="x", sign="+"):
    module = ModuleType("typed")
    monkeypatch.setitem(sys.modules, "typed", module)
    exec(TYPED.format(factor=factor, helper=helper, sign=sign), module.__dict__)
    return module.method


def test_a_method_typed_into_a_notebook_is_its_code(kept, monkeypatch):
    changes = [{}, {"factor": "3"}, {"helper": "x + 1"}, {"sign": "-"}]
    places = [kept.file(typed(monkeypatch, **change)) for change in changes]
    assert len(set(places)) == 4 and kept.file(typed(monkeypatch)) == places[0]


def test_a_place_is_the_same_in_every_process():
    """Sets and addresses in compiled code differ between processes; a place must not."""
    program = f"""
import sys
from pathlib import Path
from types import ModuleType
from xai_utils.study.store import Store
module = ModuleType("typed")
sys.modules["typed"] = module
exec({TYPED.format(factor="2", helper="x", sign="+")!r}, module.__dict__)
print(Store(Path("x")).file(module.method))
"""
    command = [sys.executable, "-c", program]
    told = {
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, cwd=ROOT, capture_output=True, text=True)
        for seed in ("1", "2")
    }
    assert len({done.stdout for done in told}) == 1 and all(done.returncode == 0 for done in told)


def test_defaults_are_settings(kept):
    def one(model, case, target, *, window: int = 2, seed: int) -> None: ...

    assert complete(one, {"seed": 1}) == {"window": 2, "seed": 1} == complete(one, {"seed": 1, "window": 2})


def test_what_cannot_be_compared_cannot_be_depended_on(kept):
    with pytest.raises(TypeError, match="cannot depend on a object"):
        kept.file([object()])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1, "b": 2}', '{"table": {"x": 1}}', '{"attribution": 3}'])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="a.json: not a result of this kit .*; delete it") as caught:
        store.unpacked(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_what_is_remembered_is_computed_once(kept):
    asked = []

    def compute():
        asked.append(1)
        return pd.DataFrame({"study": ["s"], "score": [0.1]})

    first, second = (kept.remember(["a", 1], compute) for _ in range(2))
    assert first.equals(second) and list(first.columns) == ["score"] and asked == [1]
    assert json.loads(kept.file(["a", 1]).read_text()) == {"table": {"score": ["float64", [0.1]]}}


def test_a_reason_is_one_line_and_names_the_kind_of_a_surprise():
    assert jobs.reason(UserError("what; do")) == "what; do"
    assert jobs.reason(ValueError("two\nlines")) == "ValueError: two lines"
    assert jobs.reason(MemoryError()) == "MemoryError"
