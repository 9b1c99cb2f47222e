"""Groups of heads: a model built by hand is found to have what was built in, and scores equal a plain loop."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.test_attention import case_of, random_causal
from tests.tiny import VOCABULARY, tiny_loaded, tiny_tokenizer
from xai_utils.attention.heads import GROUPS, group_heads, induction, probe_ids
from xai_utils.attention.layers import head_table, statistics, stream, uniform
from xai_utils.errors import UserError
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel

CODE = 64  # numbers in a token's random code of +-1
TURNING = 24  # rotary pairs that turn fast enough to tell positions apart; the others carry codes unturned


def induction_model() -> LoadedModel:
    """Two layers by hand: head 1 of the first copies the previous token's code, head 0 of the second seeks its own.

    Hidden: [constant, own code, previous code, nothing]. The other heads have no weights, so they attend to all alike.
    """
    size, width = 2 * (TURNING + CODE), 2 + 2 * CODE
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=size,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.zero_()
    codes = torch.randint(2, (VOCABULARY, CODE), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    model.model.embed_tokens.weight[:, 0] = 1
    model.model.embed_tokens.weight[:, 1 : 1 + CODE] = codes
    own, previous = slice(1, 1 + CODE), slice(1 + CODE, 1 + 2 * CODE)
    unturned = slice(size // 2 - CODE, size // 2)  # the slowest pairs of the first half
    first, second = (layer.self_attn for layer in model.model.layers)
    back = 1e12 ** (-2 * torch.arange(TURNING) / size)  # a key turned one position ahead meets the next query
    first.q_proj.weight[size : size + TURNING, 0] = 20
    first.k_proj.weight[size : size + TURNING, 0] = 20 * torch.cos(back)
    first.k_proj.weight[size + size // 2 : size + size // 2 + TURNING, 0] = 20 * torch.sin(back)
    first.v_proj.weight[size : size + CODE, own] = torch.eye(CODE)
    first.o_proj.weight[previous, size : size + CODE] = torch.eye(CODE)
    second.q_proj.weight[unturned, own] = 4 * torch.eye(CODE)
    second.k_proj.weight[unturned, previous] = 4 * torch.eye(CODE)
    entry = ModelEntry(label="by-hand", model="tiny/by-hand")
    return LoadedModel(entry, model, tiny_tokenizer(), "by-hand")


def test_a_model_built_with_an_induction_head_is_found_to_have_it():
    model = induction_model()
    scores = induction(model)
    assert scores[1, 0] > 0.9 and np.delete(scores.ravel(), 2).max() < 0.1
    heads = group_heads(head_table(model, case_of(model)), scores)
    assert heads["group"].tolist() == ["broad", "previous", "induction", "broad"]
    assert heads["example"].sum() == 3


def test_induction_equals_a_loop_over_repeated_tokens():
    model = tiny_loaded("llama")
    scores = induction(model, draws=2)
    expected = np.zeros((2, 2, 4))
    for draw in range(2):
        ids, layers = probe_ids(model, seed=draw), []
        stream(model, ids, layers.append)
        for query in range(26, 51):
            follower = ids[1:].index(ids[query]) + 2  # the probe starts with one token that is not repeated
            assert follower <= 26
            for layer in layers:
                expected[draw, layer.index] += layer.weights[:, query, follower].numpy() / 25
    np.testing.assert_allclose(scores, expected.mean(0), rtol=1e-5)


def test_probe_repeats_different_ordinary_tokens_behind_the_start():
    model = tiny_loaded("llama")
    ids = probe_ids(model, seed=3)
    assert ids[0] == model.document_start == 0 and ids[1:26] == ids[26:]
    assert len(set(ids[1:])) == 25 and not set(ids[1:]) & set(model.tokenizer.all_special_ids)
    assert ids != probe_ids(model, seed=4) and ids == probe_ids(model, seed=3)
    assert probe_ids(tiny_loaded("llama", bos=True))[0] == 1
    with pytest.raises(UserError, match="expected at least 600"):
        probe_ids(model, length=600)


def table_of(*matrices: torch.Tensor) -> pd.DataFrame:
    found = statistics(torch.stack(matrices))
    numbers = {name: value.numpy() for name, value in found.items()}
    heads = range(len(matrices))
    return pd.DataFrame({"layer": 0, "head": heads, "tokens": matrices[0].shape[-1], **numbers})


def test_heads_made_for_a_group_are_put_there():
    length = 20
    start, previous = torch.zeros(length, length), torch.diag(torch.ones(length - 1), -1)
    start[:, 0] = previous[0, 0] = 1.0
    near = sum(torch.diag(torch.ones(length - back), -back) for back in range(4))
    near = near / near.sum(-1, keepdim=True)
    table = table_of(start, previous, near, uniform(length), start)
    heads = group_heads(table, np.array([[0, 0, 0, 0, 0.9]]))
    assert heads["group"].tolist() == ["sink", "previous", "local", "broad", "induction"]
    assert heads["example"].all() and set(heads["group"]) == set(GROUPS)
    np.testing.assert_allclose(heads["sink"].iloc[[0, 3]], [1, 0], atol=1e-6)


def test_a_head_needs_half_of_what_chance_leaves():
    chance = statistics(uniform(10))["sink"].item()
    rows = [
        {"layer": 0, "head": i, "tokens": 10, "sink": m, "previous": 0.1, "local": 0.3} for i, m in enumerate((0, 0))
    ]
    table = pd.DataFrame(rows)
    table["sink"] = [(1 + chance) / 2 + 1e-6, (1 + chance) / 2 - 1e-6]
    assert group_heads(table, np.zeros((1, 2)))["group"].tolist() == ["sink", "broad"]


def test_groups_are_of_the_mean_over_texts_and_ties_have_one_example():
    first, second = table_of(random_causal(12), random_causal(12)), table_of(uniform(30), uniform(30))
    both = group_heads(pd.concat([first, second]), np.zeros((1, 2)))
    apart = [group_heads(table, np.zeros((1, 2))) for table in (first, second)]
    np.testing.assert_allclose(both["sink"], (apart[0]["sink"] + apart[1]["sink"]) / 2)
    assert both["example"].tolist() == [True, False]
    with pytest.raises(UserError, match="no text has three tokens"):
        group_heads(table_of(uniform(2)), np.zeros((1, 1)))


def test_the_real_model_has_heads_of_every_group(smollm2):
    case = case_of(smollm2, "Сколько планет в Солнечной системе?")
    scores = induction(smollm2)
    heads = group_heads(head_table(smollm2, case), scores)
    assert set(heads["group"]) == set(GROUPS) and len(heads) == 270
    assert math.isclose(scores.max(), heads["induction"].max(), abs_tol=0.05)
