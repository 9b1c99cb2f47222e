"""Attention as maps for pictures: all heads of a text at a size that can be seen, or one head on any tokens."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xai_utils.attention.layers import Layer, pool, stream
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

SIZE = 64  # rows of a map, above which neighbours are pooled


def maps(model: LoadedModel, case: Case, size: int = SIZE) -> Float[np.ndarray, "layer head row column"]:
    """Every head's map for one picture: a text of more than `size` tokens pooled to `size` blocks of neighbours."""
    length = len(case.tokens)
    membership = torch.nn.functional.one_hot(_blocks(length, size)).double() if length > size else None
    found: list[np.ndarray] = []

    def reduce(layer: Layer) -> None:
        part = layer.weights if membership is None else pool(layer.weights, membership)
        found.append(part.float().cpu().numpy())

    stream(model, case.ids, reduce)
    return np.stack(found)


def map_labels(case: Case, size: int = SIZE) -> list[str]:
    """The labels of `maps`: the tokens, or where they were pooled the first token of each block."""
    blocks = _blocks(len(case.tokens), size).tolist()
    return [label for place, label in enumerate(case.labels) if not place or blocks[place] > blocks[place - 1]]


def _blocks(length: int, size: int) -> Int[Tensor, " token"]:
    """The block of each token: `size` of them, as even as can be, or one a token in a shorter text."""
    return torch.arange(length) * size // max(length, size)


def head_map(model: LoadedModel, ids: list[int], layer: int, head: int) -> Float[np.ndarray, "query key"]:
    """One head's weights on token ids, such as the probe text's."""
    kept: list[np.ndarray] = []

    def keep(found: Layer) -> None:
        if found.index == layer:
            kept.append(found.weights[head].cpu().numpy())

    stream(model, ids, keep)
    return kept[0]
