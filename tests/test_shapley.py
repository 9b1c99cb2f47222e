"""Shapley values, under one absence and over a panel, against all orders and captum's enumeration."""

from itertools import permutations

import numpy as np
import pytest
import torch
from captum.attr import ShapleyValues

from tests.planted import planted_model
from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.absence import ABSENCES, PANEL
from xai_utils.attribution.masking import Removal
from xai_utils.attribution.result import NORMAL_95
from xai_utils.attribution.shapley import panel_shapley, shapley
from xai_utils.attribution.subsets import all_subsets, exact_shapley
from xai_utils.attribution.tables import word_rows
from xai_utils.errors import UserError
from xai_utils.text.cases import units

FOUR = "The capital of France"
EIGHT = "The capital of France is a garden."
TEN = "The cat sat on the mat, and dogs ran"


@pytest.fixture(scope="module")
def eight():
    model = tiny_loaded()
    case, target = tiny_case(model, EIGHT)
    removal = Removal(model, case, target, "mean")
    assert len(removal.players) == 8
    return model, case, target, exact_shapley(removal.without(all_subsets(8)))[:, 0]


def over_all_orders(removal):
    """Shapley values [player, draw] from the definition: what each player adds, the mean over all orders."""
    count = len(removal.players)
    total = np.zeros((count, removal.draws))
    orders = list(permutations(range(count)))
    for order in orders:
        present = np.zeros(count, dtype=bool)
        for player in order:
            before = removal.without(present[None])[0]
            present[player] = True
            total[player] += removal.without(present[None])[0] - before
    return total / len(orders)


def test_enumeration_is_the_mean_over_all_orders():
    values = np.random.default_rng(0).normal(size=16)
    total = np.zeros(4)
    for order in permutations(range(4)):
        here = 0
        for player in order:
            total[player] += values[here | 1 << player] - values[here]
            here |= 1 << player
    assert exact_shapley(values) == pytest.approx(total / 24)


@pytest.mark.parametrize("absence", list(ABSENCES))
def test_every_absence_equals_its_definition(absence):
    model = tiny_loaded()
    case, target = tiny_case(model, FOUR)
    expected = over_all_orders(Removal(model, case, target, absence))
    found = shapley(model, case, target, absence=absence)
    assert found.baseline == absence and found.word_scores[1:] == pytest.approx(expected.mean(1), abs=1e-5)


@pytest.mark.parametrize("kind", ["logprob", "contrast", "logit"])
def test_the_panel_is_the_mean_and_the_range_over_its_absences(kind):
    model = tiny_loaded()
    answer = "s" if kind == "logit" else " Paris."
    case, target = tiny_case(model, FOUR, kind, answer, contrast=" Moscow.")
    absences = ("dropped", "hidden", "eos")
    each = np.stack([over_all_orders(Removal(model, case, target, name))[:, 0] for name in absences])
    found = panel_shapley(model, case, target, absences=absences)
    assert found.word_scores[1:] == pytest.approx(each.mean(0), abs=1e-5)
    assert found.low[1:] == pytest.approx(each.min(0), abs=1e-5)
    assert found.high[1:] == pytest.approx(each.max(0), abs=1e-5)
    assert found.stands[1:].tolist() == (np.abs(np.sign(each).sum(0)) == 3).tolist()
    assert (found.method, found.baseline, found.sink, found.additive) == ("panel_shapley", "panel", "kept", True)
    assert (found.word_errors[1:] == 0).all() and np.isnan(found.low[0])
    assert found.by_absence[:, 1:] == pytest.approx(each, abs=1e-5)
    rows = word_rows(found)
    assert [row["low"] for row in rows[1:]] == found.low[1:].tolist() and rows[0]["stands"] is None


@pytest.mark.parametrize("text", [FOUR, TEN])
def test_the_panel_s_sum_is_proven(text):
    model = tiny_loaded()
    case, target = tiny_case(model, text)
    found = panel_shapley(model, case, target, budget=200)
    count = len(units(case)) - 1
    ends = [
        Removal(model, case, target, name).without(np.array([[True] * count, [False] * count])).mean(1)
        for name in PANEL
    ]
    whole, nothing = np.mean(ends, axis=0)
    proof = found.certificate
    assert proof.exact and proof.converged and proof.delta == pytest.approx(0, abs=1e-5)
    assert (proof.f_input, proof.f_baseline) == pytest.approx((whole, nothing), abs=1e-5)
    assert np.nansum(found.word_scores) == pytest.approx(whole - nothing, abs=1e-4)
    assert np.nansum(found.scores) == pytest.approx(whole - nothing, abs=1e-4)


def test_sampled_panels_agree_with_enumeration_within_their_errors():
    model = tiny_loaded()
    case, target = tiny_case(model, EIGHT)
    exact = panel_shapley(model, case, target, absences=("dropped", "mean", "eos"))
    runs = [
        panel_shapley(model, case, target, absences=("dropped", "mean", "eos"), budget=100, tolerance=1e-9, seed=seed)
        for seed in range(12)
    ]
    errors = np.array([run.word_errors[1:] for run in runs])
    gaps = np.array([run.word_scores[1:] for run in runs]) - exact.word_scores[1:]
    assert (errors > 0).all() and np.mean(np.abs(gaps) < 3 * errors) > 0.95
    assert 0.5 < np.sqrt((gaps**2).mean() / (errors**2).mean()) < 1.6
    for run in runs:  # the range is widened by what the sample does not know
        assert (run.low[1:] <= run.word_scores[1:]).all() and (run.high[1:] >= run.word_scores[1:]).all()
    wider = np.mean([run.high[1:] - run.low[1:] for run in runs], axis=0)
    assert (wider > exact.high[1:] - exact.low[1:]).mean() > 0.8


def test_draws_widen_the_range_of_a_panel():
    model = tiny_loaded()
    case, target = tiny_case(model, FOUR)
    draws = over_all_orders(Removal(model, case, target, "sampled"))
    found = panel_shapley(model, case, target, absences=("sampled",))
    error = draws.std(1, ddof=1) / draws.shape[1] ** 0.5
    assert found.word_errors[1:] == pytest.approx(error, abs=1e-5)
    assert found.low[1:] == pytest.approx(draws.mean(1) - NORMAL_95 * error, abs=1e-5)
    assert found.stands[1:].tolist() == (np.abs(draws.mean(1)) > NORMAL_95 * error).tolist()


def test_the_panel_finds_what_a_planted_model_copies():
    case, _ = tiny_case(tiny_loaded(), "The capital of France is")
    unit = units(case)[3]
    model = planted_model(case.ids[unit.tokens[0]])
    found = panel_shapley(model, *tiny_case(model, "The capital of France is", answer=None))
    assert np.nanargmax(found.word_scores) == 3 and found.stands[3]


@pytest.mark.parametrize("absences", [(), ("mean", "mean")])
def test_a_panel_needs_different_absences(absences):
    model = tiny_loaded()
    with pytest.raises(UserError, match="expected at least one, each once"):
        panel_shapley(model, *tiny_case(model, FOUR), absences=absences)


def test_captum_enumerates_the_same():
    model = tiny_loaded()
    case, target = tiny_case(model, FOUR)
    removal = Removal(model, case, target, "hidden")

    def answer(rows):
        return torch.from_numpy(removal.without(rows.numpy() > 0)[:, 0])

    ones = torch.ones(1, 4, dtype=torch.float64)
    captums = ShapleyValues(answer).attribute(ones, baselines=0)[0].numpy()
    found = shapley(model, case, target, absence="hidden")
    assert found.word_scores[1:] == pytest.approx(captums, abs=1e-5)
    assert (found.word_errors[1:] == 0).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_samples_agree_with_enumeration_within_three_errors(eight, seed):
    model, case, target, truth = eight
    found = shapley(model, case, target, absence="mean", budget=240, tolerance=1e-9, seed=seed)
    scores, errors = found.word_scores[1:], found.word_errors[1:]
    assert (errors > 0).all() and (errors < 0.3 * np.abs(truth).max()).all()
    assert (np.abs(scores - truth) < 3 * errors).all()


def test_stated_errors_are_the_spread_between_seeds(eight):
    model, case, target, truth = eight
    runs = [shapley(model, case, target, absence="mean", budget=200, tolerance=1e-9, seed=seed) for seed in range(30)]
    scores = np.array([run.word_scores[1:] for run in runs])
    stated = np.sqrt(np.mean([run.word_errors[1:] ** 2 for run in runs], axis=0))
    ratio = stated / scores.std(0, ddof=1)
    assert (ratio > 0.6).all() and (ratio < 1.7).all()
    assert (np.abs(scores.mean(0) - truth) < 4 * scores.std(0, ddof=1) / 30**0.5).all()


@pytest.mark.parametrize("budget", [100, 1000])
@pytest.mark.parametrize("absence", ["mean", "zero", "dropped"])
def test_additive_scores_sum_to_the_whole(eight, budget, absence):
    model, case, target, _ = eight
    found = shapley(model, case, target, budget=budget, absence=absence)
    ends = Removal(model, case, target, absence).without(np.array([[True] * 8, [False] * 8])).mean(1)
    assert np.nansum(found.word_scores) == pytest.approx(ends[0] - ends[1], abs=1e-5)
    assert np.nansum(found.scores) == pytest.approx(ends[0] - ends[1], abs=1e-5)
    assert found.additive and np.isnan(found.scores[0])
    for unit, score in zip(units(case), found.word_scores, strict=True):
        assert unit.tokens == (0,) or sum(found.scores[list(unit.tokens)]) == pytest.approx(score)


def test_sampling_ends_when_the_error_is_small():
    model = tiny_loaded()
    case, target = tiny_case(model, TEN)
    rough = shapley(model, case, target, absence="mean", budget=1000, tolerance=0.5)
    fine = shapley(model, case, target, absence="mean", budget=1000, tolerance=1e-9)
    ends = Removal(model, case, target, "mean").without(np.array([[True] * 10, [False] * 10])).mean(1)
    assert np.nanmax(rough.word_errors) <= 0.5 * max(abs(ends[0] - ends[1]), 0.1)
    assert np.nanmean(fine.word_errors) < np.nanmean(rough.word_errors)


def test_sampled_absences_count_in_the_error(eight):
    model, case, target, _ = eight
    removal = Removal(model, case, target, "sampled")
    draws = exact_shapley(removal.without(all_subsets(8)))
    found = shapley(model, case, target, absence="sampled", budget=256)
    assert found.word_scores[1:] == pytest.approx(draws.mean(1), abs=1e-6)
    assert found.word_errors[1:] == pytest.approx(draws.std(1, ddof=1) / removal.draws**0.5, abs=1e-6)


@pytest.mark.parametrize("method", [shapley, panel_shapley])
def test_a_text_of_one_word(method):
    model = tiny_loaded()
    case, target = tiny_case(model, "Paris")
    found = method(model, case, target)
    assert len(found.word_scores) == 2
    ends = found.certificate.f_input - found.certificate.f_baseline
    assert found.word_scores[1] == pytest.approx(ends, abs=1e-5)


def test_the_budget_is_kept():
    model = tiny_loaded()
    case, target = tiny_case(model, " ".join([TEN] * 4))
    removals = [Removal(model, case, target, name) for name in ("mean", "eos")]
    assert len(removals[0].players) > 38
    panel_shapley(model, case, target, absences=("mean", "eos"), budget=400, tolerance=1e-9)
    for removal in removals:
        assert 150 < len(removal._known) <= 402  # both ends are asked for to know the scale


@pytest.mark.parametrize("method", [shapley, panel_shapley])
def test_a_budget_below_one_round(eight, method):
    least, enough = (method(*eight[:3], budget=budget) for budget in (1, 4 * 8))
    np.testing.assert_array_equal(least.word_scores, enough.word_scores)
    assert np.isfinite(least.word_errors[1:]).all() and least.certificate.converged
