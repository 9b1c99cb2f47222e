"""Relevance against the logits themselves, against frozen models run one token at a time, and the papers' equations."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution import relevance
from xai_utils.attribution.lrp_rules import rules
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.text.cases import units

TEXT = "The capital of France is"
BIAS_FREE = ["llama", "llama-tied", "llama-28", "mistral", "qwen3", "gemma", "gemma3"]


def one_token(model, kind="logprob", contrast=False):
    case, _ = tiny_case(model, TEXT)
    first, second = case.answer_ids[0], (case.answer_ids[0] + 1,)
    return case, Target(kind, "answer", (first,), second if contrast else ())


def with_biases(architecture="qwen2"):
    model = tiny_loaded(architecture)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.5, generator=generator)
    return model


@torch.no_grad()
def logits(model, case, behind=()):
    return model.model(input_ids=torch.tensor([[*case.ids, *behind]])).logits[0].double()


def centred(rows, ids):
    rows = rows[-len(ids) :]
    return sum(float(row[token] - row.softmax(-1) @ row) for row, token in zip(rows, ids, strict=True))


@pytest.mark.parametrize("architecture", BIAS_FREE)
def test_sum_is_the_centred_logit_without_biases(architecture):
    model = tiny_loaded(architecture)
    case, target = one_token(model)
    found = relevance.cp_lrp(model, case, target)
    expected = centred(logits(model, case), target.ids)
    assert found.scores.sum() == pytest.approx(expected, rel=1e-4)
    assert found.word_scores.sum() == pytest.approx(expected, rel=1e-4)
    assert found.certificate.f_input == pytest.approx(expected, rel=1e-4)
    assert found.certificate.f_baseline == 0 and found.certificate.exact
    assert found.scores[0] != 0 and not np.isnan(found.scores).any()  # the first position takes its part


@pytest.mark.parametrize("kind", ["logit", "contrast", "sum_logits"])
def test_other_targets_are_sums_of_logits(kind):
    model = tiny_loaded("llama")
    case, target = one_token(model, kind, contrast=kind == "contrast")
    found = relevance.cp_lrp(model, case, target)
    rows = logits(model, case)
    answer = rows[-1, target.ids[0]]
    other = rows[-1, target.contrast_ids[0]] if target.contrast_ids else 0
    expected = float(rows.sum() if kind == "sum_logits" else answer - other)
    assert found.scores.sum() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_an_answers_own_tokens_carry_the_rest():
    model = tiny_loaded("llama")
    case, target = tiny_case(model, TEXT)
    assert len(target.ids) > 2
    found = relevance.cp_lrp(model, case, target)
    proof = found.certificate
    expected = centred(logits(model, case, target.ids[:-1]), target.ids)
    assert proof.f_input == pytest.approx(expected, rel=1e-4)
    _, parts = frozen(model, [*case.ids, *target.ids[:-1]], target.ids)
    assert found.scores == pytest.approx(parts[: len(case.ids)], abs=1e-4)
    assert proof.f_baseline == pytest.approx(sum(parts[len(case.ids) :]), abs=1e-4)
    assert found.scores.sum() == pytest.approx(expected - proof.f_baseline, rel=1e-4)


def test_biases_carry_their_own_part():
    model = with_biases()
    case, target = one_token(model)
    found = relevance.cp_lrp(model, case, target)
    proof = found.certificate
    whole, parts = frozen(model, case.ids, target.ids)
    assert proof.f_input == pytest.approx(whole, rel=1e-4)
    assert found.scores == pytest.approx(parts, abs=1e-4)
    ratio = found.scores.sum() / proof.f_input
    assert abs(ratio - 1) > 0.01
    assert ratio == pytest.approx(1 - proof.f_baseline / proof.f_input, rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_scores_are_those_of_a_frozen_model_run_for_one_token_alone(architecture):
    model = tiny_loaded(architecture)
    case, target = one_token(model)
    whole, parts = frozen(model, case.ids, target.ids)
    assert sum(parts) == pytest.approx(whole, rel=1e-9)
    assert relevance.cp_lrp(model, case, target).scores == pytest.approx(parts, abs=1e-4)


@torch.no_grad()
def frozen(model, ids, answer):
    """The centred logit, and its parts by token: each token's embedding alone through a float64 copy of the model.

    What depends on the prompt as a whole (scales of norms, attention weights, slopes of activations, factors of the
    gated product) is taken from the whole prompt; the rest is linear, so that a forward pass of one token is its part.
    """
    body, config = model.model.model, model.model.config
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    state = {name: value.double() for name, value in model.model.state_dict().items()}
    whole = model.embed(torch.tensor(ids)).double()
    parts = torch.stack([whole * (torch.arange(len(ids)) == t)[:, None] for t in range(len(ids))])
    cos, sin = (part[0].double() for part in body.rotary_emb(whole[None], torch.arange(len(ids))[None]))

    def scaled(hidden, name):  # of the whole and, with the same scale, of the parts
        size = state[name] * (hidden[0].square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()
        return [part * size for part in hidden]

    def linear(part, name, bias):
        return part @ state[f"{name}.weight"].T + (state[f"{name}.bias"] if bias and f"{name}.bias" in state else 0)

    def split(part):
        return part.unflatten(-1, (-1, size)).transpose(-3, -2)

    def turned(part):
        left, right = part.chunk(2, -1)
        return part * cos + torch.cat([-right, left], -1) * sin

    streams = [whole, parts]
    for index in range(config.num_hidden_layers):
        name = f"model.layers.{index}"
        normed = scaled(streams, f"{name}.input_layernorm.weight")
        query, key = (turned(split(linear(normed[0], f"{name}.self_attn.{kind}_proj", True))) for kind in "qk")
        scores = query @ key.repeat_interleave(groups, 0).transpose(-1, -2) / math.sqrt(size)
        weights = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf).softmax(-1)
        for place, part in enumerate(normed):
            values = split(linear(part, f"{name}.self_attn.v_proj", place == 0)).repeat_interleave(groups, -3)
            mixed = (weights @ values).transpose(-3, -2).flatten(-2)
            streams[place] = streams[place] + linear(mixed, f"{name}.self_attn.o_proj", place == 0)
        normed = scaled(streams, f"{name}.post_attention_layernorm.weight")
        gate, up = (linear(normed[0], f"{name}.mlp.{kind}_proj", True) for kind in ("gate", "up"))
        halves = [
            (linear(normed[1], f"{name}.mlp.gate_proj", False) * torch.sigmoid(gate) * up) / 2,
            (linear(normed[1], f"{name}.mlp.up_proj", False) * functional.silu(gate)) / 2,
        ]
        streams[0] = streams[0] + linear(functional.silu(gate) * up, f"{name}.mlp.down_proj", True)
        streams[1] = streams[1] + linear(sum(halves), f"{name}.mlp.down_proj", False)
    last = [linear(part, "lm_head", False) for part in scaled(streams, "model.norm.weight")]
    value, shares = 0.0, torch.zeros(len(ids), dtype=torch.float64)
    for row, token in enumerate(answer, len(ids) - len(answer)):
        expectation = last[0][row].softmax(-1)
        value += float(last[0][row, token] - expectation @ last[0][row])
        shares += last[1][:, row, token] - last[1][:, row] @ expectation
    return value, shares.tolist()


def test_attention_of_attn_lrp_follows_the_papers_equations():
    """Relevance through one head, equation by equation (Achtibat et al. 2024: softmax, products)."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, upstream = torch.randn(4, 1, 1, 5, 8, generator=generator, dtype=torch.float64)
    leaves = [part.clone().requires_grad_() for part in (query, key, value)]
    attend = AttentionInterface()["xai_attn_lrp"]
    output = attend(torch.nn.Module(), *leaves, None, is_causal=True)[0].transpose(1, 2)
    gradients = torch.autograd.grad((output * upstream).sum(), leaves)
    scores = (query @ key.mT / math.sqrt(8))[0, 0]
    weights = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf).softmax(-1)
    q, k, v, out = query[0, 0], key[0, 0], value[0, 0], (output * upstream)[0, 0].detach()
    mixed = weights @ v
    to_weights = torch.einsum("ij,jd,id,id->ij", weights, v, 1 / mixed, out) / 2
    to_value = torch.einsum("ij,jd,id,id->jd", weights, v, 1 / mixed, out) / 2
    to_scores = scores * (to_weights - weights * to_weights.sum(-1, keepdim=True))
    shared = torch.einsum("id,jd,ij->ijd", q, k, to_scores / scores / math.sqrt(8)) / 2
    for leaf, gradient, expected in zip(leaves, gradients, (shared.sum(1), shared.sum(0), to_value), strict=True):
        assert torch.allclose((leaf * gradient)[0, 0], expected, atol=1e-8)


def test_norms_are_those_of_the_gradient_over_a_words_tokens():
    model = tiny_loaded("llama")
    case, target = tiny_case(model, TEXT)
    found = relevance.attn_lrp_norm(model, case, target)
    signed = relevance.relevance(model, case, target, "attn")
    assert found.scores == pytest.approx(signed.gradient.norm(dim=-1).numpy(), rel=1e-5)
    for unit, score in zip(units(case), found.word_scores, strict=True):
        assert score == pytest.approx(float(signed.gradient[list(unit.tokens)].norm()), rel=1e-5)
    assert any(len(unit.tokens) > 1 for unit in units(case)) and not found.additive
    relevances = relevance.attn_lrp(model, case, target)
    assert relevances.scores == pytest.approx((signed.gradient * signed.inputs).sum(-1).numpy(), abs=1e-5)
    assert relevances.word_scores.sum() == pytest.approx(relevances.scores.sum(), abs=1e-9)


@pytest.mark.parametrize("rule", ["cp", "attn"])
@pytest.mark.parametrize("architecture", [*BIAS_FREE, "qwen2"])
def test_no_value_changes(architecture, rule):
    model = tiny_loaded(architecture)
    case, _ = tiny_case(model, TEXT)
    with rules(model.model, rule):
        ruled = model.model(inputs_embeds=model.embed(torch.tensor([case.ids])).requires_grad_()).logits[0].double()
    plain = logits(model, case)
    assert torch.allclose(ruled.detach(), plain, atol=1e-5 * plain.abs().max())


def test_a_model_loaded_for_its_attention_gets_the_same_scores():
    eager, plain = tiny_loaded("llama", attention="eager"), tiny_loaded("llama")
    case, target = tiny_case(plain, TEXT)
    for method in (relevance.cp_lrp, relevance.attn_lrp):
        assert method(eager, case, target).scores == pytest.approx(method(plain, case, target).scores, abs=1e-5)
    assert eager.model.config._attn_implementation == "eager"


def traces(model):
    """All that the rules touch, module by module, parameter by parameter."""
    modules = [
        (name, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]
    return modules, [p.requires_grad for p in model.parameters()], model.config._attn_implementation


@pytest.mark.parametrize("rule", ["cp", "attn"])
def test_nothing_is_left_on_the_model(rule):
    model = with_biases().model
    before = traces(model)
    with rules(model, rule):
        assert traces(model) != before
    assert traces(model) == before
    with pytest.raises(ZeroDivisionError), rules(model, rule):
        model(inputs_embeds=torch.ones(1, 2, 32, requires_grad=True))
        raise ZeroDivisionError
    assert traces(model) == before


def test_nothing_is_left_after_a_refusal():
    model = tiny_loaded("gpt2")
    case, target = tiny_case(model, TEXT)
    before = traces(model.model)
    with pytest.raises(UserError, match="no rule for the module LayerNorm"):
        relevance.attn_lrp(model, case, target)
    assert traces(model.model) == before


def test_capped_logits_are_refused():
    model = tiny_loaded("gemma2")
    with pytest.raises(UserError, match="capped logits of Gemma2ForCausalLM"):
        relevance.cp_lrp(model, *tiny_case(model, TEXT))


@pytest.mark.parametrize("method", [relevance.cp_lrp, relevance.attn_lrp, relevance.attn_lrp_norm])
def test_a_step_without_a_rule_is_found_by_the_sum(method):
    model = tiny_loaded("llama")
    layer = model.model.model.layers[0]
    plain = layer.mlp.forward
    layer.mlp.forward = lambda hidden: torch.tanh(plain(hidden))
    with pytest.raises(UserError, match="does not add up for LlamaForCausalLM"):
        method(model, *tiny_case(model, TEXT))
