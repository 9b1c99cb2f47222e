"""What the adaptation changed: differences of word scores with their noise floor, and tests over texts.

A difference on one word is real when it is beyond the floor of both models' errors *and* keeps its sign over the
certified baselines. Over a study the unit is the text, not the word: words of one text are not independent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from xai_utils.attribution.result import NORMAL_95
from xai_utils.text.alignment import WORD_KEYS, side_by_side

CASE = ["text", "model", "target", "method", "baseline", "sink"]
LEVEL = 0.05  # of the tests over texts
FOUND, NONE, UNDECIDED = "difference", "no difference found", "cannot be decided"
RESOLUTION = 1e-3  # of a text's shares and nats a character: two certified runs on the same tokens part by less
# The least difference of one word that two sentences beside each other call one. 0.1 nats change the odds of an answer
# by a tenth, and are the least that relative errors are measured against; two ways to write the same text move more.
EFFECT = 0.1  # nats or logits
ROUNDING = 1e-4  # nats or logits: float32 moves this much between two ways of batching and padding the same text


def certified(scores: pd.DataFrame, certificates: pd.DataFrame) -> pd.DataFrame:
    """The rows of a score table without those whose certificate did not converge."""
    if certificates.empty:
        return scores
    failed = certificates.loc[~certificates["converged"].astype(bool), CASE].drop_duplicates()
    return scores.merge(failed, on=CASE, how="left_anti").reset_index(drop=True)


def differences(
    word_scores: pd.DataFrame, certificates: pd.DataFrame, base: str, other: str, baseline: str
) -> pd.DataFrame:
    """Table `difference`: a row a word, method and text, other minus base, with its floor, at the study's baseline.

    Scores that are not certified are left out. `sign_stable` is whether the difference has the same sign at every
    certified baseline of that method and text (at least two of them; with fewer it is missing); within its floor a
    difference has no sign. `difference_low` and `difference_high` are its range over these baselines. For a method with
    a panel they are what the ranges of both scores allow, and the sign is stable where these do not meet.
    """
    pairs = side_by_side(certified(word_scores, certificates), base, other)
    pairs["difference"] = pairs["score_other"] - pairs["score_base"]
    # The quadrature error of a single token is an estimate too: the truth was seen to pass it by half.
    pairs["floor"] = np.maximum(NORMAL_95 * np.hypot(pairs["error_base"], pairs["error_other"]), ROUNDING)
    pairs["beyond_floor"] = pairs["difference"].abs() > pairs["floor"]
    place = [*WORD_KEYS, "target", "target_text", "method", "sink"]
    pairs["sign"] = np.sign(pairs["difference"]) * pairs["beyond_floor"]
    every = pairs.groupby(place, dropna=False)
    over = every.agg(
        sign_stable=("sign", _one_sign), difference_low=("difference", "min"), difference_high=("difference", "max")
    )
    here = pairs[(pairs["baseline"] == baseline) | ~pairs["method"].isin(_with_choice(word_scores))]
    stable = _ranged(here.merge(over.reset_index(), on=place, how="left"))
    front = ["study", "text", "base", "other", "target", "target_text", "method", "baseline", "sink", "unit"]
    rest = ["word", "start", "end", "pieces_base", "pieces_other", "score_base", "score_other", "difference", "floor"]
    last = ["beyond_floor", "sign_stable", "difference_low", "difference_high"]
    return stable[[*front, *rest, *last]].reset_index(drop=True)


def _ranged(pairs: pd.DataFrame) -> pd.DataFrame:
    """The differences of a panel's scores with the range that both scores' ranges allow."""
    if "low_base" not in pairs:
        return pairs
    low, high = pairs["low_other"] - pairs["high_base"], pairs["high_other"] - pairs["low_base"]
    known = low.notna() & high.notna()
    return pairs.assign(
        difference_low=low.where(known, pairs["difference_low"]),
        difference_high=high.where(known, pairs["difference_high"]),
        sign_stable=((low > 0) | (high < 0)).where(known, pairs["sign_stable"]),
    )


def _one_sign(values: pd.Series) -> Any:
    return pd.NA if len(values) < 2 else bool((values == values.iloc[0]).all() and values.iloc[0])


def _with_choice(word_scores: pd.DataFrame) -> set[str]:
    """The methods that were run at several baselines, whether or not these converged."""
    counted = word_scores.groupby("method")["baseline"].nunique()
    return set(counted[counted > 1].index)


def real(difference: pd.DataFrame) -> pd.Series:
    """Which differences count: beyond the floor, with a sign that no certified baseline turns."""
    return difference["beyond_floor"] & difference["sign_stable"].fillna(False).astype(bool)


def normalised_entropy(scores: ArrayLike) -> float:
    """Entropy of the shares of |scores| over its maximum: 1 where all are alike; nan below two or where all are 0.

    >>> normalised_entropy([1.0, -1.0, 1.0, 1.0])
    1.0
    """
    size = np.abs(np.asarray(scores, dtype=float))
    return float(stats.entropy(size) / np.log(len(size))) if len(size) > 1 and size.any() else np.nan


def paired_test(base: ArrayLike, other: ArrayLike, seed: int = 0, resolution: float = 0.0) -> dict[str, float]:
    """A quantity measured once a text (or translation pair) under two models: is it another one?

    Mean difference with a bootstrap interval (BCa, 95 %), a paired permutation test of that mean (the sign of each
    difference flipped at random; exact up to 13 differences), and the effect size dz (mean over standard deviation of
    the differences). A difference not above `resolution`, in the quantity's own unit, counts as none; without any left
    p is 1. `changed` counts the others: the test has no other evidence.
    """
    change = np.asarray(other, dtype=float) - np.asarray(base, dtype=float)
    change = change[~np.isnan(change)]
    change = np.where(np.abs(change) > resolution, change, 0.0)
    mean = float(change.mean()) if len(change) else np.nan
    low, high = interval(change, seed=seed)
    moved = len(change) > 1 and bool(change.any())
    deviation = change.std(ddof=1) if moved else np.nan
    return {
        "n": len(change),
        "changed": int(np.count_nonzero(change)),
        "difference": mean,
        "low": low,
        "high": high,
        "p": _flipped(change, seed) if moved else 1.0,
        "dz": _ratio(mean, deviation) if moved else 0.0,
    }


def _flipped(change: np.ndarray[Any, np.dtype[np.float64]], seed: int) -> float:
    """p value of the mean among those of the same differences with random signs."""
    found = stats.permutation_test(
        (change,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _ratio(mean: float, deviation: float) -> float:
    """mean / deviation, infinite where every text changed by the same amount."""
    return float(mean / deviation) if deviation > 0 else math.copysign(math.inf, mean)


def interval(values: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of the mean (scipy, BCa); no width where the values do not vary, nan below two."""
    sample = np.asarray(values, dtype=float)
    sample = sample[~np.isnan(sample)]
    if len(sample) < 2:
        return np.nan, np.nan
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    found = stats.bootstrap((sample,), np.mean, rng=np.random.default_rng(seed), method="BCa").confidence_interval
    return float(found.low), float(found.high)


def decidable(changed: ArrayLike) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether so many differences of one sign would pass the permutation test, or whether there is none to find.

    >>> decidable([0, 1, 5, 6])
    array([ True, False, False,  True])
    """
    count = np.asarray(changed)
    return np.asarray((count == 0) | (2.0 ** (1 - count.astype(float)) < LEVEL))


def corrected(tests: pd.DataFrame) -> pd.DataFrame:
    """A table of tests with Benjamini-Hochberg adjusted p values over its questions, and the verdict at 5 %.

    A question that no outcome could have answered, for so few texts changed at all, is undecided and takes no part.
    """
    able = decidable(tests["changed"])
    adjusted = np.full(len(tests), np.nan)
    if able.any():
        adjusted[able] = stats.false_discovery_control(tests["p"].to_numpy(float)[able])
    verdict = np.where(able, np.where(adjusted < LEVEL, FOUND, NONE), UNDECIDED)
    return tests.assign(p_adjusted=adjusted, verdict=verdict)
