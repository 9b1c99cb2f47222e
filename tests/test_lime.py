"""LIME against regressions solved by hand."""

import numpy as np
import pytest

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.lime import lime, lime_draw, lime_fit, lime_frequency
from xai_utils.attribution.masking import Removal
from xai_utils.attribution.subsets import all_subsets


@pytest.fixture(scope="module")
def eight():
    model = tiny_loaded()
    return model, *tiny_case(model, "The capital of France is a garden.")


def test_lime_is_a_regression_solved_directly(eight):
    model, case, target = eight
    generator = np.random.default_rng(5)
    masks = np.concatenate([np.ones((1, 8), bool), [lime_draw(generator, 8) for _ in range(99)]])
    values = Removal(model, case, target, "mean").without(masks)[:, 0]
    cosine = masks @ np.ones(8) / (np.linalg.norm(masks, axis=1).clip(1e-9) * 8**0.5)
    root = np.exp(-((100 * (1 - cosine)) ** 2) / 25**2) ** 0.25  # square root of the weight, as lime's package has it
    system = np.hstack([masks * root[:, None], root[:, None]])
    penalty = np.eye(9)
    penalty[8, 8] = 0
    solved = np.linalg.lstsq(np.vstack([system, penalty]), np.append(values * root, np.zeros(9)), rcond=None)[0]
    found = lime(model, case, target, absence="mean", budget=100, tolerance=1e-9, seed=5)
    assert found.word_scores[1:] == pytest.approx(solved[:8], abs=1e-4)
    assert not found.additive and found.certificate is None


def test_lime_over_all_subsets_is_the_limit_of_sampling(eight):
    model, case, target = eight
    runs = [lime(model, case, target, absence="mean", budget=255, tolerance=1e-9, seed=seed) for seed in range(40)]
    scores = np.array([run.word_scores[1:] for run in runs])
    limit = lime(model, case, target, absence="mean", budget=256)
    assert (limit.word_errors[1:] == 0).all()
    assert (np.abs(scores.mean(0) - limit.word_scores[1:]) < 4 * scores.std(0, ddof=1) / 40**0.5).all()
    stated = np.sqrt(np.mean([run.word_errors[1:] ** 2 for run in runs], axis=0))
    ratio = stated / scores.std(0, ddof=1)
    assert (ratio > 0.6).all() and (ratio < 1.7).all()


def test_frequencies_are_those_of_its_draws():
    masks, generator = all_subsets(3), np.random.default_rng(0)
    drawn = np.array([lime_draw(generator, 3) for _ in range(20000)]) @ [1, 2, 4]
    expected = lime_frequency(masks, 20001)
    assert np.bincount(drawn, minlength=8)[:7] == pytest.approx(expected[:7], rel=0.06) and expected[7] == 1


def test_a_linear_function_is_recovered():
    masks = all_subsets(6)
    truth = np.array([3.0, -1, 0, 2, 0.5, -4])
    scores, errors = lime_fit(masks, (masks @ truth + 7)[:, None], np.full(64, 1e6))
    assert scores[:, 0] == pytest.approx(truth, abs=1e-3) and errors == pytest.approx(0, abs=1e-3)


def test_the_budget_is_kept_and_sampling_ends_early():
    model = tiny_loaded()
    case, target = tiny_case(model, " ".join(["The cat sat on the mat, and dogs ran"] * 4))
    removal = Removal(model, case, target, "mean")
    rough = lime(model, case, target, absence="mean", budget=1000, tolerance=0.5)
    few = len(removal._known)
    fine = lime(model, case, target, absence="mean", budget=400, tolerance=1e-9)
    assert few < 400 and len(removal._known) <= 402
    assert np.nanmean(fine.word_errors) < np.nanmean(rough.word_errors)


def test_one_word_and_too_small_a_budget(eight):
    model = tiny_loaded()
    found = lime(model, *tiny_case(model, "Paris"))
    assert np.isfinite(found.word_scores[1])
    least, enough = (lime(*eight, budget=budget) for budget in (1, 4 * 8))
    np.testing.assert_array_equal(least.word_scores, enough.word_scores)
