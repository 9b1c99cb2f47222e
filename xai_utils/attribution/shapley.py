"""Words as players that are present or absent: Shapley values, KernelSHAP, LIME and occlusion.

All four ask F about versions of the prompt with some words at the baseline (removal.py) and sum those answers up in
different ways. Where the budget of forward passes covers every subset of the words, each is computed over all of them,
without sampling error; else it samples until the standard error of every word is small, or the budget ends, and states
the error. Shapley values are additive: they sum to F(x) - F(baseline), and a word's value is shared equally by its
tokens. LIME and occlusion are not: a token alone in its word has the word's score, the others none.

captum, shap and scikit-learn are imported where they compute, as captum is in gradients.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float

from xai_utils.attribution.masking import Removal, all_subsets, draw_error
from xai_utils.attribution.result import FLOOR, Attribution, from_words
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

VERSION = 1  # raise it when results would come out different
PAIRS = 8  # of orders in a round of Shapley sampling
REPLICATES = 8  # of KernelSHAP before its error is believed
ROUND = 64  # prompts in a round of LIME
WIDTH, ALPHA = 0.25, 1.0  # LIME's kernel over the cosine distance, and its ridge penalty


def shapley(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    baseline: str = "mean",
    keep_sink: bool = True,
    tolerance: float = 0.01,
    budget: int = 1000,
    seed: int = 0,
) -> Attribution:
    """Shapley values of words (Castro et al. 2009), by all subsets or by pairs of a random order and its reverse.

    A reversed order cancels much of the first's error (Mitchell et al. 2022, arXiv 2104.12199), so the standard error
    is taken over pairs. Sampling stops where it is within `tolerance` of |F(x) - F(baseline)| for every word, or where
    `budget` forward passes are spent. Raises UserError when the budget is too small for two pairs.
    """
    removal = Removal(model, case, target, baseline, keep_sink, seed)
    count, draws = len(removal.players), len(removal._rows)
    if 2**count * draws <= budget:
        scores = exact_shapley(removal.without(all_subsets(count)))
        return _found("shapley", removal, case, baseline, keep_sink, scores.mean(-1), draw_error(scores), True)
    _affords("shapley", budget, 4 * count * draws, case)
    generator = np.random.default_rng(seed)
    size = min(PAIRS, budget // (2 * count * draws))
    pairs: list[np.ndarray] = []
    seen: set[bytes] = set()
    while True:
        orders = np.array([generator.permutation(count) for _ in range(size)])
        masks = np.concatenate([chains(orders), chains(orders[:, ::-1])])
        seen |= {mask.tobytes() for mask in masks.reshape(-1, count)}
        if pairs and len(seen) * draws > budget:
            break
        gains = _marginals(removal, np.concatenate([orders, orders[:, ::-1]]), masks)
        pairs += list((gains[:size] + gains[size:]) / 2)
        scores = np.array(pairs)
        spread = scores.mean(-1).std(0, ddof=1) / np.sqrt(len(scores))
        if _small(spread, removal, tolerance):
            break
    scores, error = scores.mean(0), np.hypot(spread, draw_error(scores.mean(0)))
    return _found("shapley", removal, case, baseline, keep_sink, scores.mean(-1), error, True)


def kernel_shap(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    baseline: str = "mean",
    keep_sink: bool = True,
    tolerance: float = 0.01,
    budget: int = 1000,
    seed: int = 0,
) -> Attribution:
    """Shapley values of words by a weighted regression on subsets (Lundberg & Lee 2017, arXiv 1705.07874), by `shap`.

    `shap` states no error, so it is run several times with seeds of its own, and the mean has the standard error
    between runs; one run over all subsets, where the budget covers them, is exact. Stops and raises as `shapley` does.
    """
    import shap

    removal = Removal(model, case, target, baseline, keep_sink, seed)
    count, draws = len(removal.players), len(removal._rows)
    exact = 2**count * draws <= budget
    size = 2**count if exact else max(4 * count, 32)
    runs = 1 if exact else budget // (size * draws)
    if not exact:
        _affords("kernel_shap", budget, 2 * size * draws, case)
    found: list[np.ndarray] = []
    explainer = shap.KernelExplainer(lambda present: removal.without(present), np.zeros((1, count)))
    for run in range(runs):
        with _numpy_seed(seed + run):
            scores = explainer.shap_values(np.ones(count), nsamples=size, l1_reg=0, silent=True, gc_collect=False)
        found.append(np.reshape(scores, (count, draws)))
        spread = _between(found)
        if len(found) >= REPLICATES and _small(spread, removal, tolerance):
            break
    scores = np.mean(found, axis=0)
    error = np.hypot(spread, draw_error(scores))
    return _found("kernel_shap", removal, case, baseline, keep_sink, scores.mean(-1), error, True)


def lime(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    baseline: str = "mean",
    keep_sink: bool = True,
    tolerance: float = 0.01,
    budget: int = 1000,
    seed: int = 0,
) -> Attribution:
    """LIME over words (Ribeiro et al. 2016, arXiv 1602.04938) with the choices of its authors' package for text.

    The number of absent words is drawn evenly from 1 to all, then which; prompts weigh sqrt(exp(-d^2 / 0.25^2)) by
    cosine distance d from the whole text; the scores are the coefficients of a ridge regression with penalty 1 for a
    sample of `budget`. The standard error is that of the sampling (sandwich estimator). Stops and raises as `shapley`.
    """
    removal = Removal(model, case, target, baseline, keep_sink, seed)
    count, draws = len(removal.players), len(removal._rows)
    if 2**count * draws <= budget:
        masks = all_subsets(count)
        scores, _ = lime_fit(masks, removal.without(masks), _lime_frequency(masks, budget // draws))
        return _found("lime", removal, case, baseline, keep_sink, scores.mean(-1), draw_error(scores), False)
    _affords("lime", budget, 4 * count * draws, case)
    generator = np.random.default_rng(seed)
    masks = np.ones((1, count), dtype=bool)
    while True:
        size = min(ROUND, budget // draws - len(masks))
        masks = np.concatenate([masks, np.array([_lime_draw(generator, count) for _ in range(size)])])
        scores, spread = lime_fit(masks, removal.without(masks), np.ones(len(masks)))
        if len(masks) * draws + draws > budget or (len(masks) > 4 * count and _small(spread, removal, tolerance)):
            break
    error = np.hypot(spread, draw_error(scores))
    return _found("lime", removal, case, baseline, keep_sink, scores.mean(-1), error, False)


def occlusion(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    baseline: str = "mean",
    keep_sink: bool = True,
    window: int = 2,
    seed: int = 0,
) -> Attribution:
    """Mean of F(x) - F(occluded) over the windows of neighbouring words that hide a word, by captum's `Occlusion`.

    Neighbours that stand in for each other are found, which taking away one word at a time (`ablation`, the same as a
    window of 1) cannot. After Zeiler & Fergus (2014, arXiv 1311.2901). Raises UserError for a window below 1.
    """
    from captum.attr import Occlusion

    if window < 1:
        raise UserError(f"window is {window}; expected at least 1, the number of words hidden at a time; use 2")
    removal = Removal(model, case, target, baseline, keep_sink, seed)
    present = torch.ones(1, len(removal.players), dtype=torch.float64)
    shape = (min(window, len(removal.players)),)
    scores = []
    for draw in range(len(removal._rows)):

        def answer(rows: torch.Tensor, draw: int = draw) -> torch.Tensor:
            return torch.from_numpy(removal.without(rows.numpy() > 0)[:, draw])

        hidden = Occlusion(answer)
        scores.append(hidden.attribute(present, shape, strides=1, baselines=0, perturbations_per_eval=64)[0].numpy())
    columns = np.stack(scores, axis=-1)
    return _found("occlusion", removal, case, baseline, keep_sink, columns.mean(-1), draw_error(columns), False)


def exact_shapley(values: Float[np.ndarray, "subset ..."]) -> Float[np.ndarray, "player ..."]:
    """Shapley values from F on all subsets, in the order of `all_subsets` (Shapley 1953, equation 12).

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


def _lime_draw(generator: np.random.Generator, count: int) -> Bool[np.ndarray, " player"]:
    present = np.ones(count, dtype=bool)
    present[generator.choice(count, generator.integers(1, count + 1), replace=False)] = False
    return present


def _lime_frequency(masks: Bool[np.ndarray, "row player"], sample: int) -> Float[np.ndarray, " row"]:
    """How often each subset stands in a sample on average; the whole text once, as in LIME."""
    count = masks.shape[1]
    absent = count - masks.sum(1)
    return np.array([1.0 if not size else (sample - 1) / (count * comb(count, size)) for size in absent.tolist()])


def _marginals(removal: Removal, orders: np.ndarray, masks: np.ndarray) -> Float[np.ndarray, "order player draw"]:
    """What each player adds when players come in by these orders."""
    values = removal.without(masks.reshape(-1, orders.shape[1])).reshape(*masks.shape[:2], -1)
    ranks = np.argsort(orders, axis=1)
    return np.take_along_axis(np.diff(values, axis=1), ranks[..., None], axis=1)


def _between(runs: list[np.ndarray]) -> Float[np.ndarray, " player"]:
    """Standard error of the mean of independent runs; a single run is exact."""
    means = np.array(runs).mean(-1)
    return means.std(0, ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.zeros(means.shape[1])


def _small(error: Float[np.ndarray, " player"], removal: Removal, tolerance: float) -> bool:
    """Whether every word's standard error is within the tolerance of |F(x) - F(baseline)|."""
    count = len(removal.players)
    ends = removal.without(np.array([[True] * count, [False] * count])).mean(1)
    return bool(error.max() <= tolerance * max(abs(ends[0] - ends[1]), FLOOR))


def _affords(method: str, budget: int, needed: int, case: Case) -> None:
    if budget < needed:
        raise UserError(
            f"text '{case.text_id}': a budget of {budget} is below one round of {method}; expected at least {needed} "
            "forward passes for so many words; raise budget or leave the method out"
        )


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """`shap` draws from numpy's global generator: seed it, and put it back as it was."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


def _found(
    method: str,
    removal: Removal,
    case: Case,
    baseline: str,
    keep_sink: bool,
    scores: Float[np.ndarray, " player"],
    errors: Float[np.ndarray, " player"],
    additive: bool,
) -> Attribution:
    target, players = removal.objective.target, removal.players
    settings = {"baseline": baseline, "keep_sink": keep_sink, "additive": additive}
    return from_words(method, case, target, players, scores, errors, **settings)  # type: ignore[arg-type]
