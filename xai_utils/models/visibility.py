"""Positions that later ones cannot see: does a model respect a mask with holes, or that of a tree? Tried once on it.

`seen` [row, position] is True where later positions may attend. Positions keep their numbers; unseen positions at the
very front are padding and are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from xai_utils.models.tree import PromptTree

if TYPE_CHECKING:
    from xai_utils.models.loading import LoadedModel

REFUSALS = (TypeError, ValueError, NotImplementedError, RuntimeError)  # of a mask that a model does not take

_tried: WeakKeyDictionary[PreTrainedModel, MaskSupport] = WeakKeyDictionary()


@dataclass(frozen=True)
class MaskSupport:
    """What a trial found: are masked positions without influence, and may prompts be passed as a tree (tree.py)?"""

    holes: bool
    trees: bool


def position_numbers(seen: Bool[Tensor, "row position"]) -> Int[Tensor, "row position"]:
    """Position numbers of each row: counted from the first seen position, holes included.

    >>> position_numbers(torch.tensor([[False, True, False, True], [True, True, True, True]])).tolist()
    [[0, 0, 1, 2], [0, 1, 2, 3]]
    """
    padding = seen.int().argmax(1, keepdim=True)
    return (torch.arange(seen.shape[1], device=seen.device) - padding).clamp(min=0)


def mask_support(model: LoadedModel) -> MaskSupport:
    """Two short trials, remembered for each model."""
    if model.model not in _tried:
        _tried[model.model] = _try(model)
    return _tried[model.model]


@torch.no_grad()
def _try(model: LoadedModel) -> MaskSupport:
    rows = model.embedding[torch.linspace(0, len(model.embedding) - 1, 10, device=model.device).long()]
    plain, other = rows[:8], rows[:8].clone()
    seen = torch.tensor([True, True, False, True, True, False, True, True], device=model.device)
    other[~seen] = rows[8:]
    whole, apart = (model.model(inputs_embeds=row[None], use_cache=False).logits[0, -1] for row in (plain, other))
    tolerance = torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max()
    try:
        hidden, changed = (_last(model, row, seen) for row in (plain, other))
        # a model that ignores the mask gives the same
        holes = not _close(hidden, whole, tolerance) and _close(hidden, changed, tolerance)
    except REFUSALS:
        holes = False
    try:
        trees = _close(_branches(model, plain, other), torch.stack([whole, apart]), tolerance)
    except REFUSALS:
        trees = False
    return MaskSupport(holes, trees)


def _branches(model: LoadedModel, *prompts: Float[Tensor, "position hidden"]) -> Float[Tensor, "prompt vocabulary"]:
    """The last logits of prompts that begin alike, passed as one tree."""
    tree = PromptTree()
    ends = [tree.add([("both", prompt[:2]), (number, prompt[2:])])[-1] for number, prompt in enumerate(prompts)]
    return model.model(**tree.inputs(), use_cache=False).logits[0, ends]


def _close(a: Tensor, b: Tensor, tolerance: Tensor) -> bool:
    return bool((a - b).abs().max() <= tolerance)


def _last(
    model: LoadedModel, embeds: Float[Tensor, "position hidden"], seen: Bool[Tensor, " position"]
) -> Float[Tensor, " vocabulary"]:
    numbers = position_numbers(seen[None])
    mask = seen[None].long()
    return model.model(
        inputs_embeds=embeds[None], attention_mask=mask, position_ids=numbers, use_cache=False, logits_to_keep=1
    ).logits[0, -1]
