"""Deletion tests against loops over prompts, and random orders against all permutations."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.absence import baseline_rows
from xai_utils.attribution.perturbation import ablation
from xai_utils.attribution.shapley import shapley
from xai_utils.attribution.tables import word_rows
from xai_utils.attribution.target import Objective
from xai_utils.errors import UserError
from xai_utils.evaluation.faithfulness import Deletion, faithfulness, percentile
from xai_utils.text.cases import units

FOUR = "The capital of France"
TEN = "The cat sat on the mat, and dogs ran"


def by_hand(model, case, target, baseline, gone):
    """F without the words `gone` (indices among the words): one pass, no batch."""
    objective, row = Objective(model, case, target), baseline_rows(model, case, baseline, True)[0]
    words = [unit for unit in units(case) if unit.is_word]
    embeds = objective.inputs.clone()
    for word in gone:
        embeds[list(words[word].tokens)] = row[list(words[word].tokens)]
    with torch.no_grad():
        return objective(embeds[None]).item()


def naive(model, case, target, baseline, order):
    """Both measures of an order of words, straight from their definition."""
    whole, every = by_hand(model, case, target, baseline, []), set(order)
    comprehensiveness, sufficiency = [], []
    for k in range(1, len(order)):
        top = set(order[:k])
        comprehensiveness.append(whole - by_hand(model, case, target, baseline, top))
        sufficiency.append(whole - by_hand(model, case, target, baseline, every - top))
    return np.mean(comprehensiveness), np.mean(sufficiency)


@pytest.mark.parametrize("baseline", ["mean", "zero", "eos"])
@pytest.mark.parametrize("text", [FOUR, TEN])
def test_curves_equal_a_loop(text, baseline):
    model = tiny_loaded()
    case, target = tiny_case(model, text)
    scores = np.random.default_rng(1).normal(size=len(units(case)))
    order = np.argsort(-scores[[unit.is_word for unit in units(case)]]).tolist()
    found = Deletion(model, case, target, baseline, orders=3).curve(scores)
    expected = naive(model, case, target, baseline, order)
    assert (found.comprehensiveness, found.sufficiency) == pytest.approx(expected, abs=1e-4)


def test_random_orders_are_all_permutations():
    model = tiny_loaded()
    case, target = tiny_case(model, FOUR)
    test = Deletion(model, case, target)
    pairs = np.array([naive(model, case, target, "mean", order) for order in permutations(range(4))])
    row = test.row(test.curve(np.zeros(5)))
    assert test.exact and len(test.random) == 24
    assert row["comprehensiveness_random"] == pytest.approx(pairs[:, 0].mean(), abs=1e-4)
    assert row["sufficiency_random"] == pytest.approx(pairs[:, 1].mean(), abs=1e-4)
    assert row["comprehensiveness_random95"] == pytest.approx(np.sort(pairs[:, 0])[22], abs=1e-4)
    assert row["sufficiency_random5"] == pytest.approx(np.sort(pairs[:, 1])[1], abs=1e-4)


def test_one_order_in_twenty_beats_random_at_most():
    model = tiny_loaded()
    case, target = tiny_case(model, FOUR)
    test = Deletion(model, case, target)
    rows = []
    for order in permutations(range(4)):
        scores = np.zeros(5)
        scores[1 + np.array(order)] = [4, 3, 2, 1]
        rows.append(test.row(test.curve(scores)))
    for name in ("comprehensiveness", "sufficiency"):
        assert sum(row[f"{name}_beats_random"] for row in rows) == 1  # of 24
        best = (max if name == "comprehensiveness" else min)(rows, key=lambda row: row[name])
        assert best[f"{name}_beats_random"]


def test_sampled_orders_estimate_the_exact_ones(monkeypatch):
    model = tiny_loaded()
    case, target = tiny_case(model, "The capital of France is Paris")
    exact = Deletion(model, case, target).random
    monkeypatch.setattr("xai_utils.evaluation.faithfulness.ENUMERATED", 3)
    test = Deletion(model, case, target, orders=400)
    assert not test.exact and len(test.random) == 400
    assert test.random.mean() == pytest.approx(exact.mean(), abs=4 * exact.std() / 20)
    assert percentile(test.random, 0.95) == pytest.approx(percentile(exact, 0.95), abs=exact.std())
    assert set(test.random.round(4)) <= set(exact.round(4))


def test_methods_share_passes():
    model = tiny_loaded()
    case, target = tiny_case(model, FOUR)
    test = Deletion(model, case, target)
    assert test._presence.objective.forwards == 16
    shapley(model, case, target)
    again = Deletion(model, case, target)
    for seed in range(5):
        again.curve(np.random.default_rng(seed).normal(size=5))
    assert again._presence.objective.forwards == 0


def test_exact_shapley_values_are_the_method_s():
    model = tiny_loaded()
    case, target = tiny_case(model, FOUR)
    expected = shapley(model, case, target).word_scores[1:]
    assert Deletion(model, case, target).shapley() == pytest.approx(expected, abs=1e-6)
    long, goal = tiny_case(model, TEN)
    with pytest.raises(UserError, match="10 words are too many"):
        Deletion(model, long, goal, orders=2).shapley()


def test_words_without_a_score_come_last():
    model = tiny_loaded()
    case, target = tiny_case(model, FOUR)
    test = Deletion(model, case, target)
    assert test.curve(np.array([np.nan, 2, np.nan, 3, 1])) == test.curve(np.array([9, 2, -9, 3, 1]))


def test_white_space_is_no_word():
    model = tiny_loaded()
    case, target = tiny_case(model, "The capital  of France")
    assert any(not unit.is_word and unit.start is not None for unit in units(case))
    test = Deletion(model, case, target)
    assert [units(case)[word.unit].text for word in test.words] == ["The", "capital", "of", "France"]


def test_the_table():
    model = tiny_loaded()
    case, target = tiny_case(model, TEN)
    methods = {"ablation": ablation(model, case, target), "shapley": shapley(model, case, target, budget=200)}
    rows = [row for found in methods.values() for row in word_rows(found)]
    table = faithfulness(model, case, target, pd.DataFrame(rows), ("mean", "eos"), orders=30)
    controls = ["first_to_last", "last_to_first"]
    assert table.columns[:6].tolist() == ["study", "text", "model", "role", "target", "target_text"]
    assert table["method"].tolist() == 2 * [*controls, "ablation", "shapley"]
    assert table["deletion"].tolist() == 4 * ["mean"] + 4 * ["eos"] and not table["enumerated"].any()
    at = table.set_index(["method", "deletion"])
    forward, backward = (naive(model, case, target, "eos", order) for order in (range(10), range(9, -1, -1)))
    for name, expected in [("first_to_last", forward), ("last_to_first", backward)]:
        found = at.loc[(name, "eos"), ["comprehensiveness", "sufficiency"]].tolist()
        assert found == pytest.approx(expected, abs=1e-4)
    curve = Deletion(model, case, target, "eos", orders=30).curve(methods["ablation"].word_scores)
    assert at.loc[("ablation", "eos"), "comprehensiveness"] == curve.comprehensiveness
    with pytest.raises(UserError, match="word scores of ablation are not those of this text"):
        faithfulness(model, case, target, pd.DataFrame(rows).iloc[1:])


def test_one_word_has_no_curve():
    model = tiny_loaded()
    case, target = tiny_case(model, "Paris")
    table = faithfulness(model, case, target, pd.DataFrame(columns=["method", "baseline", "sink", "unit"]))
    assert table["comprehensiveness"].isna().all() and table["sufficiency_beats_random"].isna().all()
