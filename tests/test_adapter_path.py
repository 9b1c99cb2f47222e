"""The adapter path against very many plain steps, and against gradients taken by hand at weights between the models."""

import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.test_blend import is_input, twins
from tests.test_swap import TEXT, cases, retokenised
from tests.tiny import tiny_loaded
from xai_utils.attribution.adapter_path import WeightPath, adapter_path
from xai_utils.attribution.parts import make_pair
from xai_utils.attribution.swap import swap
from xai_utils.errors import UserError

DOUBLE = {"dtype": torch.float64}


def lora_twin(base, seed=3):
    """The base with a LoRA on all its linear layers merged in."""
    other = tiny_loaded("llama", label="lora", dtype=base.dtype)
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    merged = get_peft_model(other.model, config).merge_and_unload().eval().requires_grad_(False)
    return dataclasses.replace(other, model=merged)


def slopes_by_hand(base, other, both, alpha):
    """dF/dalpha of each module at each position, from activations of a model with the weights in between.

    For an affine module it is the gradient at its output times what the difference of the weights makes of its input.
    """
    model, mine, theirs = (
        tiny_loaded("llama", dtype=base.dtype).model,
        base.model.state_dict(),
        other.model.state_dict(),
    )
    model.load_state_dict({name: mine[name] + alpha * (theirs[name] - mine[name]) for name in mine})
    tops, seen = dict(other.model.named_modules()), {}

    def note(name):
        def hook(module, inputs, output):
            if not output.requires_grad:
                output.requires_grad_()
            output.retain_grad()
            seen[name] = (inputs[0], output)

        return hook

    for name, module in model.named_modules():
        if module._parameters and not is_input(name + "."):
            module.register_forward_hook(note(name))
    ids = torch.tensor([[*both[0].ids, *both[0].answer_ids[:-1]]])
    start, step = base.embed(ids), other.embed(ids) - base.embed(ids)
    embeds = (start + alpha * step).requires_grad_()
    answer = torch.tensor(both[0].answer_ids)
    logits = model(inputs_embeds=embeds).logits[0, -len(answer) :]
    value = logits.log_softmax(-1).gather(1, answer[:, None]).sum()
    value.backward()
    slopes = {"input rows": (embeds.grad * step).sum(-1)[0]} if step.any() else {}
    for name, (inputs, output) in seen.items():
        moved = tops[name](inputs) - base.model.get_submodule(name)(inputs)
        if moved.any():
            slopes[name] = (output.grad * moved).flatten(2).sum(-1)[0].detach()
    return value.item(), slopes


@pytest.mark.parametrize("make", [lambda base: lora_twin(base), lambda base: twins("llama", dtype=base.dtype)[1]])
def test_slopes_equal_gradients_by_hand(make):
    base = tiny_loaded("llama", label="base", **DOUBLE)
    other = make(base)
    both = cases(base, other)
    along = WeightPath(make_pair(base, other, *both, "logprob"))
    alphas = np.array([0.0, 0.35, 1.0])
    values, densities = along.densities(alphas)
    np.testing.assert_allclose(along.values(alphas), values, rtol=1e-10)
    for value, density, alpha in zip(values, densities, alphas, strict=True):
        plain, slopes = slopes_by_hand(base, other, both, alpha)
        assert value == pytest.approx(plain, rel=1e-6)  # norms compute in float32 whatever the weights are
        assert {place.name for place in along.modules} == set(slopes)
        for place, found in zip(along.modules, density.reshape(len(along.modules), -1), strict=True):
            np.testing.assert_allclose(found, slopes[place.name].numpy(), atol=1e-5 * np.abs(density).max())


def test_equals_20000_midpoint_steps():
    base = tiny_loaded("llama", label="base", **DOUBLE)
    other = lora_twin(base)
    both = cases(base, other, "The cat")
    found = adapter_path(base, other, *both, tolerance=1e-3, budget=400)
    assert found.certificate.converged
    along, plain = WeightPath(make_pair(base, other, *both, "logprob")), 0.0
    for alphas in np.split((np.arange(20000) + 0.5) / 20000, 40):
        plain = plain + along.densities(alphas)[1].sum(0) / 20000
    difference = np.abs(found.scores.ravel() - plain).max()
    assert difference <= 1e-3 * found.certificate.scale
    assert (np.abs(found.scores.ravel() - plain) <= found.errors.ravel() + 1e-5).all()


@pytest.mark.parametrize("kind", ["logprob", "contrast"])
def test_sums_to_the_difference_and_is_cut_by_module_word_and_layer(kind):
    base = tiny_loaded("llama", label="base")
    other = lora_twin(base)
    both = cases(base, other)
    found = adapter_path(base, other, *both, kind, budget=400)
    ends = [side.value() for side in make_pair(base, other, *both, kind).sides]
    assert found.certificate.converged
    assert [found.certificate.f_baseline, found.certificate.f_input] == pytest.approx(ends, abs=1e-4)
    assert found.scores.sum() == pytest.approx(ends[1] - ends[0], abs=0.01 * found.certificate.scale)
    assert {place.half for place in found.modules} == {"attention", "mlp"}  # LoRA leaves norms and head alone
    assert found.by_word.sum() == pytest.approx(found.scores.sum())
    assert found.by_layer(2).sum() == pytest.approx(found.scores.sum())
    fed = len(both[0].answer_ids) - 1 + (len(both[0].contrast_ids) - 1) * (kind == "contrast")
    assert found.scores.shape == (14, len(both[0].ids) + fed) and len(found.tokens) == found.scores.shape[1]
    words = ["<|endoftext|>", *TEXT.split()]
    assert [word for word, *_ in found.words[: len(words)]] == words and len(found.words) == len(words) + fed
    assert sum(row["score"] for row in found.rows()) == pytest.approx(found.scores.sum())
    assert sum(row["score"] for row in found.word_rows()) == pytest.approx(found.scores.sum())
    assert found.cancellation >= 1


def test_a_contrast_is_the_difference_of_its_two_answers():
    base = tiny_loaded("llama", label="base", **DOUBLE)
    other = lora_twin(base)
    both = cases(base, other)
    against = tuple(dataclasses.replace(case, answer_ids=case.contrast_ids) for case in both)
    width, alphas = len(both[0].ids), np.array([0.2, 0.8])
    slopes = [
        WeightPath(make_pair(base, other, *asked, kind)).densities(alphas)[1].reshape(2, 14, -1)
        for asked, kind in [(both, "contrast"), (both, "logprob"), (against, "logprob")]
    ]
    np.testing.assert_allclose(slopes[0][..., :width], (slopes[1] - slopes[2][..., : slopes[1].shape[2]])[..., :width])
    np.testing.assert_allclose(slopes[0][..., width : slopes[1].shape[2]], slopes[1][..., width:])
    np.testing.assert_allclose(slopes[0][..., slopes[1].shape[2] :], -slopes[2][..., width:])


def test_a_fully_tuned_checkpoint_goes_the_same_road():
    """Norms, rows, head and biases are parts like any other; GPT-2 has all of them, and absolute positions."""
    for architecture in ("qwen2", "gpt2"):
        base, other = twins(architecture)
        found = adapter_path(base, other, *cases(base, other, "The cat"), tolerance=0.05, budget=1000)
        assert found.certificate.converged
        assert found.scores.sum() == pytest.approx(
            found.certificate.f_input - found.certificate.f_baseline, abs=0.05 * found.certificate.scale
        )
        assert {place.half for place in found.modules} == {"input", "attention", "mlp", "rest", "head"}
        assert found.modules[0].name == "input rows"


def test_one_module_at_one_position_is_the_swap_of_that_module():
    """Where one module alone differs, all of the difference is its own, at whatever positions."""
    base = tiny_loaded("llama", label="base")
    other = tiny_loaded("llama", label="twin")
    other.model.model.layers[1].self_attn.v_proj.weight.mul_(1.5)
    both = cases(base, other)
    found, swapped = adapter_path(base, other, *both), swap(base, other, *both)
    (part,) = swapped.parts
    assert (part.layers, part.half) == ((1,), "attention")
    assert found.scores.sum() == pytest.approx(swapped.scores[0], abs=0.01 * found.certificate.scale)
    assert found.scores.shape[0] == 1


def refused(said, base, other, *arguments, **keys):
    with pytest.raises(UserError, match=said) as caught:
        adapter_path(base, other, *arguments, **keys)
    assert "\n" not in str(caught.value)


def test_bad_input_is_said_in_one_line():
    base = tiny_loaded("llama", label="base")
    other = lora_twin(base)
    refused("use swap attribution", base, retokenised(other), *cases(base, retokenised(other)))
    copy = tiny_loaded("llama", label="copy")
    refused("the same weights wherever text 't' passes", base, copy, *cases(base, copy))
    deep = tiny_loaded("llama-28")
    refused("only word scores can be compared", base, deep, *cases(base, deep))
    refused("sum_logits", base, other, *cases(base, other), "sum_logits")
    refused("tolerance is 0", base, other, *cases(base, other), tolerance=0.0)
    turned = tiny_loaded("llama", label="twin", rope_parameters={"rope_type": "default", "rope_theta": 10.0})
    turned.model.lm_head.weight[0] += 1
    refused("differ in more than their weights", base, turned, *cases(base, turned))
