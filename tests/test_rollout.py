"""Rollout against a sum over all paths, and the attribution methods against the weights they come from."""

import itertools

import numpy as np
import pytest
import torch

from tests.test_attention import case_of
from tests.tiny import tiny_loaded
from xai_utils.attention import layers as weights_of
from xai_utils.attribution import rollout
from xai_utils.attribution.target import make_target
from xai_utils.text.cases import word_weights


def test_rollout_is_the_sum_over_all_paths():
    model = tiny_loaded("llama")
    case = case_of(model, "The cat sat")
    mean = weights_of.weights(model, case).double().mean(1).numpy()
    length = len(case.tokens)
    step = [[[(mean[layer, i, j] + (i == j)) / 2 for j in range(length)] for i in range(length)] for layer in range(2)]
    expected = np.zeros((length, length))
    for query, between, key in itertools.product(range(length), repeat=3):
        expected[query, key] += step[1][query][between] * step[0][between][key]
    found = rollout.rollout_matrix(model, case).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1)


def test_drift_of_uniform_attention_is_the_methods_own():
    model = tiny_loaded("llama", num_hidden_layers=3)
    case = case_of(model)
    for layer in model.model.model.layers:
        layer.self_attn.q_proj.weight.zero_()  # all scores alike: the model itself attends uniformly
    found = rollout.drift(model, case)
    np.testing.assert_allclose(found["rollout"], found["rollout_uniform"], rtol=1e-6)
    assert found["layer"].tolist() == [0, 1, 2] and found["rollout"].is_monotonic_increasing
    length = len(case.tokens)
    assert found["rollout"][0] == pytest.approx(np.mean([0.5 / n for n in range(2, length + 1)]))


@pytest.mark.parametrize("keep_sink", [True, False])
def test_attention_as_a_method_is_the_last_row(keep_sink):
    model = tiny_loaded("llama")
    case = case_of(model)
    found = rollout.attention(model, case, make_target(model, case), keep_sink=keep_sink)
    expected = weights_of.weights(model, case).double().mean((0, 1))[-1].numpy()
    if keep_sink:
        assert np.isnan(found.scores[0]) and found.sink == "kept"
    else:
        assert found.scores.sum() == pytest.approx(1, abs=1e-6) and found.sink == "moved"
    np.testing.assert_allclose(found.scores[1:], expected[1:], rtol=1e-6)
    assert not found.additive and found.baseline == "" and found.certificate is None
    shares = word_weights(case)
    word = 3
    assert found.word_scores[word] == pytest.approx(sum(expected[t] * shares[t, word] for t in range(len(expected))))


def test_rollout_as_a_method_is_its_last_row():
    model = tiny_loaded("gpt2")
    case = case_of(model)
    target = make_target(model, case, "sum_logits")
    found = rollout.rollout(model, case, target, keep_sink=False)
    np.testing.assert_allclose(found.scores, rollout.rollout_matrix(model, case)[-1].numpy())
    assert torch.isfinite(torch.from_numpy(found.word_scores)).all()
    assert found.unit == "share of attention" and np.isnan(found.errors).all()
