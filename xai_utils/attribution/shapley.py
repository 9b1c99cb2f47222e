"""Shapley values of words: how much F(x) - F(all words absent) each word accounts for, under one absence or a panel.

F is asked for versions of the prompt with some words absent (masking.py). Where the budget covers every subset of the
words, the values are exact; else words come in by random orders, each with its reverse, until the standard error of
every word is small or the budget ends. Either way they sum to F(x) - F(all absent), and a word's value is shared
equally by its tokens. A budget counts versions of the prompt; each is passed once for every absence and draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from xai_utils.attribution.absence import PANEL
from xai_utils.attribution.masking import Game, Removal, draw_error, small
from xai_utils.attribution.result import FLOOR, NORMAL_95, Attribution, Certificate, from_words
from xai_utils.attribution.subsets import all_subsets, chains, exact_shapley, marginals
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.models.watch import came_to
from xai_utils.text.cases import Case

VERSION = 3  # raise it when results would come out different
ROUND_PAIRS = 8  # of an order and its reverse in a round of sampling

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
    versions of the prompt (10 words for 1024), sampled beyond, where two pairs of orders are the least. Raises
    UserError for an absence that the model cannot do, and a panel without or with repeated absences.
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

    Enumerated and sampled as in `panel_shapley`. Raises UserError for an absence that the model cannot do.
    """
    removals = [Removal(model, case, target, absence, keep_sink, seed)]
    return _attribution("shapley", absence, removals, case, target, tolerance, budget, seed, keep_sink)


def sampled(game: Game, tolerance: float, budget: int, seed: int) -> Gains:
    """What each word adds in random orders, the mean of an order and its reverse: one row a pair.

    A reversed order cancels much of the first's error (Mitchell et al. 2022, arXiv 2104.12199), so errors are taken
    over pairs. Stops where the standard error is within `tolerance` of |F(x) - F(all absent)| for every word, or where
    `budget` versions of the prompt are spent.
    """
    generator = np.random.default_rng(seed)
    size = min(ROUND_PAIRS, budget // (2 * game.count))
    pairs: list[np.ndarray] = []
    seen: set[bytes] = set()
    while True:
        orders = np.array([generator.permutation(game.count) for _ in range(size)])
        masks = np.concatenate([chains(orders), chains(orders[:, ::-1])])
        seen |= {mask.tobytes() for mask in masks.reshape(-1, game.count)}
        if pairs and len(seen) > budget:
            break
        values = game.values(masks.reshape(-1, game.count)).reshape(*masks.shape[:2], -1)
        gains = marginals(values, np.concatenate([orders, orders[:, ::-1]]))
        pairs += list((gains[:size] + gains[size:]) / 2)
        error, ends = pair_error(game.means(np.array(pairs)).mean(-1)), game.ends()
        came_to(float(error.max()) / max(abs(ends[0].mean() - ends[1].mean()), FLOOR), tolerance)
        if small(error, ends, tolerance):
            break
    return np.array(pairs)


def pair_error(pairs: Float[np.ndarray, "pair ..."]) -> np.ndarray:
    """Standard error of the mean over pairs; of an enumeration, which is one exact row, none."""
    return pairs.std(0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else np.zeros(pairs.shape[1:])


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
        gains = sampled(game, tolerance, max(budget, 4 * game.count), seed)
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
    each = NORMAL_95 * np.hypot(pair_error(pairs), drawn)
    error = np.hypot(pair_error(pairs.mean(-1)), np.sqrt((drawn**2).sum(-1)) / drawn.shape[-1])
    return np.stack([means.mean(-1), error]), (means - each).min(-1), (means + each).max(-1), means.T


def _certificate(game: Game, scores: Float[np.ndarray, " player"], versions: int, tolerance: float) -> Certificate:
    """That the scores sum to F(x) - F(all absent), the mean over the panel: exact by construction, to rounding."""
    whole, nothing = game.means(game.ends()).mean(-1).tolist()
    forwards = versions * sum(removal.draws for removal in game.removals)
    return Certificate.of_sum(scores.sum(), whole, nothing, tolerance, forwards=forwards, exact=True)
