"""Attention over a whole study: every case once, by the measures of a single one, and again from the cache."""

import numpy as np
import pandas as pd
import pytest

from tests.test_attention import collect
from tests.tiny import tiny_loaded
from xai_utils.attention import heads, layers, maps
from xai_utils.attention.words import attention_change, word_attention
from xai_utils.attribution import rollout
from xai_utils.study import attention as study_of
from xai_utils.study import explainer
from xai_utils.study.config import Study
from xai_utils.text.cases import prepare
from xai_utils.text.entry import TextEntry

TEXTS = (
    TextEntry(id="capital", text="The capital of France is", rewordings=("The capital city of France is",)),
    TextEntry(id="planets", text="Сколько планет в Солнечной системе?"),
)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """An Explainer on two texts, one of them with a rewording, and two tiny models."""
    models = [tiny_loaded("llama", label="base"), tiny_loaded("llama", seed=1, label="twin", role="adapted")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(explainer, "load", lambda entry: next(m for m in models if m.label == entry.label))
        made = explainer.Explainer(Study(name="tiny", models=tuple(model.entry for model in models), texts=TEXTS))
        assert len(made.models) == 2
        yield made


@pytest.fixture(scope="module")
def groups(book):
    return study_of.grouped_heads(book, study_of.head_statistics(book))


def rows(table, **where):
    return table[np.logical_and.reduce([table[name] == value for name, value in where.items()])].reset_index(drop=True)


def test_statistics_are_those_of_each_case(book):
    table = study_of.head_statistics(book)
    assert len(table) == 2 * 2 * 8
    expected = layers.head_table(book.models["twin"], book.case("twin", "planets"))
    found = rows(table, model="twin", text="planets")
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_dtype=False)


def test_the_first_head_is_the_first_layers_first(book):
    table = study_of.first_head(book)
    assert list(zip(table["model"], table["text"], strict=True)) == [
        (model, text.id) for model in ("base", "twin") for text in TEXTS
    ]
    weights = collect(book.models["base"], book.case("base", "planets").ids)[0].weights[0]
    found = rows(table, model="base", text="planets").iloc[0]
    for name, value in layers.observations(weights).items():
        assert found[name] == pytest.approx(value), name


def test_each_models_heads_are_grouped_by_its_own_scores(book, groups):
    assert groups.groupby("model").size().to_dict() == {"base": 8, "twin": 8}
    scores = heads.induction(book.models["twin"], book.study.seed)
    table = study_of.head_statistics(book)
    expected = heads.group_heads(table[table["model"] == "twin"], scores)
    found = rows(groups, model="twin")
    pd.testing.assert_frame_equal(found[expected.columns], expected.reset_index(drop=True), check_dtype=False)
    assert (found["role"] == "adapted").all()


def test_counts_stand_in_the_order_of_the_groups(groups):
    counts = study_of.group_counts(groups)
    assert counts["group"].tolist() == list(heads.GROUPS)
    assert counts[["base", "twin"]].sum().tolist() == [8, 8]
    for row in counts.to_dict("records"):
        assert row["base"] == len(rows(groups, model="base", group=row["group"]))


def test_examples_are_the_heads_maps(book, groups):
    made = groups.assign(group="broad", example=False)
    made.loc[(made["model"] == "base") & (made["layer"] == 1) & (made["head"] == 2), ["group", "example"]] = (
        "sink",
        True,
    )
    made.loc[(made["model"] == "base") & (made["layer"] == 0), "group"] = "induction"
    made.loc[(made["model"] == "base") & (made["layer"] == 0) & (made["head"] == 3), "example"] = True
    found = study_of.group_examples(book, made, "base")
    assert list(found) == ["induction: layer 0, head 3, probe text", "sink: layer 1, head 2"]
    probe = heads.probe_ids(book.models["base"], book.study.seed)
    weights, labels = found["induction: layer 0, head 3, probe text"]
    np.testing.assert_allclose(weights, collect(book.models["base"], probe)[0].weights[3])
    assert len(labels) == len(probe) == len(weights)
    weights, labels = found["sink: layer 1, head 2"]
    case = book.case("base", "capital")
    np.testing.assert_allclose(weights, maps.maps(book.models["base"], case)[1, 2])
    assert labels == case.labels


def test_drifts_are_those_of_each_case(book):
    expected = rollout.drift(book.models["base"], book.case("base", "capital"))
    found = rows(study_of.drifts(book), model="base", text="capital")
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_dtype=False)


def test_changes_have_the_floor_of_the_texts_own_rewordings(book):
    table = study_of.changes(book, "base", "twin")
    first = TEXTS[0]
    reworded = first.model_copy(update={"text": first.rewordings[0]})
    pairs = [
        [word_attention(model, prepare(model, entry, book.study)) for model in book.models.values()]
        for entry in (first, reworded)
    ]
    expected = attention_change(*pairs[0], [tuple(pairs[1])])
    found = rows(table, text="capital")
    for name in ("layer", "head", "divergence", "shared", "floor", "beyond_floor"):
        np.testing.assert_allclose(found[name].astype(float), expected[name].astype(float), rtol=1e-9, err_msg=name)
    other = rows(table, text="planets")
    assert other["floor"].isna().all() and other["beyond_floor"].isna().all() and (other["divergence"] > 0).all()


def test_a_head_changed_when_it_did_in_most_texts_that_have_a_floor():
    keys = {"base": "a", "other": "b", "layer": 0, "head": 0, "shared": 0.2, "floor": 0.1}
    beyond = {"all": [True, True, pd.NA], "half": [True, False, pd.NA], "none": [pd.NA, pd.NA, pd.NA]}
    for name, values in beyond.items():
        table = pd.DataFrame([keys | {"text": str(size), "divergence": size} for size in (0.1, 0.2, 0.6)])
        table["beyond_floor"] = pd.Series(values, dtype="boolean")
        (found,) = study_of.change_of_heads(table).to_dict("records")
        assert found["divergence"] == pytest.approx(0.3)
        assert found["texts"] == {"all": 2, "half": 2, "none": 0}[name]
        assert (found["beyond_floor"] is not pd.NA and bool(found["beyond_floor"])) == (name == "all")


def test_texts_that_both_models_read_alike_say_nothing_of_heads():
    keys = {"base": "a", "other": "b", "layer": 0, "head": 0, "shared": 0.2, "floor": 0.1, "beyond_floor": True}
    rows = [keys | {"text": "ru", "divergence": 0.4}, keys | {"text": "en", "divergence": 0.0, "beyond_floor": False}]
    table = pd.DataFrame(rows).astype({"beyond_floor": "boolean"})
    (found,) = study_of.change_of_heads(table).to_dict("records")
    assert (found["divergence"], found["texts"], found["alike"], found["beyond_floor"]) == (0.4, 1, 1, True)
    (itself,) = study_of.change_of_heads(table.assign(divergence=0.0)).to_dict("records")
    assert (itself["divergence"], itself["texts"], itself["alike"]) == (0.0, 2, 0)


def test_without_a_second_model_there_is_an_empty_table(book):
    table = study_of.changes(book, "base", "twin")
    assert len(study_of.joined([])) == 0
    assert set(study_of.joined([]).columns) == set(table.columns)


def test_nothing_is_computed_twice(book, groups, monkeypatch):
    before = [measure(book) for measure in (study_of.head_statistics, study_of.drifts, study_of.first_head)]
    change = study_of.changes(book, "base", "twin")

    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(layers, "stream", refuse)
    monkeypatch.setattr(rollout, "stream", refuse)
    monkeypatch.setattr(study_of, "words_of", refuse)
    again = [measure(book) for measure in (study_of.head_statistics, study_of.drifts, study_of.first_head)]
    for first, second in zip(before, again, strict=True):
        pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(change, study_of.changes(book, "base", "twin"))
