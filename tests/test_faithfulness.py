"""Deletion tests against loops over prompts, and shares against all orders of the words."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from tests.planted import planted_model
from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.absence import ABSENCES
from xai_utils.attribution.masking import Removal
from xai_utils.attribution.perturbation import ablation
from xai_utils.attribution.shapley import panel_shapley, shapley
from xai_utils.attribution.tables import word_rows
from xai_utils.errors import UserError
from xai_utils.evaluation.faithfulness import Deletion, faithfulness, percentile, possible
from xai_utils.evaluation.orders import by_score
from xai_utils.models.visibility import MaskSupport
from xai_utils.text.cases import units

FOUR = "The capital of France"
SIX = "The cat sat on the mat"
TWELVE = "The cat sat on the mat, and the dog ran in"


@pytest.fixture(scope="module")
def model():
    return tiny_loaded()


def by_hand(model, case, target, absence, gone):
    """F without the words `gone` (indices among the words), one prompt at a time, the mean over draws."""
    words = [unit for unit in units(case) if unit.is_word]
    removed = np.isin(np.arange(len(case.ids)), [p for word in gone for p in words[word].tokens])
    return Removal(model, case, target, absence).values(removed[None])[0].mean()


def naive(model, case, target, absence, order):
    """Both measures of an order of words, straight from their definition."""
    whole, every = by_hand(model, case, target, absence, []), set(order)
    comprehensiveness, sufficiency = [], []
    for k in range(1, len(order)):
        top = set(order[:k])
        comprehensiveness.append(whole - by_hand(model, case, target, absence, top))
        sufficiency.append(whole - by_hand(model, case, target, absence, every - top))
    return np.mean(comprehensiveness), np.mean(sufficiency)


@pytest.mark.parametrize("absence", ["dropped", "hidden", "mean", "sampled"])
@pytest.mark.parametrize("text", [FOUR, "Water boils at one hundred"])
def test_measures_and_shares_equal_loops_over_all_orders(model, text, absence):
    case, target = tiny_case(model, text)
    test = Deletion(model, case, target, absence)
    count = len(test.words)
    every = np.array(list(permutations(range(count))))
    found = test.curves(every)
    pairs = np.array([naive(model, case, target, absence, order) for order in every.tolist()])
    assert test.search == "exact"
    assert found.comprehensiveness == pytest.approx(pairs[:, 0], abs=1e-4)
    assert found.sufficiency == pytest.approx(pairs[:, 1], abs=1e-4)
    gains = (pairs[:, 0] - pairs[:, 0].mean()) / (pairs[:, 0].max() - pairs[:, 0].mean())
    gains += (pairs[:, 1].mean() - pairs[:, 1]) / (pairs[:, 1].mean() - pairs[:, 1].min())
    assert found.share == pytest.approx(gains / 2, abs=2e-3)
    assert found.random_mean == 0 and found.random_95 == pytest.approx(percentile(gains / 2, 0.95), abs=2e-3)
    assert sum(found.share > found.random_95) <= 0.05 * len(every)


def test_best_and_worst_of_six_words_are_those_of_all_orders(model):
    case, target = tiny_case(model, SIX)
    test = Deletion(model, case, target, "dropped")
    every = np.array(list(permutations(range(6))))
    means = np.array([[test.values[sum(1 << w for w in order[:k])] for k in range(1, 6)] for order in every]).mean(1)
    found = test.curves(every)
    whole = test.values[-1]
    assert (whole - found.sufficiency).max() == pytest.approx(means.max()) and found.share.max() <= 1 + 1e-9
    best = np.argmax(means)
    assert test.curves(every[best][None]).sufficiency[0] == pytest.approx(found.sufficiency.min())


def test_a_search_sees_what_enumeration_knows(model):
    """With a budget for all subsets the shares are exact; a beam on all sizes comes close, and never above 1."""
    case, target = tiny_case(model, "The capital of France is Paris, and")
    orders = np.array([np.random.default_rng(seed).permutation(8) for seed in range(20)])
    exact = Deletion(model, case, target, "mean")
    searched = Deletion(model, case, target, "mean", budget=255)
    searched.budget = 512
    assert (exact.search, searched.search) == ("exact", "beam") and searched.sizes.tolist() == list(range(1, 8))
    truth, found = exact.curves(orders), searched.curves(orders)
    assert found.comprehensiveness == pytest.approx(truth.comprehensiveness, abs=1e-4)
    assert np.corrcoef(found.share, truth.share)[0, 1] > 0.98 and np.abs(found.share - truth.share).max() < 0.25
    assert found.share.max() <= 1 + 1e-9


@pytest.mark.parametrize(("budget", "search", "steps"), [(1000, "beam", 10), (100, "seen", 2), (1, "seen", 2)])
def test_long_texts_keep_to_their_budget(budget, search, steps):
    model = tiny_loaded()
    case, target = tiny_case(model, TWELVE)
    test = Deletion(model, case, target, "mean", budget)
    orders = np.array([np.arange(12), np.arange(12)[::-1]])
    found = test.curves(orders)
    asked = len(test.removal._known)
    assert len(test.words) == 12 and test.search == search and len(test.sizes) == steps
    assert asked <= budget / 4 + 2 * 2 * len(test.sizes) + 8 * len(test.sizes) + 1  # the rankings, four random orders
    assert np.isfinite(found.share).all() and (found.share <= 1 + 1e-9).all()


def test_methods_share_passes():
    model = tiny_loaded()
    case, target = tiny_case(model, FOUR)
    test = Deletion(model, case, target, "mean")
    test.curves(np.array([[0, 1, 2, 3]]))
    assert test.removal.objective.forwards == 16
    found = shapley(model, case, target, absence="mean")
    again = Deletion(model, case, target, "mean")
    again.curves(np.array([by_score(found.word_scores[1:]), [3, 2, 1, 0]]))
    assert again.removal.objective.forwards == 0


def test_white_space_is_no_word(model):
    case, target = tiny_case(model, "The capital  of France")
    assert any(not unit.is_word and unit.start is not None for unit in units(case))
    test = Deletion(model, case, target, "mean")
    assert [units(case)[word.unit].text for word in test.words] == ["The", "capital", "of", "France"]


# ---- the table


def table_of(model, case, target, **settings):
    methods = [panel_shapley(model, case, target), ablation(model, case, target, absence="dropped")]
    rows = [row for found in methods for row in word_rows(found)]
    return faithfulness(model, case, target, pd.DataFrame(rows), **settings), methods


def test_the_table(model):
    case, target = tiny_case(model, FOUR)
    table, (panel, alone) = table_of(model, case, target, absences=("mean", "eos"))
    keys = ["study", "text", "model", "role", "target", "target_text", "method", "baseline", "sink", "unit"]
    assert table.columns[:10].tolist() == keys
    assert {"absence", "own", "comprehensiveness", "sufficiency", "share", "random_mean", "random_95"} <= set(table)
    names = ["first_to_last", "last_to_first", "panel_shapley", "ablation", "ceiling"]
    assert table["method"].tolist() == names * 7 and table["absence"].unique().tolist() == list(ABSENCES)
    at = table.set_index(["method", "absence"])
    for absence in ABSENCES:
        for found in (panel, alone):
            order = by_score(found.word_scores[1:]).tolist()
            expected = naive(model, case, target, absence, order)
            row = at.loc[(found.method, absence)]
            assert (row["comprehensiveness"], row["sufficiency"]) == pytest.approx(expected, abs=1e-4)
        forward = naive(model, case, target, absence, [0, 1, 2, 3])
        assert at.loc[("first_to_last", absence), "comprehensiveness"] == pytest.approx(forward[0], abs=1e-4)
    own = {method: set(part["absence"][part["own"].fillna(False)]) for method, part in table.groupby("method")}
    assert own["panel_shapley"] == {"mean", "eos"} and own["ablation"] == {"dropped"}
    assert own["first_to_last"] == set() and table[table["method"] == "ceiling"]["own"].isna().all()


def test_no_order_is_above_the_ceiling(model):
    case, target = tiny_case(model, FOUR)
    table, _ = table_of(model, case, target)
    ceiling = table[table["method"] == "ceiling"]["share"].mean()
    tests = [Deletion(model, case, target, absence) for absence in ABSENCES]
    orders = np.array(list(permutations(range(4))))
    assert ceiling == pytest.approx(np.mean([test.curves(orders).share for test in tests], axis=0).max(), abs=1e-6)
    assert table.groupby("method")["share"].mean().max() == pytest.approx(ceiling)


def test_an_absence_that_the_model_cannot_do_is_no_test(model, monkeypatch):
    monkeypatch.setattr("xai_utils.evaluation.faithfulness.mask_support", lambda model: MaskSupport(False, True))
    assert possible(model) == [name for name in ABSENCES if name != "hidden"]


def test_scores_of_another_text_are_refused(model):
    case, target = tiny_case(model, FOUR)
    rows = pd.DataFrame(word_rows(ablation(model, case, target)))
    with pytest.raises(UserError, match="word scores of ablation are not those of this text"):
        faithfulness(model, case, target, rows.iloc[1:])


def test_words_without_a_score_come_last(model):
    case, target = tiny_case(model, FOUR)
    rows = pd.DataFrame(word_rows(ablation(model, case, target)))
    some, full = (
        faithfulness(model, case, target, rows.assign(score=scores)).query("method == 'ablation'")["share"].tolist()
        for scores in ([np.nan, np.nan, 2, np.nan, 3], [0, -7, 2, -8, 3])
    )
    assert some == full


def test_one_word_has_no_curve(model):
    case, target = tiny_case(model, "Paris")
    table = faithfulness(model, case, target, pd.DataFrame(columns=["method", "baseline", "sink", "unit"]))
    assert table["share"].isna().all() and table["beats_random"].isna().all()
    assert table["method"].unique().tolist() == ["first_to_last", "last_to_first"]


def test_a_planted_token_is_the_best_word_to_delete():
    case, _ = tiny_case(tiny_loaded(), "The capital of France is")
    model = planted_model(case.ids[units(case)[3].tokens[0]])
    case, target = tiny_case(model, "The capital of France is", answer=None)
    table, _ = table_of(model, case, target)
    share = table.groupby("method")["share"].mean()
    assert share["panel_shapley"] > 0.9 and share["first_to_last"] < share["panel_shapley"] > share["last_to_first"]
