"""How far several absences agree on the words of a text: signs, ranks, and the highest word."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy import stats

from xai_utils.attribution.result import Attribution
from xai_utils.text.cases import units

STABILITY = ("study", "text", "model", "role", "method", "rank_correlation", "one_sign", "same_top")


def stability(scores: Float[np.ndarray, "absence word"]) -> dict[str, float]:
    """How far word scores under several absences agree.

    `rank_correlation` is the mean Spearman correlation over pairs of absences (nan below three words), `one_sign` the
    share of words with one sign under all, `same_top` 1 where all have one highest word.

    >>> stability(np.array([[3.0, 1.0, -1.0], [2.0, 1.0, 1.0]]))["same_top"]
    1.0
    """
    pairs = list(combinations(scores, 2))
    ranks = [float(stats.spearmanr(a, b).statistic) for a, b in pairs if len(a) > 2 and np.ptp(a) and np.ptp(b)]
    return {
        "rank_correlation": float(np.mean(ranks)) if ranks else np.nan,
        "one_sign": float((np.abs(np.sign(scores).sum(0)) == len(scores)).mean()),
        "same_top": float(len(set(scores.argmax(1).tolist())) == 1),
    }


def stability_of(found: Attribution) -> dict[str, float] | None:
    """How far the absences agree on the words; None for a method without a panel, or of one absence."""
    if found.by_absence is None or len(found.by_absence) < 2:
        return None
    words = [unit.is_word for unit in units(found.case)] & np.isfinite(found.word_scores)
    return stability(found.by_absence[:, words]) if words.any() else None


def stability_row(found: Attribution) -> dict[str, object]:
    """A row of the table `stability`."""
    nothing = {"rank_correlation": np.nan, "one_sign": np.nan, "same_top": np.nan}
    keys: dict[str, object] = {**found.case.keys(), "method": found.method}
    return keys | (stability_of(found) or nothing)
