"""Shapley values, LIME and occlusion against enumeration, captum, and regressions solved by hand."""

from itertools import permutations

import numpy as np
import pytest
import torch
from captum.attr import ShapleyValues

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.masking import Presence, all_subsets
from xai_utils.attribution.perturbation import ablation
from xai_utils.attribution.shapley import (
    _lime_draw,
    _lime_frequency,
    exact_shapley,
    kernel_shap,
    lime,
    lime_fit,
    occlusion,
    shapley,
)
from xai_utils.errors import UserError
from xai_utils.text.cases import units

EIGHT = "The capital of France is a garden."
TEN = "The cat sat on the mat, and dogs ran"


@pytest.fixture(scope="module")
def eight():
    model = tiny_loaded()
    case, target = tiny_case(model, EIGHT)
    presence = Presence(model, case, target)
    assert len(presence.players) == 8
    return model, case, target, exact_shapley(presence.removing(all_subsets(8)))[:, 0]


def test_enumeration_is_the_mean_over_all_orders():
    values = np.random.default_rng(0).normal(size=16)
    total = np.zeros(4)
    for order in permutations(range(4)):
        here = 0
        for player in order:
            total[player] += values[here | 1 << player] - values[here]
            here |= 1 << player
    assert exact_shapley(values) == pytest.approx(total / 24)


def test_captum_enumerates_the_same():
    model = tiny_loaded()
    case, target = tiny_case(model, "The capital of France")
    presence = Presence(model, case, target)

    def answer(rows):
        return torch.from_numpy(presence.removing(rows.numpy() > 0)[:, 0])

    ones = torch.ones(1, 4, dtype=torch.float64)
    theirs = ShapleyValues(answer).attribute(ones, baselines=0)[0].numpy()
    found = shapley(model, case, target)
    assert found.word_scores[1:] == pytest.approx(theirs, abs=1e-6)
    assert (found.word_errors[1:] == 0).all()


@pytest.mark.parametrize("method", [shapley, kernel_shap])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_samples_agree_with_enumeration_within_three_errors(eight, method, seed):
    model, case, target, truth = eight
    found = method(model, case, target, budget=240, tolerance=1e-9, seed=seed)
    scores, errors = found.word_scores[1:], found.word_errors[1:]
    assert (errors > 0).all() and (errors < 0.3 * np.abs(truth).max()).all()
    assert (np.abs(scores - truth) < 3 * errors).all()


@pytest.mark.parametrize("method", [shapley, kernel_shap])
def test_stated_errors_are_the_spread_between_seeds(eight, method):
    model, case, target, truth = eight
    runs = [method(model, case, target, budget=200, tolerance=1e-9, seed=seed) for seed in range(30)]
    scores = np.array([run.word_scores[1:] for run in runs])
    stated = np.sqrt(np.mean([run.word_errors[1:] ** 2 for run in runs], axis=0))
    ratio = stated / scores.std(0, ddof=1)
    assert (ratio > 0.6).all() and (ratio < 1.7).all()
    assert (np.abs(scores.mean(0) - truth) < 4 * scores.std(0, ddof=1) / 30**0.5).all()


@pytest.mark.parametrize("method", [shapley, kernel_shap])
@pytest.mark.parametrize("budget", [100, 1000])
@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_additive_scores_sum_to_the_whole(eight, method, budget, baseline):
    model, case, target, _ = eight
    found = method(model, case, target, budget=budget, baseline=baseline)
    ends = Presence(model, case, target, baseline).removing(np.array([[True] * 8, [False] * 8])).mean(1)
    assert np.nansum(found.word_scores) == pytest.approx(ends[0] - ends[1], abs=1e-5)
    assert np.nansum(found.scores) == pytest.approx(ends[0] - ends[1], abs=1e-5)
    assert found.additive and np.isnan(found.scores[0])
    for unit, score in zip(units(case), found.word_scores, strict=True):
        assert unit.tokens == (0,) or sum(found.scores[list(unit.tokens)]) == pytest.approx(score)


def test_kernel_shap_over_all_subsets_is_exact(eight):
    model, case, target, truth = eight
    found = kernel_shap(model, case, target)
    assert found.word_scores[1:] == pytest.approx(truth, abs=1e-5) and (found.word_errors[1:] == 0).all()


def test_sampling_ends_when_the_error_is_small():
    model = tiny_loaded()
    case, target = tiny_case(model, TEN)
    for method in (shapley, kernel_shap, lime):
        rough = method(model, case, target, budget=1000, tolerance=0.5)
        fine = method(model, case, target, budget=1000, tolerance=1e-9)
        presence = Presence(model, case, target)
        ends = presence.removing(np.array([[True] * 10, [False] * 10])).mean(1)
        scale = max(abs(ends[0] - ends[1]), 0.1)
        assert np.nanmax(rough.word_errors) <= 0.5 * scale
        assert np.nanmean(fine.word_errors) < np.nanmean(rough.word_errors)


def test_sampled_baselines_count_in_the_error(eight):
    model, case, target, _ = eight
    presence = Presence(model, case, target, "sampled")
    draws = exact_shapley(presence.removing(all_subsets(8)))
    found = shapley(model, case, target, baseline="sampled", budget=256 * 8)
    assert found.word_scores[1:] == pytest.approx(draws.mean(1), abs=1e-6)
    assert found.word_errors[1:] == pytest.approx(draws.std(1, ddof=1) / 8**0.5, abs=1e-6)


def test_numpy_is_left_as_it_was(eight):
    model, case, target, _ = eight
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    kernel_shap(model, case, target, budget=200)
    assert np.random.rand() == expected


def test_lime_is_a_regression_solved_directly(eight):
    model, case, target, _ = eight
    generator = np.random.default_rng(5)
    masks = np.concatenate([np.ones((1, 8), bool), [_lime_draw(generator, 8) for _ in range(99)]])
    values = Presence(model, case, target).removing(masks)[:, 0]
    cosine = masks @ np.ones(8) / (np.linalg.norm(masks, axis=1).clip(1e-9) * 8**0.5)
    root = np.exp(-((100 * (1 - cosine)) ** 2) / 25**2) ** 0.25  # square root of the weight, as lime's package has it
    system = np.hstack([masks * root[:, None], root[:, None]])
    penalty = np.eye(9)
    penalty[8, 8] = 0
    solved = np.linalg.lstsq(np.vstack([system, penalty]), np.append(values * root, np.zeros(9)), rcond=None)[0]
    found = lime(model, case, target, budget=100, tolerance=1e-9, seed=5)
    assert found.word_scores[1:] == pytest.approx(solved[:8], abs=1e-5)
    assert not found.additive


def test_lime_over_all_subsets_is_the_limit_of_sampling(eight):
    model, case, target, _ = eight
    runs = [lime(model, case, target, budget=255, tolerance=1e-9, seed=seed) for seed in range(40)]
    scores = np.array([run.word_scores[1:] for run in runs])
    limit = lime(model, case, target, budget=256)
    assert (limit.word_errors[1:] == 0).all()
    assert (np.abs(scores.mean(0) - limit.word_scores[1:]) < 4 * scores.std(0, ddof=1) / 40**0.5).all()
    stated = np.sqrt(np.mean([run.word_errors[1:] ** 2 for run in runs], axis=0))
    ratio = stated / scores.std(0, ddof=1)
    assert (ratio > 0.6).all() and (ratio < 1.7).all()


def test_lime_frequencies_are_those_of_its_draws():
    masks, generator = all_subsets(3), np.random.default_rng(0)
    drawn = np.array([_lime_draw(generator, 3) for _ in range(20000)]) @ [1, 2, 4]
    expected = _lime_frequency(masks, 20001)
    assert np.bincount(drawn, minlength=8)[:7] == pytest.approx(expected[:7], rel=0.06) and expected[7] == 1


def test_lime_recovers_a_linear_function():
    masks = all_subsets(6)
    truth = np.array([3.0, -1, 0, 2, 0.5, -4])
    scores, errors = lime_fit(masks, (masks @ truth + 7)[:, None], np.full(64, 1e6))
    assert scores[:, 0] == pytest.approx(truth, abs=1e-3) and errors == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("baseline", ["mean", "sampled"])
def test_occlusion_is_the_mean_over_windows(eight, baseline):
    model, case, target, _ = eight
    presence = Presence(model, case, target, baseline)
    found = occlusion(model, case, target, baseline=baseline, window=3)
    clean = presence.removing(np.ones((1, 8)))[0]
    drops = []
    for start in range(6):
        present = np.ones((1, 8))
        present[0, start : start + 3] = 0
        drops.append(clean - presence.removing(present)[0])
    for word in range(8):
        covering = np.array([drops[start] for start in range(6) if start <= word < start + 3]).mean(0)
        assert found.word_scores[word + 1] == pytest.approx(covering.mean(), abs=1e-5)
        error = covering.std(ddof=1) / 8**0.5 if baseline == "sampled" else 0
        assert found.word_errors[word + 1] == pytest.approx(error, abs=1e-5)


def test_a_window_of_one_is_ablation(eight):
    model, case, target, _ = eight
    one, alone = occlusion(model, case, target, window=1), ablation(model, case, target)
    assert one.word_scores[1:] == pytest.approx(alone.word_scores[1:], abs=1e-5)


@pytest.mark.parametrize("method", [shapley, kernel_shap, lime, occlusion])
def test_a_text_of_one_word(method):
    model = tiny_loaded()
    case, target = tiny_case(model, "Paris")
    found = method(model, case, target)
    assert len(found.word_scores) == 2 and np.isfinite(found.word_scores[1])
    if method is not lime:  # whose ridge penalty shrinks
        whole = Presence(model, case, target).removing(np.array([[1], [0]]))[:, 0]
        assert found.word_scores[1] == pytest.approx(whole[0] - whole[1], abs=1e-5)


@pytest.mark.parametrize("method", [shapley, kernel_shap, lime])
def test_the_budget_is_kept(method):
    model = tiny_loaded()
    case, target = tiny_case(model, " ".join([TEN] * 4))
    presence = Presence(model, case, target)
    assert len(presence.players) > 38
    method(model, case, target, budget=400, tolerance=1e-9)
    assert 150 < len(presence._known) <= 402  # both ends are asked for to know the scale


@pytest.mark.parametrize("method", [shapley, kernel_shap, lime])
def test_a_budget_below_one_round(eight, method):
    with pytest.raises(UserError, match="budget of 20 is below one round of"):
        method(*eight[:3], budget=20)


def test_a_window_below_one(eight):
    with pytest.raises(UserError, match="window is 0"):
        occlusion(*eight[:3], window=0)
