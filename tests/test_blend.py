"""A blend against models whose weights were put together by hand."""

import gc
import weakref

import pytest
import torch

from tests.tiny import tiny_loaded, tiny_model
from xai_utils.errors import UserError
from xai_utils.models import kernels
from xai_utils.models.blend import blend
from xai_utils.models.tree import PromptTree
from xai_utils.models.watch import Watch

ARCHITECTURES = ["llama", "llama-tied", "gpt2", "qwen3", "gemma2"]
IDS = torch.tensor([[0, 70, 300, 5, 411], [8, 9, 10, 11, 12]])


def twins(architecture="llama", **config):
    """A model and one whose every parameter lies a little way off, norms and biases included."""
    base, other = (tiny_loaded(architecture, label=label, **config) for label in ("base", "twin"))
    generator = torch.Generator().manual_seed(5)
    for parameter in other.model.parameters():
        parameter += 0.3 * parameter.std().clamp(min=0.1) * torch.randn(parameter.shape, generator=generator)
    return base, other


def by_hand(base, other, weight):
    """A copy of the base with parameters base + weight(name) * (other - base), embeddings and head untied."""
    model = tiny_model(base.entry.model.split("/")[1], tie_word_embeddings=False)
    mine, theirs = base.model.state_dict(), other.model.state_dict()
    head = next(name for name in model.state_dict() if "lm_head" in name)
    mixed = {name: mine[name] + weight(name) * (theirs[name] - mine[name]) for name in mine}
    mixed[head] = mine[head] + weight(head) * (theirs[head] - mine[head])
    model.load_state_dict(mixed)
    return model.requires_grad_(False)


def is_input(name):
    return "embed_tokens" in name or "wte" in name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_interpolation_equals_interpolated_weights(architecture):
    base, other = twins(architecture)
    both = blend(base, other)
    embeds = base.embed(IDS)
    for alpha in (0.0, 0.3, 1.0):
        scales = [torch.full(IDS.shape, alpha)] * len(both.places)
        with both.at(scales) as model:
            found = model(inputs_embeds=embeds, logits_to_keep=2).logits
        plain = by_hand(base, other, lambda name, a=alpha: 0.0 if is_input(name) else a)
        torch.testing.assert_close(found, plain(inputs_embeds=embeds).logits[:, -2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_choose_their_modules(architecture):
    """One row takes the other model's attention, one its MLPs, each as if it had a model of its own."""
    base, other = twins(architecture)
    both = blend(base, other)
    assert {place.half for place in both.places} >= {"attention", "mlp", "head", "rest"}
    halves = ["attention", "mlp"]
    scales = [torch.tensor([place.half == half for half in halves]) for place in both.places]
    head = next(index for index, place in enumerate(both.places) if place.half == "head")
    scales[head] = torch.tensor([[False, True], [True, False]])  # and each of its last two positions a head
    embeds = base.embed(IDS)
    with both.at(scales) as model:
        found = model(inputs_embeds=embeds, logits_to_keep=2).logits
    place = {p.name: p.half for p in both.places}
    for row, half in enumerate(halves):
        for column in range(2):

            def weight(name, half=half, row=row, column=column):
                mine = place.get(name.rpartition(".")[0])
                return float(scales[head][row, column]) if mine == "head" else float(mine == half)

            logits = by_hand(base, other, weight)(inputs_embeds=embeds[row, None]).logits
            torch.testing.assert_close(found[row, column], logits[0, column - 2], rtol=1e-4, atol=1e-4)


def test_a_norm_goes_with_what_it_stands_in_front_of():
    places = {place.module: place.half for place in blend(*twins("llama")).places if place.layer == 1}
    assert places["input_layernorm"] == places["self_attn.o_proj"] == "attention"
    assert places["post_attention_layernorm"] == places["mlp.up_proj"] == "mlp"
    places = {place.module: place.half for place in blend(*twins("gemma2")).places if place.layer == 1}
    assert places["post_attention_layernorm"] == "attention"
    assert places["pre_feedforward_layernorm"] == places["post_feedforward_layernorm"] == "mlp"
    places = {place.module: place.half for place in blend(*twins("gpt2")).places if place.layer == 0}
    assert (places["ln_1"], places["attn.c_attn"], places["ln_2"], places["mlp.c_fc"]) == ("attention",) * 2 + (
        "mlp",
    ) * 2


def test_neither_model_is_touched_and_nothing_is_copied():
    base, other = twins()
    modules = [dict(each.model.named_modules()) for each in (base, other)]
    both = blend(base, other)
    assert both is blend(base, other)
    assert [dict(each.model.named_modules()) for each in (base, other)] == modules
    own = {parameter.data_ptr() for each in (base, other) for parameter in each.model.parameters()}
    assert {parameter.data_ptr() for parameter in both.model.parameters()} <= own
    torch.testing.assert_close(base.model(IDS).logits, tiny_model("llama")(IDS).logits)


def test_only_what_differs_is_mixed():
    base, other = tiny_loaded("llama", label="base"), tiny_loaded("llama", label="twin")
    assert not blend(base, other).places
    other = tiny_loaded("llama", label="twin")
    other.model.model.layers[1].mlp.up_proj.weight[3, 4] += 1
    (place,) = blend(base, other).places
    assert (place.layer, place.module, place.half) == (1, "mlp.up_proj", "mlp")
    assert blend(base, other).model.model.layers[0] is base.model.model.layers[0]


def test_a_blend_is_watched_with_its_base():
    base, other = twins()
    both = blend(base, other)
    scales = [torch.tensor([True, False])] * len(both.places)
    scales[-1] = torch.tensor([[True], [False]])
    with Watch([base.model]) as watch, both.at(scales) as model:
        model(inputs_embeds=base.embed(IDS), logits_to_keep=1)
    assert watch.passes == 2


def test_a_blend_goes_with_its_models():
    base, other = twins()
    gone = weakref.ref(blend(base, other).model)
    del other
    gc.collect()
    assert gone() is None


def refused(said, base, other):
    with pytest.raises(UserError, match=said) as caught:
        blend(base, other)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_mixed_are_refused():
    base = tiny_loaded("llama", label="base")
    refused(
        "bodies of different shapes .*2 layers of 32.*28 layers of 64.*only word scores", base, tiny_loaded("llama-28")
    )
    refused("LlamaForCausalLM.*MistralForCausalLM", base, tiny_loaded("mistral"))
    refused("one device and dtype", base, tiny_loaded("llama", dtype=torch.float64))
    spread = tiny_loaded("llama", label="spread")
    spread.model.model.layers[0]._hf_hook = None  # as accelerate leaves it
    refused("'spread' is spread over devices", base, spread)
    wider = tiny_loaded("llama", seed=1, label="wider", vocab_size=600)  # more tokens are no other body
    assert blend(base, wider).places


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [*((name, None) for name in [*ARCHITECTURES, "mistral", "qwen2"]), ("llama", "eager"), ("llama", kernels.REPEATED)],
)
def test_a_tree_computes_what_its_prompts_alone_do(architecture, attention):
    model = tiny_loaded(architecture)
    if attention:
        model.model.set_attn_implementation(attention)
    rows = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    pieces = {"a": rows[:2], "b": rows[2:3], "c": rows[3:6], "d": rows[6:7], "e": rows[7:9]}
    prompts = ["abc", "abd", "ace", "ab", "acde"]
    tree = PromptTree()
    nodes = [tree.add([(name, pieces[name]) for name in prompt]) for prompt in prompts]
    assert len(tree) == 2 + 1 + 3 + 1 + 3 + 2 + 1 + 2
    logits = model.model(**tree.inputs(), use_cache=False).logits[0]
    for prompt, path in zip(prompts, nodes, strict=True):
        alone = model.model(inputs_embeds=torch.cat([pieces[name] for name in prompt])[None], use_cache=False).logits[0]
        torch.testing.assert_close(logits[path], alone, rtol=1e-4, atol=1e-4)


def test_a_prompt_alone_is_passed_as_a_prompt():
    tree = PromptTree()
    tree.add([("a", torch.zeros(3, 4))])
    assert set(tree.inputs()) == {"inputs_embeds"}
