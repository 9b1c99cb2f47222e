"""LIME over words: a weighted linear model of F on versions of the prompt with some words absent (masking.py).

Its coefficients are no shares of anything: they do not sum to F(x) - F(all absent).
"""

from __future__ import annotations

from math import comb

import numpy as np
from jaxtyping import Bool, Float

from xai_utils.attribution.absence import PANEL
from xai_utils.attribution.masking import Game, Removal, draw_error, small
from xai_utils.attribution.result import Attribution, from_words
from xai_utils.attribution.subsets import all_subsets
from xai_utils.attribution.target import Target
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

VERSION = 3  # raise it when results would come out different
ROUND = 64  # prompts in a round of sampling
WIDTH, ALPHA = 0.25, 1.0  # LIME's kernel over the cosine distance, and its ridge penalty


def lime(
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
    """LIME over words (Ribeiro et al. 2016, arXiv 1602.04938) with the choices of its authors' package for text.

    The number of absent words is drawn evenly from 1 to all, then which; prompts weigh sqrt(exp(-d^2 / 0.25^2)) by
    cosine distance d from the whole text; the scores are the coefficients of a ridge regression with penalty 1 for a
    sample of `budget`. Where the budget covers every subset, all of them are used, weighted as they are drawn. The
    standard error is that of the sampling (sandwich estimator). Stops and raises as `shapley`.
    """
    game = Game([Removal(model, case, target, absence, keep_sink, seed)])
    if 2**game.count <= budget:
        masks = all_subsets(game.count)
        scores = lime_fit(masks, game.values(masks), lime_frequency(masks, budget))[0]
        spread = np.zeros(game.count)
    else:
        scores, spread = _sampled(game, tolerance, budget, seed)
    players, error = game.removals[0].players, np.hypot(spread, draw_error(scores))
    return from_words(
        "lime", case, target, players, scores.mean(-1), error, baseline=absence, keep_sink=keep_sink, additive=False
    )


def _sampled(game: Game, tolerance: float, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    budget = max(budget, 4 * game.count)
    generator = np.random.default_rng(seed)
    masks = np.ones((1, game.count), dtype=bool)
    while True:
        size = min(ROUND, budget - len(masks))
        masks = np.concatenate([masks, np.array([lime_draw(generator, game.count) for _ in range(size)])])
        scores, spread = lime_fit(masks, game.values(masks), np.ones(len(masks)))
        if len(masks) >= budget or (len(masks) > 4 * game.count and small(spread, game.ends(), tolerance)):
            return scores, spread


def lime_fit(
    masks: Bool[np.ndarray, "row player"], values: Float[np.ndarray, "row draw"], frequency: Float[np.ndarray, " row"]
) -> tuple[Float[np.ndarray, "player draw"], Float[np.ndarray, " player"]]:
    """Coefficients of LIME's weighted ridge regression, and their standard errors as of a random sample of rows."""
    from sklearn.linear_model import Ridge

    inputs = masks.astype(float)
    distance = 1 - np.sqrt(inputs.mean(1))  # cosine distance from the vector of ones
    weights = frequency * np.sqrt(np.exp(-((distance / WIDTH) ** 2)))
    fit = Ridge(alpha=ALPHA).fit(inputs, values, sample_weight=weights)
    residual = (values - fit.predict(inputs).reshape(values.shape)).mean(1)
    centred = inputs - np.average(inputs, axis=0, weights=weights)
    bread = np.linalg.inv(centred.T @ (weights[:, None] * centred) + ALPHA * np.eye(inputs.shape[1]))
    meat = centred.T @ ((weights * residual)[:, None] ** 2 * centred) * len(inputs) / max(len(inputs) - len(bread), 1)
    return np.reshape(fit.coef_, (-1, inputs.shape[1])).T, np.sqrt(np.diag(bread @ meat @ bread))


def lime_draw(generator: np.random.Generator, count: int) -> Bool[np.ndarray, " player"]:
    """One random version: which words are present."""
    present = np.ones(count, dtype=bool)
    present[generator.choice(count, generator.integers(1, count + 1), replace=False)] = False
    return present


def lime_frequency(masks: Bool[np.ndarray, "row player"], sample: int) -> Float[np.ndarray, " row"]:
    """How often each subset stands in a sample on average; the whole text once, as in LIME."""
    count = masks.shape[1]
    absent = count - masks.sum(1)
    return np.array([1.0 if not size else (sample - 1) / (count * comb(count, size)) for size in absent.tolist()])
