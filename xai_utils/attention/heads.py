"""Heads grouped by what they do: start of the text, previous token, near by, far and wide, repeated tokens (induction).

One rule for all groups: a head belongs to the place that takes at least half of the mass it could take beyond what
uniform attention puts there. Four places are measured on a study's own texts; induction, attention to the
token that followed the last occurrence of the present one, on random tokens read twice (Olsson et al. 2022,
arXiv 2209.11895), where nothing but the repetition can be known. A group says where a head looks on these texts; it
does not say what the head is for.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from xai_utils.attention.layers import Layer, statistics, stream, uniform
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel

GROUPS = {
    "induction": "the token that followed the last occurrence of the present one",
    "sink": "the first position",
    "previous": "the position before",
    "local": "the last four positions",
    "broad": "no place that takes half of it",
}
PLACES = list(GROUPS)[:-1]
MAJORITY = 0.5
PROBE_LENGTH = 25  # random tokens, read twice
PROBE_DRAWS = 4


def probe_ids(model: LoadedModel, seed: int = 0, length: int = PROBE_LENGTH) -> list[int]:
    """Token ids of the probe text: the model's document start, then `length` different random tokens, twice.

    Special tokens and pieces of a character are not drawn. Raises UserError for a vocabulary that is too small.
    """
    special = set(model.tokenizer.all_special_ids) | set(model.tokenizer.added_tokens_decoder)
    drawn = torch.randperm(len(model.tokenizer), generator=torch.Generator().manual_seed(seed)).tolist()
    whole = (index for index in drawn if index not in special and "\ufffd" not in model.tokenizer.decode([index]))
    tokens = list(itertools.islice(whole, length))
    if len(tokens) < length:
        raise UserError(
            f"{model.label}: {len(tokens)} ordinary tokens; expected at least {length} for the probe text; "
            "choose a model with a larger vocabulary"
        )
    start = [model.tokenizer("a")["input_ids"][0] if model.document_start is None else model.document_start]
    return start + tokens + tokens


def induction(model: LoadedModel, seed: int = 0, draws: int = PROBE_DRAWS) -> Float[np.ndarray, "layer head"]:
    """Mean mass that queries of the second reading put on the token after their first occurrence, over random draws."""
    scores: list[np.ndarray] = []
    for draw in range(draws):
        stream(model, probe_ids(model, seed + draw), lambda layer: scores.append(_follow(layer.weights)))
    return np.stack(scores).reshape(draws, -1, len(scores[0])).mean(0)


def looking_back(model: LoadedModel, ids: list[int]) -> Float[np.ndarray, "layer head"]:
    """How strongly each head looks at one earlier token that is neither the first nor the one just before.

    The mean over queries of the largest such weight: near 0 for heads that rest on the first position, look at
    themselves or one back, or spread over all; 0 on fewer than four tokens.
    """
    found: list[np.ndarray] = []

    def keep(layer: Layer) -> None:
        earlier = layer.weights.double().tril(-2)[:, 3:, 1:]
        found.append((earlier.amax(-1).mean(-1) if earlier.numel() else earlier.sum((1, 2))).cpu().numpy())

    stream(model, ids, keep)
    return np.stack(found)


def _follow(weights: Float[Tensor, "head query key"]) -> Float[np.ndarray, " head"]:
    """Mean mass from each query i of the second reading on the token after its first occurrence, key i + 1 - length.

    The diagonal's first two entries belong to queries of the first reading.
    """
    return weights.diagonal(1 - PROBE_LENGTH, dim1=-2, dim2=-1)[:, 2:].mean(-1).double().cpu().numpy()


def _beyond_chance(mass: pd.Series, chance: pd.Series | float) -> pd.Series:
    """Of the mass that uniform attention leaves elsewhere, the share that a head puts here.

    >>> _beyond_chance(pd.Series([0.2, 0.6, 1.0]), 0.2).round(3).tolist()
    [0.0, 0.5, 1.0]
    """
    return (mass - chance) / (1 - chance)


def group_heads(table: pd.DataFrame, scores: Float[np.ndarray, "layer head"]) -> pd.DataFrame:
    """One row a head of one model: its share beyond chance in each place, its group, and whether it is the example.

    `table` holds `attention_heads` rows of one model over any number of texts, `scores` comes from `induction`; shares
    are means over the texts. A head that passes in two places is in the one that stands first in `GROUPS`. The example
    of a group has the largest share, of the broad ones the least in any place. Raises UserError where no text has the
    three tokens that tell places apart.
    """
    usable = table[table["tokens"] > 2].copy()
    if usable.empty:
        raise UserError(
            "no text has three tokens, so heads cannot be told apart; expected one that has; use longer texts"
        )
    plain = {count: statistics(uniform(count)) for count in usable["tokens"].unique()}
    for place in PLACES[1:]:
        chance = usable["tokens"].map({count: found[place].item() for count, found in plain.items()})
        usable[place] = _beyond_chance(usable[place], chance)
    heads = usable.groupby(["layer", "head"], as_index=False)[PLACES[1:]].mean()
    chance = _follow(uniform(2 * PROBE_LENGTH + 1)[None]).item()
    heads.insert(2, "induction", _beyond_chance(pd.Series(scores.ravel()), chance))
    shares = heads[PLACES]
    broad = shares.max(axis=1) < MAJORITY
    heads["group"] = (shares >= MAJORITY).idxmax(axis=1).mask(broad, "broad")
    heads["share"] = shares.assign(broad=1 - shares.max(axis=1)).to_numpy()[range(len(heads)), _columns(heads["group"])]
    heads["example"] = heads.index.isin(heads.groupby("group")["share"].idxmax())
    return heads


def _columns(groups: pd.Series) -> list[int]:
    return [list(GROUPS).index(group) for group in groups]
