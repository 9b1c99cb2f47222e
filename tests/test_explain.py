"""The loop over a study: tables, cache, and the table of methods that anybody may extend."""

import gc
import json
import sys
import weakref
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tiny import save_tiny, tiny_loaded
from xai_utils.attribution import integrated_gradients
from xai_utils.attribution.absence import baseline_rows
from xai_utils.attribution.methods import METHODS, Method
from xai_utils.attribution.result import Attribution, from_tokens
from xai_utils.attribution.target import Objective
from xai_utils.errors import UserError
from xai_utils.files import ROOT
from xai_utils.study import explainer
from xai_utils.study.config import Study
from xai_utils.study.explainer import Explainer
from xai_utils.text.entry import TextEntry
from xai_utils.text.words import visible


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    models = [tiny_loaded("llama", label="base"), tiny_loaded("llama", label="twin", role="adapted")]
    study = Study(
        name="tiny",
        models=tuple(model.entry for model in models),
        texts=(
            TextEntry(id="capital", text="The capital of France", answer=" is Paris."),
            TextEntry(id="planets", text="Сколько планет в Солнечной системе?", answer=" Восемь."),
        ),
        methods=("integrated_gradients",),
    )
    monkeypatch.setattr(explainer, "load", lambda entry: next(m for m in models if m.label == entry.label))
    return Explainer(study)


def constant(model, case, target, *, value: float = 1.0, seed: int = 0) -> Attribution:
    """The smallest method there is: one score for all."""
    scores = np.full(len(case.tokens), value + seed)
    return from_tokens("constant", case, target, scores, 0 * scores, baseline="zero", keep_sink=False)


def test_a_new_method_is_a_function_and_a_line(book, monkeypatch):
    monkeypatch.setitem(METHODS, "constant", Method(constant, "one score for all", {"value": 2.0}))
    tables = book.write(["constant"], part="test")
    assert set(tables["attributions"]["score"]) == {2.0}
    assert set(tables["word_scores"]["method"]) == {"constant"}
    assert len(explainer.results.read_table(book.study, "attributions")) == len(tables["attributions"])


def test_settings_come_from_the_study_unless_fixed(book, monkeypatch):
    monkeypatch.setitem(METHODS, "constant", Method(constant, ""))
    assert set(book.attribute("base", "capital", "constant").scores) == {1.0}
    monkeypatch.setitem(METHODS, "constant", Method(constant, "", {"value": 5.0}))
    assert set(book.attribute("base", "capital", "constant", seed=3).scores) == {8.0}
    book.study = book.study.model_copy(update={"seed": 7})
    assert set(book.attribute("base", "capital", "constant").scores) == {12.0}


def test_second_time_comes_from_the_cache(book):
    first = book.attribute("base", "planets", "integrated_gradients")
    files = list(book.folders.cache.rglob("*.json"))
    assert len(files) == 1
    content = json.loads(files[0].read_text())
    content["attribution"]["scores"]["array"][3] = 42.0
    files[0].write_text(json.dumps(content))
    second = book.attribute("base", "planets", "integrated_gradients")
    assert second.scores[3] == 42.0
    assert np.array_equal(np.delete(second.scores, 3), np.delete(first.scores, 3), equal_nan=True)
    assert second.certificate == first.certificate
    assert len(second.path) == len(first.path)


def test_a_table_and_a_fixed_path_come_from_the_cache_too(book, monkeypatch):
    asked = []

    def lengths(model, case, target, *, times: int) -> pd.DataFrame:
        asked.append(case.text_id)
        return pd.DataFrame({"length": [len(case.tokens) * times], "share": [0.1]})

    first, second = (book.cached_table("base", "capital", lengths, times=2) for _ in range(2))
    assert asked == ["capital"] and first.equals(second)
    assert first.loc[0, ["length", "share", "model"]].tolist() == [
        2 * len(book.case("base", "capital").ids),
        0.1,
        "base",
    ]

    run = book.fixed_with_path("base", "capital")
    monkeypatch.setattr(integrated_gradients, "fixed_rule", None)
    again = book.fixed_with_path("base", "capital")
    assert len(again.path) == book.study.steps and np.array_equal(run.path[3].scores, again.path[3].scores)
    plain = book.attribute("base", "capital", "fixed_steps")
    assert np.allclose(sum(piece.scores for piece in again.path), plain.scores, atol=1e-4)


def test_another_setting_is_another_cache_entry(book):
    book.attribute("base", "capital", "integrated_gradients")
    book.attribute("base", "capital", "integrated_gradients", baseline="eos")
    book.attribute("base", "capital", "integrated_gradients", target="sum_logits")
    assert len(list(book.folders.cache.rglob("*.json"))) == 3


def test_tables_hold_what_was_attributed(book):
    tables = book.tables(["integrated_gradients"])
    found = book.attribute("twin", "planets", "integrated_gradients")
    rows = tables["attributions"].query("model == 'twin' and text == 'planets'")
    assert np.array_equal(rows["score"].to_numpy(float), found.scores, equal_nan=True)
    assert rows["kind"].tolist()[0] == "kept"
    words = tables["word_scores"].query("model == 'twin' and text == 'planets' and is_word")
    assert words["word"].tolist() == ["Сколько", "планет", "в", "Солнечной", "системе", "?"]
    assert words["score"].sum() == pytest.approx(rows["score"].sum(), abs=1e-9)
    proof = tables["certificates"].query("model == 'twin' and text == 'planets'").iloc[0]
    assert proof["delta"] == found.certificate.delta
    assert rows["score"].sum() - (proof["f_input"] - proof["f_baseline"]) == pytest.approx(proof["delta"], abs=1e-9)


def test_models_share_one_mean(book):
    base, twin = book.models.values()
    assert base.reference is not None
    assert (base.reference == twin.reference).all()


def test_continuation_is_greedy_and_explained_token_by_token(book):
    model = book.models["base"]
    tables = book.continuations("capital")
    rows = tables["continuations"].query("model == 'base'")
    ids = torch.tensor([book.case("base", "capital").ids])
    greedy = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    expected = [visible(model.tokenizer.decode([token])) for token in greedy[0, ids.shape[1] :].tolist()]
    assert rows.drop_duplicates("step")["generated"].tolist() == expected
    proofs = tables["certificates"].query("model == 'base'").set_index("step")
    for step, row in rows.groupby("step"):
        assert len(row) == ids.shape[1] + step
        rise = proofs.loc[step, "f_input"] - proofs.loc[step, "f_baseline"]
        assert row["score"].sum() == pytest.approx(rise, abs=0.011 * max(abs(rise), 0.1))


def test_unknown_method_is_named_with_the_nearest(book):
    with pytest.raises(UserError, match="did you mean 'integrated_gradients'"):
        book.tables(["integrated_gradient"])
    with pytest.raises(UserError, match="unknown method"):
        Explainer(book.study.model_copy(update={"methods": ("nothing",)}))


def test_what_is_written_is_the_table(book, monkeypatch):
    monkeypatch.setitem(METHODS, "constant", Method(constant, ""))
    whole, written = book.tables(["constant"]), book.write(["constant"], part="all")
    for name in ("attributions", "word_scores"):
        pd.testing.assert_frame_equal(written[name], whole[name], check_exact=True)
        pd.testing.assert_frame_equal(explainer.results.read_table(book.study, name), whole[name], check_exact=True)


def test_the_readme_s_method_runs_as_it_stands(book, monkeypatch):
    pages = [page.read_text() for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))]
    code = next(block for page in pages for block in page.split("```python\n")[1:] if "METHODS[" in block)
    monkeypatch.setitem(METHODS, "attribution_patching", None)  # so that it is gone afterwards
    monkeypatch.setitem(sys.modules, "typed", ModuleType("typed"))  # no file, as in a notebook
    exec(code.split("```")[0], {"__name__": "typed"})
    assert len(book.tables(["attribution_patching"])["word_scores"]) == len(book.tables(["ablation"])["word_scores"])
    model, case = book.models["base"], book.case("base", "capital")
    objective = Objective(model, case, book.target("base", "capital"))
    step, small = objective.inputs - baseline_rows(model, case, book.study.baseline, True)[0], 0.03
    ways = small * torch.eye(len(step))[1:, :, None] * step  # one position at a time
    change = objective.values(objective.inputs + ways) - objective.values(objective.inputs - ways)
    scores = book.attribute("base", "capital", "attribution_patching").scores[1:]
    assert scores == pytest.approx(change.double().numpy() / (2 * small), rel=0.01, abs=0.001 * np.abs(scores).max())


def test_models_are_loaded_once_a_process_until_their_files_change(tmp_path, monkeypatch):
    """Two explainers of one study share models; a model made again, or another study, is loaded."""
    monkeypatch.setenv("XAI_RUNS", str(tmp_path / "runs"))
    folder = save_tiny(tmp_path / "model")
    study = Study.model_validate(
        {"name": "s", "models": [{"label": "m", "model": str(folder)}], "texts": [{"id": "a", "text": "The cat"}]}
    )
    first = Explainer(study).models["m"]
    assert Explainer(study.model_copy(update={"name": "t"})).models["m"] is first
    save_tiny(folder, seed=1)
    second = Explainer(study).models["m"]
    assert second is not first and second.revision != first.revision


def test_an_explainer_that_is_gone_keeps_no_models(book):
    other = book.on(TextEntry(id="capital", text="The capital of Russia", answer=" is Moscow."))
    texts = [one.case("base", "capital").text for one in (book, other)]
    assert texts == ["The capital of France", "The capital of Russia"]
    assert [one.target("twin", "capital").text for one in (book, other)] == [" is Paris.", " is Moscow."]
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None
