"""A study whose models have other shapes, or whose texts are too short: what cannot be computed is told in a line."""

import pytest

from tests.tiny import tiny_loaded
from xai_utils.study import attention, between, comparison, explainer
from xai_utils.study.config import Study
from xai_utils.study.explainer import Explainer
from xai_utils.text.entry import TextEntry

LONG = TextEntry(id="long", text="The capital of France", answer=" is Paris.")
SHORT = TextEntry(id="short", text="a", answer=" is")


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Makes an Explainer of models of the given layers and texts."""

    def _book(layers: list[int], *texts: TextEntry) -> Explainer:
        models = [
            tiny_loaded("llama", seed, f"m{seed}", "adapted" if seed else "base", num_hidden_layers=count)
            for seed, count in enumerate(layers)
        ]
        monkeypatch.setenv("XAI_RUNS", str(tmp_path))
        monkeypatch.setattr(explainer, "load", lambda entry: next(m for m in models if m.label == entry.label))
        study = Study(name="s", models=tuple(m.entry for m in models), texts=texts, methods=("ablation",), draws=3)
        return Explainer(study)

    return _book


def test_models_of_other_shapes_are_not_compared_head_by_head(book, capsys):
    three = book([2, 3, 2], LONG)
    assert attention.alike(three, "m0") == ["m2"]
    assert capsys.readouterr().out == (
        "m1 has 3 layers of 4 heads and m0 2 layers of 4 heads: they are not compared head by head.\n"
    )
    assert len(attention.changes(three, "m0", "m2")) == 2 * 4


def test_models_of_other_shapes_share_no_parts(book, capsys):
    two = book([2, 3], LONG)
    assert between.swaps(two, "m0", "m1") == {}
    said = capsys.readouterr().out
    assert "different shapes" in said and "only word scores can be compared" in said and said.count("\n") == 1
    scores = two.tables(["ablation"])["word_scores"]
    assert set(scores["model"]) == {"m0", "m1"}  # and these are


def test_texts_too_short_for_groups_leave_the_rest(book, capsys):
    short = book([2, 2], SHORT)
    table = attention.head_statistics(short)
    groups = attention.grouped_heads(short, table)
    assert groups.empty and {"model", "group", "layer", "head", "example"} <= set(groups.columns)
    assert capsys.readouterr().out.count("no text has three tokens") == 2
    assert attention.group_counts(groups).empty and attention.group_examples(short, groups, "m0") == {}
    assert len(attention.changes(short, "m0", "m1")) == 8 and len(attention.first_head(short)) == 2
    tests = comparison.deletion_tests(short, short.tables(["ablation"])["word_scores"])
    assert len(tests) and set(tests["text"]) == {"short"}


def test_one_long_text_is_enough_for_groups(book):
    both = book([2], SHORT, LONG)
    alone = book([2], LONG)
    of_both, of_long = (attention.grouped_heads(one, attention.head_statistics(one)) for one in (both, alone))
    assert of_both["group"].tolist() == of_long["group"].tolist() and len(of_both) == 8
