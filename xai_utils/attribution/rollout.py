"""Attention made into attribution methods: the last position's weights, and rollout through the layers.

Rollout (Abnar & Zuidema 2020, arXiv 2005.00928) multiplies the layers' mean weights, half of each replaced by the
residual connection. In a causal model it drifts to the first position by construction: every step can only go back.
`drift` shows how much of that is the model's doing. Both methods tell shares of attention, not contributions to the
target; they stand in the table of methods to be compared with the others.
"""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from xai_utils.attention.layers import Layer, stream, uniform
from xai_utils.attribution.result import Attribution, from_tokens
from xai_utils.attribution.target import Target
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

UNIT = "share of attention"
VERSION = 1  # raise it when results would come out different


def _step(mean: Float[Tensor, "query key"], before: Float[Tensor, "query key"]) -> Float[Tensor, "query key"]:
    """One layer more: half through attention, half through the residual connection."""
    return 0.5 * (mean @ before + before)


def rollout_matrix(model: LoadedModel, case: Case) -> Float[Tensor, "query key"]:
    """Rollout from the last layer to the embeddings: rows sum to 1."""
    return _through(model, case)[-1]


def _through(model: LoadedModel, case: Case) -> list[Float[Tensor, "query key"]]:
    """Rollout after every layer, the embeddings themselves (the identity) first."""
    found = [torch.eye(len(case.tokens), dtype=torch.float64)]

    def advance(layer: Layer) -> None:
        found.append(_step(layer.weights.mean(0).double().cpu(), found[-1]))

    stream(model, case.ids, advance)
    return found


def drift(model: LoadedModel, case: Case) -> pd.DataFrame:
    """Rollout's mass on the first position, a row a layer: keys, layer, `model`'s and that of `uniform` attention.

    Means over all queries but the first. What uniform causal attention reaches is the method's, not the model's.
    """
    plain = [torch.eye(len(case.tokens), dtype=torch.float64)]
    found = _through(model, case)
    for _ in found[1:]:
        plain.append(_step(uniform(len(case.tokens)).double(), plain[-1]))
    rows = [
        case.keys() | {"layer": layer, "rollout": _start(own), "rollout_uniform": _start(other)}
        for layer, (own, other) in enumerate(zip(found[1:], plain[1:], strict=True))
    ]
    return pd.DataFrame(rows)


def _start(matrix: Tensor) -> float:
    return matrix[1:, 0].mean().item()


def attention(model: LoadedModel, case: Case, target: Target, *, keep_sink: bool = True) -> Attribution:
    """Weights of the prompt's last position, from which the model goes on, averaged over all layers and heads.

    `target` changes nothing: attention does not know what is explained. Scores are shares of attention and sum to 1
    with the first position; a word's score is the sum over its tokens, which is what attention to the word is.
    """
    rows: list[Tensor] = []
    stream(model, case.ids, lambda layer: rows.append(layer.weights[:, -1].double().mean(0).cpu()))
    scores = torch.stack(rows).mean(0).numpy()
    return from_tokens("attention", case, target, scores, keep_sink=keep_sink, additive=False, unit=UNIT)


def rollout(model: LoadedModel, case: Case, target: Target, *, keep_sink: bool = True) -> Attribution:
    """Rollout's last row: shares of the last position's attention, followed back to the embeddings.

    `target` changes nothing, as in `attention`.
    """
    scores = rollout_matrix(model, case)[-1].numpy()
    return from_tokens("rollout", case, target, scores, keep_sink=keep_sink, additive=False, unit=UNIT)
