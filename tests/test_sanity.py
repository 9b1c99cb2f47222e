"""Randomised weights: the model stays as it was, the copy does not, and pooled ranks are what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.integrated_gradients import integrated_gradients
from xai_utils.attribution.perturbation import ablation
from xai_utils.errors import UserError
from xai_utils.evaluation.sanity import layers, pooled_correlation, randomisation, randomised

TEXTS = ["The capital of France is", "The cat sat on the mat, and dogs ran", "Сколько планет в Солнечной системе?"]


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "gemma3", "qwen3"])
def test_layers_are_re_randomised_from_the_top_and_the_model_is_left_alone(architecture):
    model = tiny_loaded(architecture, **({} if architecture == "gpt2" else {"num_hidden_layers": 4}))
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    count = len(layers(model.model))
    for stage, broken in randomised(model, range(1, count + 1)):
        for position, (old, new) in enumerate(zip(layers(model.model), layers(broken.model), strict=True)):
            matrices = [pair for pair in zip(old.parameters(), new.parameters(), strict=True) if pair[0].ndim > 1]
            changed = position >= count - stage
            assert all(torch.equal(a, b) != changed for a, b in matrices)
            for a, b in matrices if changed else []:
                assert b.std() == pytest.approx(a.std().item(), rel=0.1)
        assert torch.equal(broken.embedding, model.embedding)
    after = model.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_the_same_seed_gives_the_same_model():
    model = tiny_loaded()
    ids = torch.tensor([[5, 6, 7]])
    outputs = [next(iter(randomised(model, [2], seed)))[1].model(input_ids=ids).logits for seed in (0, 0, 1)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2])


def test_stage_out_of_range():
    with pytest.raises(UserError, match="stage 3 is out of range; expected layers to randomise from 1 to 2"):
        list(randomised(tiny_loaded(), [3]))


def test_one_text_pooled_is_spearman():
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    found, low, high = pooled_correlation([(a, b)])
    assert found == pytest.approx(stats.spearmanr(a, b).statistic) and np.isnan([low, high]).all()


def test_pooling_ignores_levels_and_words_without_a_score():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=6) + 100 * text, rng.normal(size=6) + 100 * text) for text in range(40)]
    found, low, high = pooled_correlation(pairs)
    assert low < 0 < high and abs(found) < 0.2
    mean = np.mean([stats.spearmanr(a, b).statistic for a, b in pairs])
    assert found == pytest.approx(mean)  # texts of one length weigh the same
    with_gap = [(np.append(a, np.nan), np.append(b, 5.0)) for a, b in pairs]
    assert pooled_correlation(with_gap) == (found, low, high)


def test_the_interval_is_scipy_s_bootstrap():
    rng = np.random.default_rng(0)
    pairs = [(a, a + rng.normal(size=6)) for a in rng.normal(size=(30, 6))]
    found, low, high = pooled_correlation(pairs)

    ranks = np.array([[stats.rankdata(scores) for scores in pair] for pair in pairs]) - 3.5

    def correlation(index):
        a, b = ranks[index].swapaxes(0, 1).reshape(2, -1)
        return a @ b / np.sqrt(a @ a * (b @ b))

    theirs = stats.bootstrap((np.arange(30),), correlation, vectorized=False, method="percentile", n_resamples=4000)
    expected = theirs.confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert low < found < high


def test_the_table():
    model = tiny_loaded(num_hidden_layers=4)
    cases = [tiny_case(model, text) for text in TEXTS]
    table = randomisation(model, cases, ablation, "ablation")
    assert table["layers"].tolist() == [1, 2, 4] and table["share"].tolist() == [0.25, 0.5, 1]
    assert (table["texts"] == 3).all() and (table["words"] == 5 + 10 + 6).all()
    assert (table["low"] <= table["correlation"]).all() and (table["correlation"] <= table["high"]).all()


def test_what_did_not_converge_takes_no_part():
    model = tiny_loaded(num_hidden_layers=4)
    cases = [tiny_case(model, text) for text in TEXTS]

    def doubtful(model, case, target):
        found = integrated_gradients(model, case, target, tolerance=0.5, budget=100)
        verdict = replace(found.certificate, bound=0.0 if case.text == TEXTS[1] else 9.0, token_error=0.0)
        return replace(found, certificate=verdict)

    table = randomisation(model, cases, doubtful, "ig", [4])
    assert (table["texts"].item(), table["words"].item()) == (1, 10)
    assert -1 <= table["correlation"].item() <= 1


def test_what_reads_the_text_alone_survives_and_what_reads_the_model_does_not():
    model = tiny_loaded(num_hidden_layers=4)
    cases = [tiny_case(model, text) for text in TEXTS * 2]

    def by_norm(model, case, target):
        found = ablation(model, case, target)
        found.word_scores[:] = np.arange(len(found.word_scores))
        return found

    blind = randomisation(model, cases, by_norm, "position", [4])
    assert blind["correlation"].item() == pytest.approx(1)
    seeing = randomisation(model, cases, ablation, "ablation", [4])
    assert seeing["correlation"].item() < 0.6
