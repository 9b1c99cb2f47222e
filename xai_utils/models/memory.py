"""How many positions one pass may hold: measured on the model itself, against the memory that is free.

The sequences of a batch do not see one another, so a smaller batch changes scores by rounding alone.
"""

from __future__ import annotations

import warnings
from weakref import WeakKeyDictionary

import psutil
import torch
from transformers import PreTrainedModel

from xai_utils.models.loading import LoadedModel

ENOUGH = 1024  # positions: large enough for the matrix product's speed, small in memory
SHARE = 0.25  # of the free memory for what a pass keeps: others need some, and torch as much again while it works
PROBE = 32  # positions of the pass that is measured

_fitting: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


def kept_per_position(model: LoadedModel) -> float:
    """Bytes that a pass keeps for its gradient, for each position, weights apart: measured on a short pass."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    embeds = model.embed(torch.zeros(1, PROBE, dtype=torch.long, device=model.device)).requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits  # holds what is counted
    del output
    return sum(kept.values()) / PROBE


def free(device: torch.device) -> int:
    """Bytes that may still be taken on a device, torch's own idle ones with them."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + idle


def positions(model: LoadedModel) -> int:
    """Positions in one pass: `ENOUGH`, or as many as the free memory takes, which a warning then says."""
    if model.model not in _fitting:
        fitting = max(int(SHARE * free(model.device) / kept_per_position(model)), 1)
        _fitting[model.model] = min(fitting, ENOUGH)
        if fitting < ENOUGH:
            warnings.warn(
                f"model '{model.label}': for want of memory passes hold {fitting} positions instead of {ENOUGH}; "
                "slower, with the same scores",
                stacklevel=2,
            )
    return _fitting[model.model]
