"""Which absences make a good panel? Candidates scored on texts whose subsets of words were all evaluated.

A panel's scores are the mean of the Shapley values under its absences. Its ranking of words is judged by deletion under
every absence (share: 0 for an average order, 1 for the best), those of the panel and those that it does not use apart,
and beside the best share that any one order can have. Nothing here loads a model but `subset_values`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from xai_utils.attribution.absence import ABSENCES
from xai_utils.attribution.masking import Removal, all_subsets
from xai_utils.attribution.shapley import exact_shapley
from xai_utils.attribution.target import Target
from xai_utils.evaluation.orders import by_score, ceiling, shares, words_of
from xai_utils.evaluation.statistics import interval
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

SIZES = (1, 2, 3, 4)  # absences in a candidate
COMPETENT = 0.01  # probability of the answer under one of the models, below which there is nothing to explain
KEYS = ["text", "model"]


def subset_values(
    model: LoadedModel, case: Case, target: Target, *, absences: Sequence[str] = tuple(ABSENCES), seed: int = 0
) -> pd.DataFrame:
    """F with every subset of the words present, under several absences: columns absence, draw, subset, value.

    A subset's number, read as bits, says which words are there; the last is the whole prompt.
    """
    tables = []
    for absence in absences:
        removal = Removal(model, case, target, absence, seed=seed)
        words = [player for player in removal.players if player.is_word]
        values = removal.without(all_subsets(len(words)), words)
        draw, subset = np.meshgrid(range(removal.draws), range(len(values)))
        columns = {"draw": draw.ravel(), "subset": subset.ravel(), "value": values.ravel()}
        tables.append(pd.DataFrame(columns).assign(absence=absence)[["absence", *columns]])
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Measured:
    """One text under one model: F of all subsets of its words, by absence, the mean over draws."""

    text: str
    model: str
    values: Mapping[str, Float[np.ndarray, " subset"]]

    @property
    def probability(self) -> float:
        return float(np.exp(next(iter(self.values.values()))[-1]))

    def shapley(self) -> dict[str, Float[np.ndarray, " word"]]:
        return {name: exact_shapley(values) for name, values in self.values.items()}

    def shares(self, scores: Float[np.ndarray, " word"]) -> dict[str, float]:
        """Share of a ranking under each absence."""
        order = by_score(scores)[None]
        return {name: float(shares(values, order)[0]) for name, values in self.values.items()}


def measured(values: pd.DataFrame) -> list[Measured]:
    """Cases from tables of `subset_values` with the columns text and model, without those that no model can answer."""
    cases = []
    for (text, model), part in values.groupby(KEYS, sort=False):
        means = part.groupby(["absence", "subset"], sort=False)["value"].mean()
        arrays = {str(name): table.sort_index().to_numpy() for name, table in means.groupby(level=0, sort=False)}
        cases.append(Measured(str(text), str(model), arrays))
    best = {text: max(c.probability for c in cases if c.text == text) for text in {c.text for c in cases}}
    return [case for case in cases if best[case.text] >= COMPETENT and words_of(next(iter(case.values.values()))) > 1]


def candidate_panels(absences: Sequence[str], sizes: Iterable[int] = SIZES) -> Iterator[tuple[str, ...]]:
    """All panels of these sizes, in the absences' order."""
    for size in sizes:
        yield from combinations(absences, size)


def candidates(cases: Sequence[Measured], draws: Mapping[str, int], seed: int = 0) -> pd.DataFrame:
    """Table `panels`: a row a candidate, best mean share over all absences first.

    `share` is the mean over texts of the share under all absences, with its bootstrap 95 % interval; `share_own` and
    `share_other` that under the panel's absences and under the others; `of_ceiling` the share over that of the best
    single order; `one_sign` the share of words whose score has one sign over the panel, `rank_correlation` the mean
    Spearman correlation between its absences and `same_top` how often they name one top word; `passes` what one subset
    of words costs.
    """
    best = {id(case): ceiling(list(case.values.values()))[0] for case in cases}
    values = {id(case): case.shapley() for case in cases}
    rows = []
    for panel in candidate_panels(list(cases[0].values)):
        judged = pd.DataFrame([_judge(case, panel, values[id(case)], best[id(case)]) for case in cases])
        by_text = judged.groupby("text").mean(numeric_only=True)
        low, high = interval(by_text["share"], seed=seed)
        row = by_text.mean().to_dict() | {"low": low, "high": high, "texts": len(by_text), "cases": len(judged)}
        row["of_ceiling"] = row["share"] / row.pop("ceiling")
        rows.append({"panel": " + ".join(panel), "size": len(panel), "passes": sum(draws[a] for a in panel)} | row)
    return pd.DataFrame(rows).sort_values("share", ascending=False, ignore_index=True)


def _judge(case: Measured, panel: tuple[str, ...], values: Mapping[str, np.ndarray], best: float) -> dict[str, object]:
    stacked = np.stack([values[absence] for absence in panel])
    found = case.shares(stacked.mean(0))
    own = [found[absence] for absence in panel]
    other = [share for absence, share in found.items() if absence not in panel]
    agreement = stability(stacked)
    return {
        "text": case.text,
        "share": float(np.nanmean([*own, *other])),
        "share_own": float(np.nanmean(own)),
        "share_other": float(np.nanmean(other)) if other else np.nan,
        "ceiling": best,
    } | agreement


def stability(scores: Float[np.ndarray, "absence word"]) -> dict[str, float]:
    """How far word scores under several absences agree: mean pairwise rank correlation, signs, top word.

    >>> stability(np.array([[3.0, 1.0, -1.0], [2.0, 1.0, 1.0]]))["one_sign"]
    0.6666666666666666
    """
    pairs = list(combinations(scores, 2))
    ranks = [float(stats.spearmanr(a, b).statistic) for a, b in pairs if len(a) > 2 and np.ptp(a) and np.ptp(b)]
    return {
        "rank_correlation": float(np.mean(ranks)) if ranks else np.nan,
        "one_sign": float((np.abs(np.sign(scores).sum(0)) == len(scores)).mean()),
        "same_top": float(len(set(scores.argmax(1).tolist())) == 1),
    }


def rankings(cases: Sequence[Measured], panels: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Table `panel_methods`: the mean share over texts of rankings of words under each absence, a row a ranking.

    Shapley values under each absence, over each named panel, both orders of position, and the ceiling: the best single
    order of each text over all absences. `share` is the mean over absences, `share_other` that over those not used.
    """
    rows = []
    for case in cases:
        values = case.shapley()
        place = np.arange(len(next(iter(values.values()))), dtype=float)
        ranked = {f"shapley {name}": (scores, [name]) for name, scores in values.items()}
        ranked |= {name: (np.mean([values[a] for a in panel], axis=0), list(panel)) for name, panel in panels.items()}
        ranked |= {"first_to_last": (-place, []), "last_to_first": (place, [])}
        ranked["ceiling"] = (-np.argsort(ceiling(list(case.values.values()))[1]).astype(float), list(case.values))
        for method, (scores, used) in ranked.items():
            found = case.shares(scores)
            other = [share for absence, share in found.items() if absence not in used]
            share = {"share": np.nanmean(list(found.values())), "share_other": np.nanmean(other) if other else np.nan}
            rows.append({"method": method, "text": case.text} | share | found)
    by_text = pd.DataFrame(rows).groupby(["method", "text"], sort=False).mean()
    return by_text.groupby("method", sort=False).mean().reset_index()
