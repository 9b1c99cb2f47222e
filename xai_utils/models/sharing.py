"""Models that were adapted from one base differ in few of their weights: what is equal is held once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from xai_utils.models.loading import LoadedModel


def share(models: Sequence[LoadedModel]) -> None:
    """Let every parameter of the last model that equals the same one of an earlier model, bit by bit, take its memory.

    Weights are frozen, so nobody sees a difference; what re-randomises them does so in a copy.
    """
    *earlier, last = models
    held = [dict(model.model.named_parameters()) for model in earlier]
    for name, own in last.model.named_parameters():
        for other in (parameters[name] for parameters in held if name in parameters):
            if _equal(own, other):
                own.data = other.data
                break


def _equal(own: nn.Parameter, other: nn.Parameter) -> bool:
    plain = type(own) is type(other) is nn.Parameter  # quantised weights are of kinds of their own
    alike = own.shape == other.shape and own.dtype == other.dtype and own.device == other.device
    same = alike and own.data_ptr() == other.data_ptr()  # shared before
    return plain and alike and own.device.type != "meta" and (same or torch.equal(own, other))
