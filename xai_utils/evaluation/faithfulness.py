"""Does a ranking of words predict what happens when words go? Deletion tests, as a share of what any order can reach.

*Comprehensiveness* is the mean over k of F(x) - F(x without its k highest words), *sufficiency* the mean over k of
F(x) - F(x with only these k), k from 1 to all words but one (DeYoung et al. 2020, arXiv 1911.03429, over the whole
curve and in the target's unit). A good ranking scores high on the first and low on the second. A *share* puts both on a
scale that texts and models have in common: 0 is an average order of the words, 1 the best order there is (Normalised
AOPC, arXiv 2408.08137). "Without" has several meanings, and each is a test of its own (absence.py); the first position
stays. Up to ten words every subset is evaluated and all of this is exact; beyond, it is sampled within a budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from xai_utils.attribution.absence import ABSENCES, PANEL
from xai_utils.attribution.masking import Removal, ask
from xai_utils.attribution.subsets import all_subsets, chains
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.evaluation.orders import (
    Orders,
    Span,
    along,
    beam,
    by_score,
    ceiling,
    some_orders,
    span,
    step_sizes,
)
from xai_utils.models.loading import LoadedModel
from xai_utils.models.visibility import mask_support
from xai_utils.text.cases import Case, units

VERSION = 2  # raise it when results would come out different
HIGH = 0.95  # of random orders that a ranking has to pass
RANDOM_ORDERS = 5040  # orders, all those of seven words, that stand for all of them where every subset's value is known
PART = 4  # of the budget for each absence: there are seven, and most have one draw
MOST_SIZES = 10  # sizes at which a long order is measured, at most
WIDTHS = 8  # of a beam, at most
RANKING_KEYS = ["method", "baseline", "sink", "unit"]


@dataclass(frozen=True)
class Curves:
    """What rankings score under one absence, [ranking] each; nan for a text of one word."""

    comprehensiveness: Float[np.ndarray, " ranking"]
    sufficiency: Float[np.ndarray, " ranking"]
    share: Float[np.ndarray, " ranking"]
    random_mean: float  # share of random orders: 0 but for what is sampled
    random_95: float


class Deletion:
    """Deletion tests of one case under one absence; all methods share its forward passes.

    With `exact` the values of all subsets of words are known. Else `budget` counts versions of the prompt, beside those
    that the rankings themselves need.
    """

    def __init__(self, model: LoadedModel, case: Case, target: Target, absence: str, budget: int = 1024, seed: int = 0):
        self.removal = Removal(model, case, target, absence, seed=seed)
        self.words = [player for player in self.removal.players if player.is_word]
        self.exact = 2 ** len(self.words) <= budget
        self.budget, self.seed = max(budget // PART, 1), seed

    def value(self, present: Bool[np.ndarray, "row word"]) -> Float[np.ndarray, " row"]:
        """F with these words, the mean over draws."""
        return self.removal.without(present, self.words).mean(-1)

    @cached_property
    def values(self) -> Float[np.ndarray, " subset"]:
        """F of every subset of the words, by number; only where it is `exact`."""
        return self.value(all_subsets(len(self.words)))

    @cached_property
    def sizes(self) -> np.ndarray:
        """How many words are present at each step of an order: all sizes, or some where the budget is small."""
        count = len(self.words)
        return step_sizes(count, count if self.exact else min(max(self.budget // (2 * count), 2), MOST_SIZES))

    @property
    def search(self) -> str:
        """How the best order is found: exact, by beam, or, where the budget is too small for one, the best seen."""
        return "exact" if self.exact else "beam" if self._width else "seen"

    @property
    def _width(self) -> int:
        return min(self.budget // (2 * len(self.words) * len(self.sizes)), WIDTHS)

    def along(self, orders: Orders) -> Float[np.ndarray, " order"]:
        """Mean F while the words of each order come in, none and all left out."""
        if self.exact:
            return along(self.values, orders)
        present = chains(orders)[:, self.sizes]
        return self.value(present.reshape(-1, len(self.words))).reshape(len(orders), -1).mean(1)

    def curves(self, orders: Orders) -> Curves:
        """Both measures and the share of each order, beside those of random orders."""
        if len(self.words) < 2:
            nothing = np.full(len(orders), np.nan)
            return Curves(nothing, nothing, nothing, np.nan, np.nan)
        whole = self.value(np.ones((1, len(self.words)), dtype=bool))[0]
        kept, left = self.along(orders), self.along(orders[:, ::-1])
        random = self._random()
        random_kept, random_left = self.along(random), self.along(random[:, ::-1])
        seen = np.concatenate([kept, left, random_kept, random_left])
        scale = span(self.values) if self.exact else self._searched(random_kept, random_left, seen)
        chance = scale.share(random_kept, random_left)
        mean = 0.0 if self.exact else float(chance.mean())
        return Curves(whole - left, whole - kept, scale.share(kept, left), mean, percentile(chance, HIGH))

    def _random(self) -> Orders:
        if self.exact:
            return some_orders(len(self.words), RANDOM_ORDERS, self.seed)
        return some_orders(len(self.words), max(self.budget // (4 * len(self.sizes)), 4), self.seed)

    def _searched(self, kept: np.ndarray, left: np.ndarray, seen: np.ndarray) -> Span:
        """The span of orders where not all subsets are known: sampled mean, extremes found or seen."""
        low, high = seen.min(), seen.max()
        if self._width:
            low = min(low, beam(self.value, len(self.words), self.sizes, self._width, -1))
            high = max(high, beam(self.value, len(self.words), self.sizes, self._width, 1))
        return Span(float(low), float(np.concatenate([kept, left]).mean()), float(high))


def faithfulness(
    model: LoadedModel,
    case: Case,
    target: Target,
    word_scores: pd.DataFrame,
    *,
    absences: Sequence[str] = PANEL,
    budget: int = 1024,
    seed: int = 0,
) -> pd.DataFrame:
    """Table `faithfulness` of one case: a row a ranking and absence of the test, all that the model can do.

    `word_scores` are the case's rows of the table of that name; `absences` those of the panel in them. Rankings by
    position alone, `first_to_last` and `last_to_first`, stand beside the methods as controls, and `ceiling`, the best
    single order over all absences, where subsets are enumerated. `own` is true where the method itself uses the absence
    that it is tested under, `search` says how the best order was found. Raises UserError when the rows are not those of
    the case.
    """
    tests = {name: Deletion(model, case, target, name, budget, seed) for name in possible(model)}
    some = next(iter(tests.values()))
    if some.exact and len(some.words) > 1:  # all at once
        gone = some.removal.gone(all_subsets(len(some.words)), some.words)
        ask([test.removal for test in tests.values()], gone)
    names, scores = zip(*_rankings(case, target, word_scores), strict=True)
    ranked = [by_score(np.array([row[word.unit] for word in some.words], dtype=float)) for row in scores]
    if some.exact and len(some.words) > 1:
        names += ({"method": "ceiling"} | _none(target),)
        ranked.append(ceiling([test.values for test in tests.values()])[1])
    keys, rows = case.keys() | target.keys(), []
    for absence, test in tests.items():
        found = test.curves(np.array(ranked))
        for place, name in enumerate(names):
            rows.append(keys | name | _row(test, absence, found, place) | {"own": _own(name, absence, absences)})
    return pd.DataFrame(rows).astype({"own": "boolean", "beats_random": "boolean"})


def possible(model: LoadedModel) -> list[str]:
    """The absences that a model can do: all, but `hidden` where an attention mask with holes is not respected."""
    return [name for name in ABSENCES if name != "hidden" or mask_support(model).holes]


def _none(target: Target) -> dict[str, str]:
    return {"baseline": "", "sink": "", "unit": target.unit}


def _rankings(
    case: Case, target: Target, word_scores: pd.DataFrame
) -> Iterator[tuple[dict[str, str], Float[np.ndarray, " unit"]]]:
    """Orders by position, then each method's: its keys and a score for each unit of the word view."""
    rows = units(case)
    place = np.arange(len(rows), dtype=float)
    yield {"method": "first_to_last"} | _none(target), -place
    yield {"method": "last_to_first"} | _none(target), place
    for values, group in word_scores.groupby(RANKING_KEYS, sort=False, dropna=False):
        if group["word"].tolist() != [unit.text for unit in rows]:
            raise UserError(
                f"text '{case.text_id}': the word scores of {values[0]} are not those of this text under model "
                f"'{case.model}'; expected one row for each of its {len(rows)} units; run 02 to 04 again"
            )
        yield dict(zip(RANKING_KEYS, map(str, values), strict=True)), group["score"].to_numpy(float)


def _own(name: dict[str, str], absence: str, panel: Sequence[str]) -> bool | None:
    """Whether a method uses this absence; the ceiling is no method."""
    if name["method"] == "ceiling":
        return None
    return absence in panel if name["baseline"] == "panel" else absence == name["baseline"]


def _row(test: Deletion, absence: str, found: Curves, place: int) -> dict[str, object]:
    share = float(found.share[place])
    return {
        "absence": absence,
        "words": len(test.words),
        "search": test.search,
        "comprehensiveness": float(found.comprehensiveness[place]),
        "sufficiency": float(found.sufficiency[place]),
        "share": share,
        "random_mean": found.random_mean,
        "random_95": found.random_95,
        "beats_random": None if np.isnan(share) else share > found.random_95,
    }


def percentile(values: Float[np.ndarray, " order"], share: float) -> float:
    """The least value that at least `share` of the values do not pass: no more than the rest of them lie above it.

    >>> percentile(np.arange(24), 0.95), percentile(np.arange(6), 0.95)  # of six orders, none can pass
    (22.0, 5.0)
    """
    return float(np.quantile(values, share, method="inverted_cdf"))
