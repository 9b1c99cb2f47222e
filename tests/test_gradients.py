"""Gradient methods against captum called directly, and against each other."""

import captum.attr
import numpy as np
import pytest
import torch

from tests.test_path import case_of
from tests.tiny import tiny_loaded
from xai_utils.attribution import integrated_gradients
from xai_utils.attribution.absence import BASELINES, baseline_rows, shared_mean
from xai_utils.attribution.target import Objective, make_target
from xai_utils.errors import UserError
from xai_utils.models.batching import positions


@pytest.fixture(scope="module")
def model():
    return tiny_loaded("llama")


@pytest.fixture(scope="module")
def case(model):
    return case_of("The capital of France", " is Paris.", model)


def test_fixed_steps_equal_captum(model, case):
    target = make_target(model, case)
    found = integrated_gradients.fixed_steps(model, case, target)
    objective = Objective(model, case, target)
    direct, delta = captum.attr.IntegratedGradients(objective).attribute(
        objective.inputs[None],
        baselines=torch.zeros_like(objective.inputs[None]),
        n_steps=50,
        method="gausslegendre",
        return_convergence_delta=True,
    )
    expected = direct[0].sum(-1).numpy()
    assert np.allclose(found.scores, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert found.certificate.delta == pytest.approx(delta.item(), rel=1e-3, abs=1e-4)
    assert np.isnan(found.errors).all()
    assert found.sink == "moved"


def test_fixed_steps_need_no_gradient_at_the_zero_vector():
    """Twenty-eight RMSNorms multiply it by 316 each: it is infinite in float32, and the rule has no node there."""
    model = tiny_loaded("llama-28")
    case = case_of("The capital of France", " is Paris.", model)
    target = make_target(model, case)
    with pytest.raises(UserError, match="not finite"):
        Objective(model, case, target).values_and_gradients(torch.zeros(1, len(case.tokens), 64))
    assert np.isfinite(integrated_gradients.fixed_steps(model, case, target).scores).all()


@pytest.mark.parametrize("baseline", [name for name in BASELINES if name != "sampled"])
def test_certified_equals_fixed_on_a_smooth_path(model, case, baseline):
    target = make_target(model, case)
    certified = integrated_gradients.integrated_gradients(model, case, target, baseline=baseline, tolerance=0.001)
    fixed = integrated_gradients.fixed_steps(model, case, target, baseline=baseline, keep_sink=True, steps=400)
    assert certified.certified
    scale = certified.certificate.scale
    assert np.nanmax(np.abs(certified.scores - fixed.scores)) <= 0.002 * scale
    assert np.nansum(certified.scores) == pytest.approx(
        certified.certificate.f_input - certified.certificate.f_baseline, abs=0.001 * scale
    )


def test_kept_position_is_not_explained_and_not_zero(model, case):
    target = make_target(model, case)
    kept = integrated_gradients.integrated_gradients(model, case, target)
    moved = integrated_gradients.integrated_gradients(model, case, target, keep_sink=False)
    assert np.isnan(kept.scores[0])
    assert np.isnan(kept.word_scores[0])
    assert not np.isnan(kept.scores[1:]).any()
    assert not np.isnan(moved.scores).any()


def test_words_conserve_the_sum(model):
    case = case_of("Сколько планет в Солнечной системе?", " Восемь.", model)
    found = integrated_gradients.integrated_gradients(model, case, make_target(model, case))
    assert len(found.word_scores) < len(found.scores)
    assert np.nansum(found.word_scores) == pytest.approx(np.nansum(found.scores), abs=1e-9)


@pytest.mark.parametrize("method", [integrated_gradients.integrated_gradients, integrated_gradients.fixed_steps])
def test_what_stands_in_front_of_the_text_is_kept_out_of_the_passes(method, monkeypatch):
    """A path that leaves a long beginning alone runs through the model's layers without it, to the same scores."""
    model = tiny_loaded("llama")
    case = case_of("The capital of France is", " Paris.", model)
    kept = len(case.tokens) // 2
    monkeypatch.setattr(
        "xai_utils.attribution.absence.moved", lambda case, keep_sink: torch.arange(len(case.tokens)) >= kept
    )
    target = make_target(model, case)
    assert Objective(model, case, target).reuses_prefix and positions(model)  # tried and measured once a model
    lengths = []
    hook = model.model.model.layers[0].register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    found = method(model, case, target, keep_sink=True)
    short, lengths[:] = lengths[:], []
    monkeypatch.setattr("xai_utils.attribution.target.WORTH", 2)
    whole = method(model, case, target, keep_sink=True)
    hook.remove()
    length = len(case.tokens) + len(target.ids) - 1
    assert set(lengths) == {length}
    assert short.count(len(case.tokens)) == 1 and set(short) == {len(case.tokens), length - kept}
    assert np.allclose(found.scores, whole.scores, atol=1e-4, equal_nan=True)


def test_input_x_gradient_equals_captum(model, case):
    target = make_target(model, case)
    found = integrated_gradients.input_x_gradient(model, case, target)
    objective = Objective(model, case, target)
    direct = captum.attr.InputXGradient(objective).attribute(objective.inputs[None].clone().requires_grad_())
    assert np.allclose(found.scores[1:], direct[0].sum(-1).detach().numpy()[1:], rtol=1e-5, atol=1e-6)


def test_sampled_baseline_pools_its_draws(model, case):
    target = make_target(model, case)
    pooled = integrated_gradients.integrated_gradients(model, case, target, baseline="sampled", sequences=3)
    objective = Objective(model, case, target)
    starts = baseline_rows(model, case, "sampled", True, 0, 3)
    rise = float((objective.values(objective.inputs[None]) - objective.values(starts)).mean())
    assert pooled.certificate.f_input - pooled.certificate.f_baseline == pytest.approx(rise, abs=1e-5)
    assert np.nansum(pooled.scores) == pytest.approx(rise, abs=0.01 * pooled.certificate.scale + 1e-6)


def test_shared_mean_is_one_vector_for_a_pair():
    base, twin = tiny_loaded("llama", seed=0), tiny_loaded("llama", seed=0, label="twin")
    assert torch.allclose(shared_mean([base, twin]), base.embedding.double().mean(0).float(), atol=1e-7)
    other = tiny_loaded("llama", seed=0, hidden_size=64, head_dim=16)
    with pytest.raises(UserError, match="differ in width"):
        shared_mean([base, other])


def test_unknown_baseline_and_equal_input_are_said(model, case):
    target = make_target(model, case)
    with pytest.raises(UserError, match="did you mean 'mean'"):
        integrated_gradients.integrated_gradients(model, case, target, baseline="meen")
    single = case_of("a", " is Paris.", model)
    alone = single.__class__(**{**vars(single), "tokens": single.tokens[:1]})
    with pytest.raises(UserError, match="nothing to explain"):
        integrated_gradients.integrated_gradients(model, alone, make_target(model, alone))
