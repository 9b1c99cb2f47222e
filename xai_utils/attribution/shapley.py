"""Shapley values of words: how much F(x) - F(all words absent) each word accounts for, under one absence or a panel.

F is asked for versions of the prompt with some words absent (masking.py). Where the budget covers every subset of the
words, the values are exact; else words come in by random orders, each with its reverse, until the standard error of
every word is small or the budget ends. Either way they sum to F(x) - F(all absent), and a word's value is shared
equally by its tokens. A budget counts versions of the prompt; each is passed once for every absence and draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Bool, Float

from xai_utils.attribution.absence import PANEL
from xai_utils.attribution.masking import Removal, all_subsets, draw_error
from xai_utils.attribution.result import FLOOR, Attribution, Certificate, from_words
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.models.watch import came_to
from xai_utils.text.cases import Case

VERSION = 3  # raise it when results would come out different
PAIRS = 8  # of an order and its reverse in a round of sampling
WIDTH = 1.96  # standard errors within which a sampled value is known

Gains = Float[np.ndarray, "pair player column"]


def panel_shapley(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    absences: Sequence[str] = PANEL,
    tolerance: float = 0.01,
    budget: int = 1024,
    seed: int = 0,
) -> Attribution:
    """Mean of the Shapley values of words under several absences, with their range.

    A word's `low` and `high` are its least and greatest value over the absences, widened by 1.96 standard errors where
    they are sampled; it stands where both have one sign. The first position is fixed. Enumerated up to 2^n = `budget`
    versions of the prompt (10 words for 1024), sampled beyond. Raises UserError for an absence that the model cannot
    do, a panel without or with repeated absences, and a budget that is too small for two pairs of orders.
    """
    if not absences or len(set(absences)) < len(absences):
        raise UserError(f"absences are {list(absences)}; expected at least one, each once; use {', '.join(PANEL)}")
    removals = [Removal(model, case, target, absence, True, seed) for absence in absences]
    return _attribution("panel_shapley", "panel", removals, case, target, tolerance, budget, seed)


def shapley(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    absence: str = PANEL[0],
    keep_sink: bool = True,
    tolerance: float = 0.01,
    budget: int = 1024,
    seed: int = 0,
) -> Attribution:
    """Shapley values of words under one absence (Shapley 1953; by random orders, Castro et al. 2009).

    Enumerated and sampled as in `panel_shapley`. Raises UserError for an absence that the model cannot do and for a
    budget that is too small.
    """
    removals = [Removal(model, case, target, absence, keep_sink, seed)]
    return _attribution("shapley", absence, removals, case, target, tolerance, budget, seed, keep_sink)


def exact_shapley(values: Float[np.ndarray, "subset ..."]) -> Float[np.ndarray, "player ..."]:
    """Shapley values from the values of all subsets, in the order of `all_subsets`.

    >>> exact_shapley(np.array([0.0, 1.0, 3.0, 10.0]))  # alone the first is worth 1, the second 3, both 10
    array([4., 6.])
    """
    count = len(values).bit_length() - 1
    sizes = all_subsets(count).sum(1)
    scores = []
    for player in range(count):
        without = np.flatnonzero(~all_subsets(count)[:, player])
        weights = np.array([1 / (count * comb(count - 1, size)) for size in sizes[without]])
        scores.append(np.tensordot(weights, values[without | 1 << player] - values[without], 1))
    return np.array(scores)


def chains(orders: np.ndarray) -> Bool[np.ndarray, "order step player"]:
    """Who is present when players come in one by one, from nobody to all.

    >>> chains(np.array([[1, 0]])).astype(int).tolist()
    [[[0, 0], [0, 1], [1, 1]]]
    """
    ranks = np.argsort(orders, axis=1)
    return ranks[:, None, :] < np.arange(orders.shape[1] + 1)[None, :, None]


# ---- several absences as one game


@dataclass(frozen=True)
class Game:
    """F of subsets of words under all absences of a panel, a column a draw of each."""

    removals: Sequence[Removal]

    @property
    def count(self) -> int:
        return len(self.removals[0].players)

    def values(self, present: Bool[np.ndarray, "row player"]) -> Float[np.ndarray, "row column"]:
        return np.concatenate([removal.without(present) for removal in self.removals], axis=1)

    def ends(self) -> Float[np.ndarray, "2 column"]:
        """F(x) and F with all words absent."""
        return self.values(np.array([[True] * self.count, [False] * self.count]))

    def by_absence(self, columns: Float[np.ndarray, "... column"]) -> list[Float[np.ndarray, "... draw"]]:
        edges = np.cumsum([removal.draws for removal in self.removals])[:-1]
        return np.split(columns, edges, axis=-1)

    def means(self, columns: Float[np.ndarray, "... column"]) -> Float[np.ndarray, "... absence"]:
        """Mean over the draws of each absence."""
        return np.stack([part.mean(-1) for part in self.by_absence(columns)], axis=-1)


def sampled(game: Game, tolerance: float, budget: int, seed: int) -> Gains:
    """What each word adds in random orders, the mean of an order and its reverse: one row a pair.

    A reversed order cancels much of the first's error (Mitchell et al. 2022, arXiv 2104.12199), so errors are taken
    over pairs. Stops where the standard error is within `tolerance` of |F(x) - F(all absent)| for every word, or where
    `budget` versions of the prompt are spent.
    """
    generator = np.random.default_rng(seed)
    size = min(PAIRS, budget // (2 * game.count))
    pairs: list[np.ndarray] = []
    seen: set[bytes] = set()
    while True:
        orders = np.array([generator.permutation(game.count) for _ in range(size)])
        masks = np.concatenate([chains(orders), chains(orders[:, ::-1])])
        seen |= {mask.tobytes() for mask in masks.reshape(-1, game.count)}
        if pairs and len(seen) > budget:
            break
        gains = _marginals(game, np.concatenate([orders, orders[:, ::-1]]), masks)
        pairs += list((gains[:size] + gains[size:]) / 2)
        error, ends = pair_error(game.means(np.array(pairs)).mean(-1)), game.ends()
        came_to(float(error.max()) / max(abs(ends[0].mean() - ends[1].mean()), FLOOR), tolerance)
        if small(error, ends, tolerance):
            break
    return np.array(pairs)


def _marginals(game: Game, orders: np.ndarray, masks: np.ndarray) -> Float[np.ndarray, "order player column"]:
    """What each player adds when players come in by these orders."""
    values = game.values(masks.reshape(-1, orders.shape[1])).reshape(*masks.shape[:2], -1)
    ranks = np.argsort(orders, axis=1)
    return np.take_along_axis(np.diff(values, axis=1), ranks[..., None], axis=1)


def pair_error(pairs: Float[np.ndarray, "pair ..."]) -> np.ndarray:
    """Standard error of the mean over pairs; of an enumeration, which is one exact row, none."""
    return pairs.std(0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else np.zeros(pairs.shape[1:])


def small(error: Float[np.ndarray, " player"], ends: Float[np.ndarray, "2 column"], tolerance: float) -> bool:
    """Whether every word's standard error is within the tolerance of |F(x) - F(all absent)|."""
    whole, nothing = ends.mean(1)
    return bool(error.max() <= tolerance * max(abs(whole - nothing), FLOOR))


def check_budget(method: str, budget: int, needed: int, case: Case) -> None:
    if budget < needed:
        raise UserError(
            f"text '{case.text_id}': a budget of {budget} is below one round of {method}; expected at least {needed} "
            "versions of the prompt for so many words; raise budget or leave the method out"
        )


def _attribution(
    method: str,
    baseline: str,
    removals: Sequence[Removal],
    case: Case,
    target: Target,
    tolerance: float,
    budget: int,
    seed: int,
    keep_sink: bool = True,
) -> Attribution:
    game = Game(removals)
    if 2**game.count <= budget:
        versions = 2**game.count
        gains = exact_shapley(game.values(all_subsets(game.count)))[None]
    else:
        check_budget(method, budget, 4 * game.count, case)
        gains = sampled(game, tolerance, budget, seed)
        versions = 2 * len(gains) * (game.count - 1) + 2
    scores, *ranges = _summary(game, gains)
    panel = dict(zip(("low", "high", "by_absence"), ranges, strict=True)) if baseline == "panel" else {}
    proof = _certificate(game, scores[0], versions, tolerance)
    return from_words(
        method, case, target, removals[0].players, *scores, baseline=baseline, keep_sink=keep_sink, additive=True,
        certificate=proof, **panel,
    )  # fmt: skip


def _summary(game: Game, gains: Gains) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the panel with its error [2, player], its least and greatest [player], all of it [absence, player].

    Errors come from the pairs of orders and from the draws of an absence; the absences themselves are no sample.
    """
    pairs = game.means(gains)  # [pair, player, absence]
    means = pairs.mean(0)
    drawn = np.stack([draw_error(part) for part in game.by_absence(gains.mean(0))], axis=-1)
    each = WIDTH * np.hypot(pair_error(pairs), drawn)
    error = np.hypot(pair_error(pairs.mean(-1)), np.sqrt((drawn**2).sum(-1)) / drawn.shape[-1])
    return np.stack([means.mean(-1), error]), (means - each).min(-1), (means + each).max(-1), means.T


def _certificate(game: Game, scores: Float[np.ndarray, " player"], versions: int, tolerance: float) -> Certificate:
    """That the scores sum to F(x) - F(all absent), the mean over the panel: exact by construction, to rounding."""
    whole, nothing = game.means(game.ends()).mean(-1)
    delta = float(scores.sum() - (whole - nothing))
    forwards = versions * sum(removal.draws for removal in game.removals)
    scale = max(abs(float(whole - nothing)), FLOOR)
    return Certificate(
        tolerance=tolerance,
        evaluations=0,
        forwards=forwards,
        f_input=float(whole),
        f_baseline=float(nothing),
        delta=delta,
        bound=abs(delta) / scale,
        token_error=float("nan"),
        exact=True,
    )
