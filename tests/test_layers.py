"""The deletion test of layers against models put together by hand, and the bridge against models that stand on it."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from tests.test_adapter_path import lora_twin
from tests.test_blend import twins
from tests.test_swap import cases, retokenised
from tests.tiny import tiny_loaded
from xai_utils.attribution.adapter_path import adapter_path
from xai_utils.attribution.bridge import bridge
from xai_utils.attribution.swap import swap
from xai_utils.errors import UserError
from xai_utils.evaluation.layers import group_scores, layer_deletion, rank_correlation


def six_layers(weights):
    """Two models whose layers differ by so much each."""
    base, other = (tiny_loaded("llama", label=label, num_hidden_layers=6) for label in ("base", "twin"))
    generator = torch.Generator().manual_seed(2)
    for layer, weight in zip(other.model.model.layers, weights, strict=True):
        for module in (layer.self_attn.v_proj, layer.mlp.down_proj):
            module.weight += weight * torch.randn(module.weight.shape, generator=generator)
    return base, other


def answer_value(model, case):
    ids = torch.tensor([[*case.ids, *case.answer_ids[:-1]]])
    logits = model(ids).logits[0, -len(case.answer_ids) :].log_softmax(-1)
    return float(logits[range(len(case.answer_ids)), case.answer_ids].sum())


def test_undoing_layers_equals_models_by_hand():
    base, other = six_layers([0.02, 0.2, 0.05, 0.3, 0.02, 0.1])
    both = cases(base, other)
    scores = adapter_path(base, other, *both).by_layer(6)
    found = layer_deletion(base, other, *both, scores, removed=2, draws=30)
    f_base, f_other = (answer_value(model.model, both[0]) for model in (base, other))

    def undone(layers):
        model = dataclasses.replace(other, model=_without(base, other, layers)).model
        return (f_other - answer_value(model, both[0])) / (f_other - f_base)

    every = {layers: undone(layers) for layers in itertools.combinations(range(6), 2)}
    assert found.highest == pytest.approx(every[found.highest_layers], abs=1e-3)
    first = int(np.argmax([undone([layer]) for layer in range(6)]))
    greedy = max(value for layers, value in every.items() if first in layers)
    assert found.best == pytest.approx(max(greedy, every[found.highest_layers]), abs=1e-3)
    assert found.best_layers in every and set(np.round(found.random, 3)) <= set(np.round([*every.values()], 3) + 0.0)
    towards = scores * np.sign(f_other - f_base)
    assert set(found.highest_layers) == set(np.argsort(-towards)[:2].tolist())
    assert found.share <= 1 + 1e-9 and found.row()["removed"] == 2
    assert found.lowest == pytest.approx(every[tuple(sorted(np.argsort(towards)[:2].tolist()))], abs=1e-3)


def _without(base, other, layers):
    state = other.model.state_dict()
    mine = base.model.state_dict()
    undone = {name: mine[name] for name in state if any(f"layers.{layer}." in name for layer in layers)}
    model = tiny_loaded("llama", num_hidden_layers=6).model
    model.load_state_dict(state | undone)
    return model


def test_a_layer_that_matters_is_told_from_those_that_do_not():
    """One layer changed much and five next to nothing: undoing the map's first undoes nearly all."""
    base, other = six_layers([1e-4, 1e-4, 1e-4, 0.3, 1e-4, 1e-4])
    both = cases(base, other)
    found = layer_deletion(base, other, *both, adapter_path(base, other, *both).by_layer(6), removed=1)
    assert found.highest_layers == found.best_layers == (3,) and found.highest == pytest.approx(1, abs=0.01)
    assert found.share == pytest.approx(1) and abs(found.lowest) < 0.01


def test_path_and_swap_are_summed_over_the_same_groups():
    base, other = six_layers([0.002, 0.02, 0.005, 0.03, 0.002, 0.01])
    both = cases(base, other)
    path, swapped = adapter_path(base, other, *both), swap(base, other, *both)
    rows = pd.DataFrame(path.rows()), pd.DataFrame(swapped.rows())
    found = group_scores(*rows)
    assert found.shape == (2, len(swapped.parts)) and len(swapped.parts) == 8
    assert found[1].sum() == pytest.approx(path.scores.sum())
    first = sum(
        score
        for place, score in zip(path.modules, path.scores.sum(1), strict=True)
        if place.layer in swapped.parts[0].layers and "v_proj" in place.module
    )
    assert found[1, 0] == pytest.approx(first)
    np.testing.assert_allclose(found[0], found[1], atol=0.05 * np.abs(found[0]).max())  # small steps: nearly linear
    assert rank_correlation(*rows) > 0.9


def test_bad_settings_are_said_in_one_line():
    base, other = six_layers([0.1] * 6)
    both = cases(base, other)
    for said, scores, removed in [("6 of 6 adapted", [1.0] * 6, 6), ("scores of 3", [1.0] * 3, 2)]:
        with pytest.raises(UserError, match=said):
            layer_deletion(base, other, *both, scores, removed=removed)
    base, other = six_layers([1e-7] * 6)
    with pytest.raises(UserError, match="nothing can be undone"):
        layer_deletion(base, other, *both, [1.0] * 6, removed=2)


def substituted():
    """A base, a twin with another tokenizer and trained rows, and the twin with its rows untrained; all tied."""
    base = tiny_loaded("llama-tied", label="base")
    models = []
    for label, trained in [("twin", 0.4), ("twin-untrained", 0.0)]:
        model = retokenised(tiny_loaded("llama-tied", label=label, role="adapted"))
        generator = torch.Generator().manual_seed(3)
        table = model.model.get_input_embeddings().weight
        table[250:] += 0.3 * torch.randn(table[250:].shape, generator=generator)
        table[200:] += trained * torch.randn(table[200:].shape, generator=generator)
        models.append(model)
    return base, *models


def test_the_bridge_s_steps_are_models_and_sum_to_the_difference():
    base, other, untrained = substituted()
    both = cases(base, other)
    found = bridge(base, other, *both, untrained=untrained)
    assert found.steps == ("tokenizer", "input_rows", "output_rows")
    values = [found.f_base, *(found.f_base + np.cumsum(found.scores))]
    alone = [answer_value(model.model, case) for model, case in [(base, both[0]), (untrained, both[1])]]
    assert values[:2] == pytest.approx(alone, abs=1e-4)
    answer = both[1].answer_ids
    prompt, fed = other.embed(torch.tensor(both[1].ids)), untrained.embed(torch.tensor(answer[:-1]))
    logits = untrained.model(inputs_embeds=torch.cat([prompt, fed])[None]).logits[0, -len(answer) :].log_softmax(-1)
    assert values[2] == pytest.approx(float(logits[range(len(answer)), answer].sum()), abs=1e-4)
    assert values[3] == pytest.approx(answer_value(other.model, both[1]), abs=1e-4)
    assert found.scores.sum() == pytest.approx(found.f_other - found.f_base, abs=1e-9)
    assert found.scores.sum() == pytest.approx(swap(base, other, *both).scores.sum(), abs=2e-4)


def test_a_bridge_has_the_steps_that_there_are():
    base, other, _ = substituted()
    assert bridge(base, other, *cases(base, other)).steps == ("input_rows", "output_rows")
    base, other = twins("llama")
    found = bridge(base, other, *cases(base, other))
    assert found.steps == ("input_rows", "output_rows", "body")
    base = tiny_loaded("llama", label="base")
    other = lora_twin(base)
    found = bridge(base, other, *cases(base, other))
    assert [row["step"] for row in found.rows()] == ["body"]
    assert found.scores[0] == pytest.approx(found.f_other - found.f_base)


def test_controls_that_are_none_are_refused():
    base, other, untrained = substituted()
    both = cases(base, other)
    with pytest.raises(UserError, match="expected the same tokenizer"):
        bridge(base, other, *both, untrained=base)
    untrained.model.model.layers[0].mlp.up_proj.weight[0] += 1
    with pytest.raises(UserError, match="more than its rows"):
        bridge(base, other, *both, untrained=untrained)
