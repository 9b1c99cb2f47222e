"""Ablation and sensitivity against a loop over prompts changed by hand, one pass at a time."""

import numpy as np
import pytest
import torch

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.absence import baseline_rows
from xai_utils.attribution.masking import Removal
from xai_utils.attribution.noise import (
    deviation_with_error,
    dose_response,
    embedding_rms,
    sensitivity,
)
from xai_utils.attribution.perturbation import ablation
from xai_utils.attribution.target import Objective
from xai_utils.errors import UserError
from xai_utils.text.cases import units

TEXT = "The capital of France"  # a word of one token, and words of several


@pytest.fixture(scope="module", params=["logprob", "sum_logits", "contrast"])
def explained(request):
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT, kind=request.param, contrast=" Moscow.")
    assert {len(unit.tokens) for unit in units(case)} > {1}
    return model, case, target


def changed(model, case, target, positions, vectors):
    """F with some positions replaced: one pass, no batch."""
    objective = Objective(model, case, target)
    embeds = objective.inputs.clone()
    for position, vector in zip(positions, vectors, strict=True):
        embeds[position] = vector
    with torch.no_grad():
        return objective(embeds[None]).item()


@pytest.mark.parametrize(("absence", "keep_sink"), [("mean", True), ("zero", False), ("sampled", True)])
def test_ablation_equals_a_loop(explained, absence, keep_sink):
    model, case, target = explained
    found = ablation(model, case, target, absence=absence, keep_sink=keep_sink)
    rows, clean = baseline_rows(model, case, absence, keep_sink), changed(*explained, [], [])
    for position in range(len(case.tokens)):
        if keep_sink and position == 0:
            assert np.isnan(found.scores[0])
            continue
        drops = [clean - changed(*explained, [position], [row[position]]) for row in rows]
        assert found.scores[position] == pytest.approx(np.mean(drops), abs=1e-4 * max(1, abs(clean)))
    for index, unit in enumerate(units(case)):
        if keep_sink and 0 in unit.tokens:
            assert np.isnan(found.word_scores[index])
            continue
        drops = [clean - changed(*explained, unit.tokens, row[list(unit.tokens)]) for row in rows]
        assert found.word_scores[index] == pytest.approx(np.mean(drops), abs=1e-4 * max(1, abs(clean)))
        spread = np.std(drops, ddof=1) / len(drops) ** 0.5 if len(drops) > 1 else 0
        assert found.word_errors[index] == pytest.approx(spread, abs=1e-3 * max(1, abs(clean)))
    assert not found.additive and found.unit == target.unit and found.certificate is None


def test_sensitivity_equals_a_loop(explained):
    model, case, target = explained
    settings = {"sigma": 0.2, "draws": 5, "seed": 3}
    deviation = sensitivity(model, case, target, **settings)
    inputs, clean = Objective(model, case, target).inputs, changed(*explained, [], [])
    noise = [np.random.default_rng([3, p]).standard_normal((5, 32), dtype=np.float32) for p in range(len(case.tokens))]
    scale = 1e-4 * max(1, abs(clean))

    def values(positions):
        return np.array(
            [
                changed(*explained, positions, [inputs[p] + 0.2 * torch.from_numpy(noise[p][draw]) for p in positions])
                for draw in range(5)
            ]
        )

    for position in range(1, len(case.tokens)):
        alone = values([position])
        assert deviation.scores[position] == pytest.approx(alone.std(ddof=1), abs=scale)
    for index, unit in enumerate(units(case)):
        if unit.is_word:
            assert deviation.word_scores[index] == pytest.approx(values(unit.tokens).std(ddof=1), abs=scale)
    assert np.isnan(deviation.scores[0]) and np.isnan(deviation.word_scores[0]) and not deviation.additive


def test_the_original_moves_the_first_position_too():
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT, prefix="none")
    for method, settings in ((ablation, {"absence": "zero"}), (sensitivity, {})):
        found = method(model, case, target, keep_sink=False, **settings)
        assert np.isfinite(found.scores).all() and np.isfinite(found.word_scores).all() and found.sink == "moved"


def test_batches_do_not_change_the_noise(monkeypatch):
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT)
    whole = sensitivity(model, case, target, draws=6)
    monkeypatch.setattr("xai_utils.attribution.target.positions", lambda model: 20)
    pieces = sensitivity(model, case, target, draws=6)
    assert pieces.scores[1:] == pytest.approx(whole.scores[1:], abs=1e-5)


def test_noise_relative_to_the_embeddings():
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT)
    rms = float(model.embedding.square().mean() ** 0.5)
    assert embedding_rms(model) == pytest.approx(rms, rel=1e-6)
    relative = sensitivity(model, case, target, sigma=0.5, relative=True)
    absolute = sensitivity(model, case, target, sigma=0.5 * rms)
    assert relative.scores[1:] == pytest.approx(absolute.scores[1:], rel=1e-4)


def test_the_error_is_the_spread_between_seeds():
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT)
    runs = [sensitivity(model, case, target, seed=seed) for seed in range(24)]
    spread = np.std([run.scores[1:] for run in runs], axis=0, ddof=1)
    stated = np.mean([run.errors[1:] for run in runs], axis=0)
    assert (stated / spread > 0.6).all() and (stated / spread < 1.7).all()


def test_jackknife_of_normal_draws_has_the_textbook_error():
    values = np.random.default_rng(0).normal(0, 2, (200, 100))
    deviation, error = deviation_with_error(values)
    assert deviation.mean() == pytest.approx(2, rel=0.02)
    assert error.mean() == pytest.approx(2 / (2 * 99) ** 0.5, rel=0.05)


def test_dose_response_agrees_with_sensitivity_and_grows():
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT)
    table = dose_response(model, case, target, [1e-4, 0.01, 0.1, 3.0])
    found = sensitivity(model, case, target)
    at = table[table.sigma == 0.1]
    assert at.word.tolist() == [unit.text for unit in units(case)[1:]]
    assert at.deviation.tolist() == pytest.approx(found.word_scores[1:].tolist(), rel=1e-4)
    assert at.deviation_error.tolist() == pytest.approx(found.word_errors[1:].tolist(), rel=1e-3)
    clean = changed(model, case, target, [], [])
    noise = [np.random.default_rng([0, p]).standard_normal((30, 32), dtype=np.float32) for p in range(len(case.tokens))]
    inputs, word = Objective(model, case, target).inputs, units(case)[1].tokens
    noised = [[inputs[p] + 0.1 * torch.from_numpy(noise[p][draw]) for p in word] for draw in range(30)]
    moves = [abs(changed(model, case, target, word, rows) - clean) for rows in noised]
    assert at.mean_change.iloc[0] == pytest.approx(np.mean(moves), rel=1e-3)
    assert at.mean_change_error.iloc[0] == pytest.approx(np.std(moves, ddof=1) / 30**0.5, rel=1e-2)
    by_dose = table.groupby("sigma").mean(numeric_only=True)
    assert by_dose.deviation.is_monotonic_increasing
    assert by_dose.keeps_prediction.iloc[0] == 1 and by_dose.keeps_prediction.iloc[-1] < 1
    assert at.relative_sigma.iloc[0] == pytest.approx(0.1 / embedding_rms(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sigma": 0.0}, "sigma is 0.0"), ({"sigma": float("nan")}, "sigma is nan"), ({"draws": 2}, "draws is 2")],
)
def test_settings_out_of_range(settings, message):
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT)
    with pytest.raises(UserError, match=message):
        sensitivity(model, case, target, **settings)


def test_a_text_of_one_token_that_is_kept():
    model = tiny_loaded()
    case, target = tiny_case(model, "a", prefix="none", answer=None)
    for method, settings in ((ablation, {"absence": "mean"}), (sensitivity, {})):
        with pytest.raises(UserError, match="text 't'.*keep_sink: false"):
            method(model, case, target, **settings)
        assert np.isfinite(method(model, case, target, keep_sink=False, **settings).scores).all()


def test_france_is_among_the_largest(smollm2):
    case, target = tiny_case(smollm2, "The capital of France is", answer=" Paris")
    found = ablation(smollm2, case, target)
    order = np.argsort(-np.nan_to_num(found.scores, nan=-np.inf))
    assert " France" in [case.labels[position] for position in order[:2]]


@pytest.mark.parametrize("absence", ["dropped", "hidden"])
def test_ablation_removes_one_token_or_word(absence):
    """Against the prompt typed without the word, and against a mask; a token of a longer word goes alone too."""
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT)
    found = ablation(model, case, target, absence=absence)
    removal = Removal(model, case, target, absence)
    whole = removal.values(np.zeros((1, len(case.ids)), dtype=bool))[0, 0]
    for position in range(1, len(case.ids)):
        gone = np.arange(len(case.ids))[None] == position
        assert found.scores[position] == pytest.approx(whole - removal.values(gone)[0, 0], abs=1e-5)
    for index, unit in enumerate(units(case)):
        gone = np.isin(np.arange(len(case.ids)), unit.tokens)[None]
        if unit.is_word:
            assert found.word_scores[index] == pytest.approx(whole - removal.values(gone)[0, 0], abs=1e-5)
