"""Attention against its formula from the weights themselves, statistics against loops, memory against a limit."""

import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tiny import tiny_loaded, tiny_model
from xai_utils.attention import layers
from xai_utils.attention.layers import Layer, head_table, observations, pool, statistics, stream, uniform, without_sink
from xai_utils.errors import UserError
from xai_utils.study.config import Study
from xai_utils.text.cases import prepare
from xai_utils.text.entry import TextEntry

TEXT = "The capital of France is Paris, and the capital of Russia is Москва."


def case_of(loaded, text=TEXT, **settings):
    study = Study(name="test", models=(loaded.entry,), texts=(TextEntry(id="t", text=text),), **settings)
    return prepare(loaded, study.texts[0], study)


def random_causal(*shape, seed=0):
    scores = torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed))
    blocked = torch.ones(shape[-1], shape[-1]).triu(1).bool()
    return (2 * scores).masked_fill(blocked, -torch.inf).softmax(-1)


def collect(loaded, ids, norms=False):
    layers: list[Layer] = []
    stream(loaded, ids, layers.append, norms=norms)
    return layers


# ---- by hand, from the weights


def rms(x, weight, eps):
    return x * weight / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotated(x, theta):
    """Rotary positions (Su et al. 2021) as multiplication of complex numbers: x is [head, position, size]."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None].double() * theta ** (-torch.arange(half).double() / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


def by_hand(kind, model, index, x):
    """Queries, keys and values of one layer from its input and its matrices, all [head, position, size]."""
    config, length = model.config, len(x)
    if kind == "gpt2":
        block = model.transformer.h[index]
        normed = torch.nn.functional.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias)
        fused = normed @ block.attn.c_attn.weight + block.attn.c_attn.bias
        return [part.reshape(length, config.n_head, -1).transpose(0, 1) for part in fused.chunk(3, -1)]
    block = model.model.layers[index]
    plus = 1.0 if kind.startswith("gemma") else 0.0
    normed = rms(x, block.input_layernorm.weight + plus, config.rms_norm_eps)
    parts = []
    for name in "qkv":
        part = (normed @ getattr(block.self_attn, f"{name}_proj").weight.T).reshape(length, -1, config.head_dim)
        if kind == "qwen3" and name != "v":
            part = rms(part, getattr(block.self_attn, f"{name}_norm").weight, config.rms_norm_eps)
        part = part.transpose(0, 1)
        part = rotated(part, config.rope_parameters["rope_theta"]) if name != "v" else part
        parts.append(part.repeat_interleave(config.num_attention_heads // len(part), 0))
    return parts


def weights_by_hand(kind, model, index, query, key):
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    length = scores.shape[-1]
    seen = torch.ones(length, length).tril().bool()
    if kind == "gemma2":
        scores = torch.tanh(scores / model.config.attn_logit_softcapping) * model.config.attn_logit_softcapping
        if model.config.layer_types[index] == "sliding_attention":
            seen &= torch.ones(length, length).triu(1 - model.config.sliding_window).bool()
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def layer_inputs(loaded, ids):
    with torch.no_grad():
        output = loaded.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return [hidden[0].double() for hidden in output.hidden_states]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_weights_are_the_softmax_of_the_scaled_products(kind):
    loaded = tiny_loaded(kind)
    ids = case_of(loaded).ids
    assert len(ids) > 20  # longer than gemma2's window
    exact = tiny_model(kind).double()
    for layer, x in zip(collect(loaded, ids), layer_inputs(loaded, ids), strict=False):
        query, key, _ = by_hand(kind, exact, layer.index, x)
        expected = weights_by_hand(kind, exact, layer.index, query, key)
        torch.testing.assert_close(layer.weights.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_value_norms_are_those_of_the_projected_values(kind):
    loaded = tiny_loaded(kind)
    ids = case_of(loaded).ids
    exact = tiny_model(kind).double()
    for layer, x in zip(collect(loaded, ids, norms=True), layer_inputs(loaded, ids), strict=False):
        values = by_hand(kind, exact, layer.index, x)[2]
        if kind == "gpt2":
            output = exact.transformer.h[layer.index].attn.c_proj.weight
        else:
            output = exact.model.layers[layer.index].self_attn.o_proj.weight.T
        for head, (value, part) in enumerate(zip(values, output.chunk(len(values)), strict=True)):
            for key, vector in enumerate(value):
                assert layer.norms[head, key].item() == pytest.approx(torch.linalg.norm(vector @ part).item(), rel=1e-4)
        row = layer.weights[1, 5] * layer.norms[1]
        torch.testing.assert_close(layer.contributions[1, 5], row / row.sum())


def test_values_that_do_not_make_the_output_are_not_used():
    loaded = tiny_loaded("llama")
    projection = loaded.model.model.layers[1].self_attn.o_proj
    projection.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    layers = collect(loaded, list(range(9)), norms=True)
    assert layers[0].norms is not None and layers[1].norms is None
    table = head_table(loaded, case_of(loaded))
    assert table["norm_sink"].isna().tolist() == [False] * 4 + [True] * 4


# ---- the pass


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_streamed_weights_equal_the_librarys_own(kind):
    loaded = tiny_loaded(kind)
    case = case_of(loaded)
    with torch.no_grad():
        expected = tiny_model(kind, attention="eager")(torch.tensor([case.ids]), output_attentions=True).attentions
    assert torch.equal(layers.weights(loaded, case), torch.cat(expected))


@pytest.mark.parametrize("fails", [False, True])
def test_a_pass_leaves_the_model_as_it_was(fails):
    loaded = tiny_loaded("llama")

    def visit(layer):
        if fails and layer.index == 1:
            raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            stream(loaded, [1, 2, 3], visit, norms=True)
    else:
        stream(loaded, [1, 2, 3], visit, norms=True)
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: None, "layer 1 gave nothing as attention; expected weights of shape .1, heads, 4, 4."),
        (lambda weights: weights[..., :3], "layer 1 gave shape .1, 4, 4, 3."),
        (lambda weights: weights * 0.999, "rows of layer 1 miss a sum of 1 by 0.001"),
        (lambda weights: weights.flip(-1), "layer 1 attends to later tokens"),
        (lambda weights: weights * torch.nan, "layer 1"),
    ],
)
def test_wrong_weights_are_refused(change, message):
    loaded = tiny_loaded("llama")
    module = loaded.model.model.layers[1].self_attn
    module.register_forward_hook(lambda module, inputs, output: (output[0], change(output[1])))
    with pytest.raises(UserError, match=message):
        stream(loaded, [1, 2, 3, 4], lambda layer: None)


def test_a_layer_without_attention_is_refused():
    loaded = tiny_loaded("llama")
    loaded.model.config.num_hidden_layers = 3
    with pytest.raises(UserError, match="2 of its 3 layers"):
        stream(loaded, [1, 2, 3], lambda layer: None)


def test_half_precision_passes_within_its_own_rounding():
    layers = collect(tiny_loaded("llama", dtype=torch.bfloat16), list(range(20)))
    assert all(layer.weights.dtype == torch.float32 for layer in layers)


# ---- numbers


def test_statistics_equal_loops():
    weights = random_causal(3, 12).double()
    found = statistics(weights)
    for head, matrix in enumerate(weights.tolist()):
        rows = list(enumerate(matrix))[1:]
        expected = {
            "entropy": [-sum(p * math.log(p) for p in row if p > 0) for _, row in rows],
            "sink": [row[0] for _, row in rows],
            "diagonal": [row[i] for i, row in rows],
            "previous": [row[i - 1] for i, row in rows],
            "distance": [sum(p * (i - j) for j, p in enumerate(row)) for i, row in rows],
            "local": [sum(p for j, p in enumerate(row) if 0 <= i - j <= 3) for i, row in rows],
        }
        for name, values in expected.items():
            assert found[name][head].item() == pytest.approx(sum(values) / len(values), abs=1e-12), name


def test_statistics_of_known_heads():
    length = 8
    itself, start = torch.eye(length), torch.zeros(length, length)
    start[:, 0] = 1.0
    found = statistics(torch.stack([itself, start, uniform(length)]))
    assert found["entropy"][:2].tolist() == [0, 0]
    assert found["entropy"][2].item() == pytest.approx(np.mean([math.log(n) for n in range(2, length + 1)]))
    assert found["diagonal"][:2].tolist() == [1, 0] and found["sink"][:2].tolist() == [0, 1]
    assert found["distance"].tolist() == pytest.approx([0, 4, 2])
    assert all(value.isnan() for value in statistics(torch.ones(1, 1)).values())


def test_setting_the_sink_apart():
    weights = random_causal(2, 7)
    rest = without_sink(weights)
    assert rest.shape == (2, 6, 6)
    torch.testing.assert_close(rest.sum(-1), torch.ones(2, 6))
    torch.testing.assert_close(rest[1, 4, 2] / rest[1, 4, 3], weights[1, 5, 3] / weights[1, 5, 4])
    weights[0, 3] = torch.eye(7)[0]
    assert without_sink(weights)[0, 2].isnan().all()
    assert all(value.isfinite().all() for value in statistics(without_sink(weights)).values())


def test_table_has_a_row_a_head_with_all_views():
    loaded = tiny_loaded("llama")
    case = case_of(loaded)
    table = head_table(loaded, case)
    assert list(table.columns[:6]) == ["study", "text", "model", "role", "layer", "head"]
    assert {"entropy", "sink", "diagonal", "previous", "distance"} <= set(table.columns)
    assert (table["text"] == "t").all() and list(zip(table["layer"], table["head"], strict=True))[5] == (1, 1)
    layer = collect(loaded, case.ids, norms=True)[1]
    for view, part in (("", layer.weights), ("rest_", without_sink(layer.weights)), ("norm_", layer.contributions)):
        expected = statistics(part)["distance"].double().numpy()
        np.testing.assert_allclose(table.loc[table["layer"] == 1, view + "distance"], expected, rtol=1e-6)
    assert not table.isna().any(axis=None)


def test_pooling_to_single_tokens_changes_nothing():
    weights = random_causal(2, 6)
    torch.testing.assert_close(pool(weights, torch.eye(6)), weights)


def test_observations_are_what_the_matrix_says():
    weights = random_causal(9)
    found, matrix = observations(weights), weights.numpy()
    assert found["start_self"] == 1
    assert found["sink"] == pytest.approx(matrix[1:, 0].mean())
    assert found["sink_majority"] == (matrix[1:, 0] > 0.5).mean()
    own = np.diag(matrix)[1:]
    assert [found[f"diagonal_{name}"] for name in ("min", "mean", "max")] == pytest.approx(
        [own.min(), own.mean(), own.max()]
    )
    assert found["uniform_local"] == pytest.approx(np.mean([min(4, n) / n for n in range(2, 10)]))
    assert found["entropy"] < found["uniform_entropy"]
    with pytest.raises(UserError, match="one token"):
        observations(torch.ones(1, 1))


def test_weights_that_do_not_fit_are_refused(monkeypatch):
    loaded = tiny_loaded("llama")
    monkeypatch.setattr(layers, "WEIGHTS_LIMIT", 1000)
    with pytest.raises(UserError, match="text 't': its attention weights fill"):
        layers.weights(loaded, case_of(loaded))


MEASURE = """
import json, threading, time
import psutil
from xai_utils.attention.layers import head_table, stream
from xai_utils.attention.maps import maps
from xai_utils.models.loading import load
from xai_utils.study.config import Study
from xai_utils.text.entry import TextEntry
from xai_utils.models.entry import ModelEntry
from xai_utils.text.cases import prepare

model = load(ModelEntry(label="base", model="smollm2-135m-instruct"))
stream(model, [0, 1, 2], lambda layer: None, norms=True)  # the weights' pages are in memory from here on
study = Study(name="t", models=(model.entry,), texts=(TextEntry(id="t", text="The cat sat. " * 400),), max_tokens=512)
case = prepare(model, study.texts[0], study)
process, peak, running = psutil.Process(), 0, True
before = process.memory_info().rss


def watch():
    global peak
    while running:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.002)


watcher = threading.Thread(target=watch)
watcher.start()
table, pictures = head_table(model, case), maps(model, case)
running = False
watcher.join()
shape = [len(case.tokens), len(table), *pictures.shape]
print(json.dumps({"shape": shape, "missing": int(table.isna().sum().sum()), "mib": (peak - before) / 2**20}))
"""


def test_a_long_text_stays_within_one_gib_above_the_model(smollm2):
    found = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True).stdout
    measured = json.loads(found.splitlines()[-1])
    assert measured["shape"] == [512, 270, 30, 9, 64, 64] and measured["missing"] == 0
    assert 5 < measured["mib"] < 1024  # one layer alone is 9 MiB


def test_real_weights_are_the_librarys(smollm2):
    case = case_of(smollm2, "Сколько планет в Солнечной системе?")
    table = head_table(smollm2, case)
    with layers.eager(smollm2.model), torch.no_grad():
        expected = smollm2.model(torch.tensor([case.ids]), output_attentions=True).attentions
    assert len(expected) == 30
    sinks = [layer[0, head, 1:, 0].mean().item() for layer in expected for head in range(9)]
    np.testing.assert_allclose(table["sink"], sinks, atol=1e-6)
    assert isinstance(table, pd.DataFrame) and (table["norm_sink"] < table["sink"]).mean() > 0.5
