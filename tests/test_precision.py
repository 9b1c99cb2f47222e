"""The precision of products is that of the model's entry where F is computed, and what it was elsewhere."""

import pytest
import torch

from tests.tiny import save_tiny, tiny_case
from xai_utils.attribution.target import Objective
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import load


@pytest.mark.parametrize("dtype", ["float32", "tf32"])
def test_products_follow_the_entry_and_are_put_back(tmp_path, dtype):
    model = load(ModelEntry(label="m", model=str(save_tiny(tmp_path / "model")), dtype=dtype, device="cpu"))
    assert model.dtype == torch.float32
    own = Objective(model, *tiny_case(model, "The capital of France is"))
    seen = []
    hook = model.model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32))
    own.values(own.inputs[None])
    own.values_and_gradients(own.inputs[None])
    hook.remove()
    assert set(seen[-2:]) == {dtype == "tf32"} and torch.backends.cuda.matmul.allow_tf32 is False


def test_it_is_put_back_after_a_failure(tmp_path):
    model = load(ModelEntry(label="m", model=str(save_tiny(tmp_path / "model")), dtype="tf32", device="cpu"))
    own = Objective(model, *tiny_case(model, "The capital of France is"))
    hook = model.model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        own.values(own.inputs[None])
    hook.remove()
    assert torch.backends.cuda.matmul.allow_tf32 is False
