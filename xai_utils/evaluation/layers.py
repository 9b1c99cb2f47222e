"""The deletion test of a map of layers: does undoing an adaptation in its highest layers undo the difference?

An adaptation is undone in a layer by putting the base's weights back there. What a set of layers undoes is
(F_other - F_without) / (F_other - F_base): 1 where nothing of the difference is left. As for words, sets are compared
with random ones and with the best that a greedy search finds: share 0 is random, 1 the best (after Normalised AOPC,
arXiv 2408.08137). The test intervenes on the model; the map had only gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import spearmanr

from xai_utils.attribution.mixture import Mixture
from xai_utils.attribution.parts import make_pair
from xai_utils.attribution.result import FLOOR
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

VERSION = 1  # raise it when the test would give other numbers
OUTSIDE_LAYER = -1  # stands for the layer of what is outside all layers


@dataclass(frozen=True)
class LayerDeletion:
    """What undoing the adaptation in `removed` layers undoes of the difference, by which of them are chosen."""

    keys: dict[str, str]  # study, text, base, other, target, target_text, unit
    removed: int
    highest: float  # of the map, in the direction of the difference
    lowest: float
    random: Float[np.ndarray, " draw"]
    best: float
    highest_layers: tuple[int, ...]
    best_layers: tuple[int, ...]

    @property
    def share(self) -> float:
        """Where the map's highest layers stand between random ones (0) and the best found (1)."""
        return (self.highest - self.random.mean()) / max(self.best - self.random.mean(), 1e-9)

    def row(self) -> dict[str, Any]:
        """One row of the table `layer_deletion`."""
        named = {"removed": self.removed, "highest": self.highest, "lowest": self.lowest, "best": self.best}
        spread = {"random": float(self.random.mean()), "random_95": float(np.percentile(self.random, 95))}
        layers = {"highest_layers": list(self.highest_layers), "best_layers": list(self.best_layers)}
        return self.keys | named | spread | {"share": self.share} | layers


def layer_deletion(
    base: LoadedModel,
    other: LoadedModel,
    base_case: Case,
    other_case: Case,
    scores: Sequence[float] | Float[np.ndarray, " layer"],
    kind: str = "logprob",
    *,
    removed: int = 5,
    draws: int = 100,
    seed: int = 0,
) -> LayerDeletion:
    """Undo the adaptation in `removed` layers: the map's highest, its lowest, random ones, and the best found.

    `scores` are a map's sums by layer, such as `AdapterPath.by_layer`. The best are found by a greedy search, which
    adds the layer that undoes most. Raises UserError for models that cannot be mixed, scores of other layers, too many
    removed, and a difference that is next to nothing.
    """
    both = make_pair(base, other, base_case, other_case, kind)
    mixture = Mixture(both, groups=base.model.config.get_text_config().num_hidden_layers)
    layers = sorted({layer for part in mixture.parts for layer in part.layers})
    _check(removed, layers, scores)
    f_base, f_other = mixture.ends()
    if abs(f_other - f_base) < FLOOR:
        raise UserError(
            f"text '{base_case.text_id}': the models differ by {f_other - f_base:.2g} {both.base.target.unit}, so "
            f"nothing can be undone; expected at least {FLOOR}; choose another answer"
        )

    def undone(sets: list[list[int]]) -> Float[np.ndarray, " set"]:
        return (f_other - mixture.values(without(mixture, sets))) / (f_other - f_base)

    order = np.argsort(-np.asarray(scores)[layers] * np.sign(f_other - f_base), kind="stable")
    ranked = [layers[index] for index in order]
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(layers, removed, replace=False).tolist() for _ in range(draws)]
    found = undone([ranked[:removed], ranked[-removed:], *drawn])
    best = max(_greedy(undone, layers, removed), (float(found[0]), ranked[:removed]))  # greedy may miss the map's own
    chosen = tuple(sorted(ranked[:removed])), tuple(sorted(best[1]))
    return LayerDeletion(both.keys(), removed, float(found[0]), float(found[1]), found[2:], best[0], *chosen)


def _check(removed: int, layers: list[int], scores: Sequence[float] | np.ndarray) -> None:
    if len(scores) <= max(layers, default=-1) or not 0 < removed < len(layers):
        raise UserError(
            f"{removed} of {len(layers)} adapted layers are to be undone and there are scores of {len(scores)}; "
            "expected fewer layers than are adapted, and a score for every layer"
        )


def _greedy(
    undone: Callable[[list[list[int]]], np.ndarray], layers: list[int], removed: int
) -> tuple[float, list[int]]:
    """What the layers undo that are added one by one, each the one that undoes most; and these layers."""
    chosen: list[int] = []
    while len(chosen) < removed:
        candidates = [[*chosen, layer] for layer in layers if layer not in chosen]
        values = undone(candidates)
        chosen = candidates[int(values.argmax())]
    return float(values.max()), chosen


def without(mixture: Mixture, sets: list[list[int]]) -> Bool[np.ndarray, "set part"]:
    """The other model with the base's weights in some layers, as subsets of a mixture's parts."""
    return np.array([[not set(part.layers) & set(layers) for part in mixture.parts] for layers in sets])


def group_scores(path: pd.DataFrame, swapped: pd.DataFrame) -> Float[np.ndarray, "2 group"]:
    """The scores of each group of layers of a swap, and the same sums of an adapter path.

    Both are rows of the tables `swap` and `adapter_path` of one text, pair and target.
    """
    groups = swapped[swapped["kind"] == "layers"]
    sums = path.assign(layer=path["layer"].fillna(OUTSIDE_LAYER)).groupby(["half", "layer"])["score"].sum()
    along = [
        sum(sums.get((half, layer), 0.0) for layer in (*layers, OUTSIDE_LAYER))
        for half, layers in zip(groups["half"], groups["layers"], strict=True)
    ]
    return np.array([groups["score"], along], dtype=float)


def rank_correlation(path: pd.DataFrame, swapped: pd.DataFrame) -> float:
    """Spearman's rank correlation between the two over groups of layers; nan where there are fewer than three."""
    both = group_scores(path, swapped)
    return float(spearmanr(*both).statistic) if both.shape[1] > 2 else float("nan")
