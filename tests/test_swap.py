"""Swap attribution against models that are put together by hand, subset by subset and order by order."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from tests.test_blend import by_hand, is_input, twins
from tests.tiny import tiny_case, tiny_loaded, tiny_tokenizer
from xai_utils.attribution import mixture
from xai_utils.attribution.mixture import Mixture
from xai_utils.attribution.parts import make_pair
from xai_utils.attribution.swap import swap
from xai_utils.errors import UserError

TEXT, ANSWER, CONTRAST = "The capital of France", " is Paris.", " was Moscow."


def retokenised(model, size=300):
    """The same model behind a tokenizer with fewer merges."""
    return dataclasses.replace(model, tokenizer=tiny_tokenizer(size=size))


def cases(base, other, text=TEXT, **keys):
    keys = {"answer": ANSWER, "contrast": CONTRAST} | keys
    return tuple(tiny_case(model, text, **keys)[0] for model in (base, other))


def subset_value(base, other, both, parts, chosen, kind):
    """F of one mixture: a model of its own, a prompt written token by token."""
    taken = [part for part, own in zip(parts, chosen, strict=True) if own]
    reads = {part.start for part in taken if part.kind == "reading"}
    writer = any(part.kind == "writing" for part in taken)
    layers = {(layer, part.half) for part in taken for layer in part.layers or (None,) if part.kind == "layers"}

    def weight(name):
        if is_input(name) or "lm_head" in name:
            return float("lm_head" in name and writer)
        numbers = [int(piece) for piece in name.split(".") if piece.isdigit()]
        if not numbers:
            return float((None, "rest") in layers)
        half = "mlp" if any(own in name for own in ("mlp", "post_attention", "ln_2")) else "attention"
        return float((numbers[0], half) in layers)

    model = by_hand(base, other, weight)
    vectors = [base.embed(torch.tensor([both[0].ids[0]]))]  # the document start, told apart below
    if None in reads:
        vectors = [other.embed(torch.tensor([both[1].ids[0]]))]
    for word in both[0].words:
        side, source = (1, other) if word.start in reads else (0, base)
        inside = [t.id for t in both[side].tokens if t.start is not None and word.start - 1 <= t.start < word.end]
        vectors.append(source.embed(torch.tensor(inside)))
    total = 0.0
    for sign, name in [(1, "answer_ids"), (-1, "contrast_ids")][: 2 if kind == "contrast" else 1]:
        ids = getattr(both[writer], name)
        fed = (other if writer else base).embed(torch.tensor(ids[:-1], dtype=torch.long))
        logits = model(inputs_embeds=torch.cat([*vectors, fed])[None]).logits[0, -len(ids) :]
        scored = logits if kind == "logit" else logits.log_softmax(-1)
        total += sign * float(scored[range(len(ids)), ids].sum())
    return total


def by_orders(values, count):
    """Shapley values by their definition: the mean gain of a player over all orders."""
    gains = np.zeros(count)
    for order in itertools.permutations(range(count)):
        there = [False] * count
        for player in order:
            before, there[player] = values[tuple(there)], True
            gains[player] += values[tuple(there)] - before
    return gains / math.factorial(count)


@pytest.mark.parametrize("kind", ["logprob", "contrast"])
def test_rows_and_tokenizer_equal_enumeration_by_hand(kind):
    """Another tokenizer and other rows, the body the same: what a token-substituted twin is."""
    base = tiny_loaded("llama-tied", label="base")
    other = retokenised(tiny_loaded("llama-tied", label="twin"))
    generator = torch.Generator().manual_seed(3)
    table = other.model.get_input_embeddings().weight
    table[200:] += 0.2 * torch.randn(table[200:].shape, generator=generator)
    both = cases(base, other)
    found = swap(base, other, *both, kind)
    assert [part.kind for part in found.parts] == ["reading"] * (len(found.parts) - 1) + ["writing"]
    assert {len(each.ids) for each in both} == {6, 15} and 3 <= len(found.parts) <= 5
    count = len(found.parts)
    values = {
        chosen: subset_value(base, other, both, found.parts, chosen, kind)
        for chosen in itertools.product([False, True], repeat=count)
    }
    np.testing.assert_allclose(found.scores, by_orders(values, count), atol=1e-4)
    assert found.exact and found.passes == 2**count
    assert found.scores.sum() == pytest.approx(found.f_other - found.f_base, abs=1e-9)
    ends = [side.value() for side in make_pair(base, other, *both, kind).sides]
    assert [found.f_base, found.f_other] == pytest.approx(ends, abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_layers_equal_enumeration_by_hand(architecture):
    """Every weight differs, as after a full fine-tuning: layers, what stands outside them, rows and head."""
    base, other = twins(architecture)
    both = cases(base, other, "The cat")
    mixed = Mixture(make_pair(base, other, *both, "logprob"), groups=2)
    kinds = [(part.kind, part.half) for part in mixed.parts]
    halves = [("layers", "attention"), ("layers", "mlp")]
    assert kinds == [("reading", "")] * 3 + [("writing", "")] + halves * 2 + [("layers", "rest")]
    chosen = np.random.default_rng(0).integers(0, 2, (24, len(kinds))).astype(bool)
    by_hands = [subset_value(base, other, both, mixed.parts, tuple(row), "logprob") for row in chosen]
    np.testing.assert_allclose(mixed.values(chosen), by_hands, atol=2e-4)


def test_swap_of_layers_sums_to_the_difference():
    base, other = twins("llama", num_hidden_layers=6)
    both = cases(base, other, "The cat")
    found = swap(base, other, *both, budget=4096)
    assert found.exact and len(found.parts) == 11  # three readings, the answer, three runs of two halves, the rest
    assert found.scores.sum() == pytest.approx(found.f_other - found.f_base, abs=1e-9)
    names = [part.name for part in found.parts]
    assert names[3:6] == ["answer", "attention, layers 0-1", "MLP, layers 0-1"] and names[-1] == "outside the layers"


def test_sampling_is_unbiased_and_states_its_error():
    base, other = twins("llama", num_hidden_layers=6)
    both = cases(base, other, "The cat")
    exact = swap(base, other, *both, budget=512)  # two runs of layers: 2 ** 9
    sampled = swap(base, other, *both, budget=400)
    assert exact.exact and not sampled.exact and sampled.parts == exact.parts
    assert sampled.passes <= 400
    assert sampled.scores.sum() == pytest.approx(sampled.f_other - sampled.f_base, abs=1e-4)
    assert (sampled.errors > 0).all()
    assert (np.abs(sampled.scores - exact.scores) / sampled.errors).max() < 5
    again = swap(base, other, *both, budget=400)
    np.testing.assert_array_equal(again.scores, sampled.scores)


def test_a_model_with_itself_differs_in_nothing():
    base, other = (tiny_loaded("llama", label=label) for label in ("base", "copy"))
    found = swap(base, other, *cases(base, other))
    assert found.parts == () and found.scores.sum() == 0 and found.f_base == found.f_other
    assert found.rows() == []


def test_equal_ids_with_other_rows_are_a_part():
    """Words that both tokenizers read alike still differ where a row was trained."""
    base, other = (tiny_loaded("llama", label=label) for label in ("base", "twin"))
    both = cases(base, other)
    token = both[0].tokens[-1]
    other.model.get_input_embeddings().weight[token.id] += 1
    found = swap(base, other, *both)
    assert [(part.name, part.kind, part.start, part.end) for part in found.parts] == [("France", "reading", 15, 21)]
    assert found.scores[0] == pytest.approx(found.f_other - found.f_base)


def test_a_document_start_with_another_row_is_a_part():
    base, other = (tiny_loaded("llama", label=label) for label in ("base", "twin"))
    other.model.get_input_embeddings().weight[0] += 1
    (row,) = swap(base, other, *cases(base, other)).rows()
    assert (row["part"], row["start"], row["end"]) == ("document start", None, None)


def test_a_larger_vocabulary_is_no_other_body():
    base = tiny_loaded("llama", label="base")
    other = tiny_loaded("llama", label="wider", vocab_size=600)
    narrow, wide = base.model.state_dict(), other.model.state_dict()
    for name, values in narrow.items():
        wide[name][: len(values)] = values
    found = swap(base, other, *cases(base, other))
    (part,) = found.parts
    assert part.kind == "writing" and found.scores[0] < 0  # probability is shared among more tokens


def test_a_model_that_takes_no_tree_gets_prompts_one_by_one(monkeypatch):
    base, other = twins("llama")
    other = retokenised(other)
    both = cases(base, other, "The cat")
    plain = swap(base, other, *both)

    class Blind(mixture.PromptTree):
        """A tree whose nodes see all that came before, as in a model that ignores its mask."""

        def inputs(self):
            return {"inputs_embeds": super().inputs()["inputs_embeds"]}

    monkeypatch.setattr(mixture, "PromptTree", Blind)
    with pytest.warns(UserWarning, match="LlamaForCausalLM does not take prompts as a tree"):
        single = swap(base, other, *both)
    np.testing.assert_allclose(single.scores, plain.scores, atol=1e-4)


def test_two_pairs_of_orders_are_the_least():
    base, other = twins("llama")
    found = swap(base, other, *cases(base, other), budget=1)
    count = len(found.parts)
    assert not found.exact and 2 < found.passes <= 4 * (count + 1) and np.isfinite(found.errors).all()
    assert found.scores.sum() == pytest.approx(found.f_other - found.f_base, abs=1e-4)


def refused(said, base, other, *arguments, **keys):
    with pytest.raises(UserError, match=said) as caught:
        swap(base, other, *arguments, **keys)
    assert "\n" not in str(caught.value)


def test_bad_input_is_said_in_one_line():
    base, other = twins("llama")
    both = cases(base, other)
    refused("sum_logits is not about an answer", base, other, *both, "sum_logits")
    refused("different answers .* expected one for both", base, other, *cases(base, other, answer=None, contrast=None))
    deep = tiny_loaded("llama-28")
    refused("only word scores can be compared", base, deep, *cases(base, deep))
    turned = tiny_loaded("llama", label="twin", rope_parameters={"rope_type": "default", "rope_theta": 10.0})
    refused("differ in more than their weights", base, turned, *both)
