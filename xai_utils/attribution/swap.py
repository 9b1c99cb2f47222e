"""Swap attribution: the difference between two models, shared among the parts in which they differ. The base is the
baseline.

v(S) is F of the model in which the parts in S are the other model's and all others the base's; the scores are the
Shapley values of v (Shapley 1953), so they sum to F_other - F_base. Nothing artificial stands in for an absent part,
and a prompt read by both tokenizers in turn is well formed (splicing.py). Parts interact, and Shapley values share
interactions out equally: a score is not the effect of its part alone.

We know of no earlier work that shares the difference between two models among tokenization, rows and layers in this
way. The nearest exchanges activations between a model and its fine-tuned version, one site at a time: cross-model
activation patching (Prakash et al. 2024, arXiv 2402.14811).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xai_utils.attribution.mixture import Mixture
from xai_utils.attribution.parts import Pair, Part, make_pair
from xai_utils.attribution.subsets import all_subsets, chains, exact_shapley, marginals
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

VERSION = 1  # raise it when the method would give other numbers
LAYER_GROUPS = (4, 3, 2)  # runs of layers: as many as can be enumerated within the budget
LEAST_PAIRS = 2  # of orders: the fewest that have a standard error


@dataclass(frozen=True)
class Swap:
    """Scores of the parts in which two models differ, in the unit of the target. `errors` are 0 where enumerated."""

    keys: dict[str, str]  # study, text, base, other, target, target_text, unit
    parts: tuple[Part, ...]
    scores: np.ndarray  # [part]
    errors: np.ndarray  # [part]
    f_base: float
    f_other: float
    exact: bool
    passes: int  # mixed models evaluated

    def rows(self) -> list[dict[str, Any]]:
        """One row a part, of the table `swap`."""
        return [
            self.keys
            | {"part": part.name, "kind": part.kind, "start": part.start, "end": part.end}
            | {"half": part.half, "layers": list(part.layers)}
            | {"score": score, "error": error, "exact": self.exact, "f_base": self.f_base, "f_other": self.f_other}
            for part, score, error in zip(self.parts, self.scores.tolist(), self.errors.tolist(), strict=True)
        ]


def swap(
    base: LoadedModel,
    other: LoadedModel,
    base_case: Case,
    other_case: Case,
    kind: str = "logprob",
    *,
    budget: int = 1024,
    seed: int = 0,
) -> Swap:
    """F_other - F_base shared among how each word is read, how the answer is written, and groups of layers.

    Enumerates all mixtures where the budget covers them; else samples orders of the parts, each with its reverse
    (Mitchell et al. 2022, arXiv 2104.12199), at least two of them, and states standard errors. `kind` is the target's:
    logprob, logit or contrast. Raises UserError for models of different shapes, texts or answers.
    """
    both = make_pair(base, other, base_case, other_case, kind)
    mixture = _affordable(both, budget)
    count = len(mixture.parts)
    ends, exact = mixture.ends(), 2**count <= budget
    if exact:
        values = mixture.values(all_subsets(count))
        scores, errors, ends, passes = exact_shapley(values), np.zeros(count), values[[0, -1]], len(values)
    else:
        scores, errors, passes = _sampled(mixture, budget, seed)
    f_base, f_other = ends.tolist()
    return Swap(both.keys(), mixture.parts, scores, errors, f_base, f_other, exact, passes)


def _affordable(both: Pair, budget: int) -> Mixture:
    """The mixture with the most groups of layers that the budget can enumerate, else with the fewest."""
    for groups in LAYER_GROUPS:
        mixture = Mixture(both, groups)
        if 2 ** len(mixture.parts) <= budget:
            break
    return mixture


def _sampled(mixture: Mixture, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Shapley values and standard errors over pairs of an order and its reverse, and the mixtures evaluated."""
    count = len(mixture.parts)
    pairs = max(budget // (2 * (count + 1)), LEAST_PAIRS)
    generator = np.random.default_rng(seed)
    orders = np.array([generator.permutation(count) for _ in range(pairs)])
    orders = np.concatenate([orders, orders[:, ::-1]])
    chosen = chains(orders)
    distinct, which = np.unique(chosen.reshape(-1, count), axis=0, return_inverse=True)
    values = mixture.values(distinct)[which.ravel()].reshape(chosen.shape[:2])
    gains = marginals(values[..., None], orders)[..., 0]
    scores = (gains[:pairs] + gains[pairs:]) / 2
    return scores.mean(0), scores.std(0, ddof=1) / np.sqrt(pairs), len(distinct)
