"""Weights that are equal in two models are held once, and no number changes."""

import torch

from tests.tiny import tiny_loaded
from xai_utils.models.sharing import share

IDS = torch.tensor([[5, 6, 7]])


def logits(model):
    with torch.no_grad():
        return model.model(input_ids=IDS).logits


def test_equal_weights_are_held_once_and_others_stay_their_own():
    base, twin, other = tiny_loaded("llama"), tiny_loaded("llama"), tiny_loaded("llama", seed=1)
    with torch.no_grad():
        twin.model.get_input_embeddings().weight[7] += 1
    before = [logits(model) for model in (base, twin, other)]
    share([base])
    share([base, twin])
    share([base, twin, other])
    held, own = (dict(model.model.named_parameters()) for model in (base, twin))
    apart = {name for name in own if own[name].data_ptr() != held[name].data_ptr()}
    assert apart == {"model.embed_tokens.weight"}
    assert all(torch.equal(old, logits(model)) for old, model in zip(before, (base, twin, other), strict=True))
    norms = {name for name, own in other.model.named_parameters() if own.data_ptr() == held[name].data_ptr()}
    assert norms == {name for name in held if "norm" in name}  # ones, whatever the seed


def test_another_precision_or_shape_is_not_shared():
    base, half, wide = tiny_loaded("llama"), tiny_loaded("llama"), tiny_loaded("gpt2")
    half.model.to(torch.bfloat16)
    share([base, half, wide])
    share([base, half])
    held = {weight.data_ptr() for weight in base.model.parameters()}
    assert not held & {weight.data_ptr() for model in (half, wide) for weight in model.model.parameters()}
