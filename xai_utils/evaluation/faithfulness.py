"""Does a method's ranking of words say what the model uses? Deletion tests against random orders.

*Comprehensiveness* is the mean over k of F(x) - F(x without its k highest words), *sufficiency* the mean over k of
F(x) - F(x with only these k), k from 1 to all words but one (DeYoung et al. 2020, arXiv 1911.03429, over the whole
curve and in the target's unit). A good ranking scores high on the first and low on the second. "Without" means at a
deletion baseline, never cut out, and the sink stays in place. Where a text has at most 8 words, the random orders it
is held against are all orders there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from xai_utils.attribution.masking import Removal, all_subsets
from xai_utils.attribution.shapley import chains, exact_shapley
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case, units

VERSION = 1  # raise it when results would come out different
ENUMERATED = 8  # words up to which every subset is evaluated
HIGH = 0.95  # of random orders that a ranking has to pass
KEYS = ["method", "baseline", "sink", "unit"]

Orders = Int[np.ndarray, "order word"]


@dataclass(frozen=True)
class Curve:
    """What a ranking scores. High comprehensiveness and low sufficiency are good."""

    comprehensiveness: float
    sufficiency: float


class Deletion:
    """Deletion tests of one case at one deletion baseline; all methods share its forward passes."""

    def __init__(
        self, model: LoadedModel, case: Case, target: Target, baseline: str = "mean", orders: int = 100, seed: int = 0
    ):
        self._removal = Removal(model, case, target, baseline, keep_sink=True, seed=seed)
        self.words = [player for player in self._removal.players if player.is_word]
        self.exact = len(self.words) <= ENUMERATED
        if self.exact:  # their values are wanted in any case: ask for them in one go
            self._values(all_subsets(len(self.words)))
        self.random = self._random(orders, seed)

    def _values(self, present: Bool[np.ndarray, "row word"]) -> Float[np.ndarray, " row"]:
        return self._removal.without(present, self.words).mean(-1)

    def shapley(self) -> Float[np.ndarray, " word"]:
        """Exact Shapley values of the words. Raises UserError where there are too many to enumerate."""
        if not self.exact:
            raise UserError(
                f"{len(self.words)} words are too many for exact Shapley values; expected at most {ENUMERATED}; "
                "use the method shapley, which samples"
            )
        return exact_shapley(self._values(all_subsets(len(self.words))))

    def curve(self, word_scores: Float[np.ndarray, " unit"]) -> Curve:
        """Both measures of a ranking by `word_scores`, one for each of `units(case)`; words without a score come last.

        Ties are in reading order. A text of one word has no curve: both are nan.
        """
        scores = np.array([word_scores[player.unit] for player in self.words], dtype=float)
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[None]
        return Curve(float(self._drops(order[:, ::-1])[0]), float(self._drops(order)[0]))

    def _drops(self, orders: Orders) -> Float[np.ndarray, " order"]:
        """Mean of F(x) - F(first k words alone): an order's sufficiency, and the reversed order's comprehensiveness."""
        count = len(self.words)
        if count < 2:
            return np.full(len(orders), np.nan)
        inner = chains(orders)[:, 1:-1]
        subsets, index = _distinct(inner.reshape(-1, count))
        whole = self._values(np.ones((1, count), dtype=bool))[0]
        return whole - self._values(subsets)[index].reshape(len(orders), -1).mean(1)

    def _random(self, orders: int, seed: int) -> Float[np.ndarray, " order"]:
        """Drops of all orders, or of `orders` random ones: how both measures are distributed under random ranking."""
        count = len(self.words)
        if self.exact:
            return self._drops(np.array(list(permutations(range(count)))).reshape(-1, count))
        generator = np.random.default_rng(seed)
        return self._drops(np.array([generator.permutation(count) for _ in range(orders)]))

    def row(self, curve: Curve) -> dict[str, object]:
        """Columns of the `faithfulness` table: a curve beside random orders; missing where there is no curve."""
        high, low = percentile(self.random, HIGH), -percentile(-self.random, HIGH)
        mean, known = float(self.random.mean()), len(self.words) > 1
        return {
            "words": len(self.words),
            "enumerated": self.exact,
            "comprehensiveness": curve.comprehensiveness,
            "comprehensiveness_random": mean,
            "comprehensiveness_random95": high,
            "comprehensiveness_beats_random": curve.comprehensiveness > high if known else None,
            "sufficiency": curve.sufficiency,
            "sufficiency_random": mean,
            "sufficiency_random5": low,
            "sufficiency_beats_random": curve.sufficiency < low if known else None,
        }


def faithfulness(
    model: LoadedModel,
    case: Case,
    target: Target,
    word_scores: pd.DataFrame,
    deletions: Sequence[str] = ("mean", "eos"),
    *,
    orders: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Rows of the `faithfulness` table for all methods of one case, a row a method and deletion baseline.

    `word_scores` are the case's rows of the table of that name. Two rankings by position alone, `first_to_last` and
    `last_to_first`, stand beside the methods as controls. Raises UserError when the rows are not those of the case.
    """
    rows = units(case)
    place = np.arange(len(rows), dtype=float)
    none = {"baseline": "", "sink": "", "unit": target.unit}
    rankings = [({"method": "first_to_last"} | none, -place), ({"method": "last_to_first"} | none, place)]
    for values, group in word_scores.groupby(KEYS, sort=False, dropna=False):
        if group["word"].tolist() != [unit.text for unit in rows]:
            raise UserError(
                f"text '{case.text_id}': the word scores of {values[0]} are not those of this text under model "
                f"'{case.model}'; expected one row for each of its {len(rows)} units; run 02 to 04 again"
            )
        rankings.append((dict(zip(KEYS, map(str, values), strict=True)), group["score"].to_numpy(float)))
    table = []
    for deletion in deletions:
        test = Deletion(model, case, target, deletion, orders, seed)
        for keys, scores in rankings:
            table.append(case.keys() | target.keys() | keys | {"deletion": deletion} | test.row(test.curve(scores)))
    beats = {name: "boolean" for name in ("comprehensiveness_beats_random", "sufficiency_beats_random")}
    return pd.DataFrame(table).astype(beats)


def percentile(values: Float[np.ndarray, " order"], share: float) -> float:
    """The least value that at least `share` of the values do not pass: no more than the rest of them lie above it.

    >>> percentile(np.arange(24), 0.95), percentile(np.arange(6), 0.95)  # of six orders, none can pass
    (22.0, 5.0)
    """
    return float(np.quantile(values, share, method="inverted_cdf"))


def _distinct(rows: Bool[np.ndarray, "row word"]) -> tuple[Bool[np.ndarray, "subset word"], Int[np.ndarray, " row"]]:
    """Different subsets, and where each row's stands among them."""
    first: dict[bytes, int] = {}
    index = np.array([first.setdefault(row, len(first)) for row in map(bytes, np.packbits(rows, axis=1))])
    _, where = np.unique(index, return_index=True)
    return rows[where], index
