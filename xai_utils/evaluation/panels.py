"""Which absences make a good panel? Candidates scored on texts whose subsets of words were all evaluated.

A panel's scores are the mean of the Shapley values under its absences. Its ranking of words is judged by deletion under
every absence (share: 0 for an average order, 1 for the best), those of the panel and those that it does not use apart,
and beside the best share that any one order can have. Its word that stands is judged by whether it keeps its sign under
the absences that the panel does not use. Nothing here loads a model but `subset_values`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float

from xai_utils.attribution.absence import ABSENCES
from xai_utils.attribution.masking import Removal
from xai_utils.attribution.subsets import all_subsets, exact_shapley
from xai_utils.attribution.target import Target
from xai_utils.evaluation.agreement import stability
from xai_utils.evaluation.orders import Span, by_score, ceiling, shares, span, word_count
from xai_utils.evaluation.statistics import interval
from xai_utils.evaluation.thresholds import COMPETENT, SURE
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

VERSION = 1  # raise it when results would come out different
SIZES = (1, 2, 3, 4)  # absences in a candidate
PANEL_DRAWS = 8  # of random tokens: more than elsewhere, since all candidates are judged by them
RESAMPLES = 2000
MEASURES = ("share_other", "stands", "rank_correlation", "same_top")  # of an explanation, each better where higher
KEEPS = 0.95  # how often a word that stands must keep its sign under an absence that the panel was not asked about

WordScores = Float[np.ndarray, " word"]
Ranking = tuple[str, str, WordScores, Sequence[str]]  # method, baseline, scores, the absences that it uses


def subset_values(
    model: LoadedModel, case: Case, target: Target, *, absences: Sequence[str] = tuple(ABSENCES), seed: int = 0
) -> pd.DataFrame:
    """F with every subset of the words present, under several absences: columns absence, draw, subset, value.

    A subset's number, read as bits, says which words are there; the last is the whole prompt.
    """
    tables = []
    for absence in absences:
        removal = Removal(model, case, target, absence, seed=seed, draws=PANEL_DRAWS)
        words = [player for player in removal.players if player.is_word]
        values = removal.without(all_subsets(len(words)), words)
        draw, subset = np.meshgrid(range(removal.draws), range(len(values)))
        columns = {"draw": draw.ravel(), "subset": subset.ravel(), "value": values.ravel()}
        tables.append(pd.DataFrame(columns).assign(absence=absence)[["absence", *columns]])
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Subsets:
    """One text under one model: F of all subsets of its words, by absence, the mean over draws."""

    text: str
    model: str
    values: Mapping[str, Float[np.ndarray, " subset"]]

    @property
    def words(self) -> int:
        return word_count(next(iter(self.values.values())))

    @property
    def probability(self) -> float:
        return float(np.exp(next(iter(self.values.values()))[-1]))

    @cached_property
    def spans(self) -> dict[str, Span]:
        return {name: span(values) for name, values in self.values.items()}

    @cached_property
    def shapley(self) -> dict[str, WordScores]:
        return {name: exact_shapley(values) for name, values in self.values.items()}

    @cached_property
    def ceiling(self) -> tuple[float, WordScores]:
        """The best mean share that one order can have, and scores that give this order."""
        best, order = ceiling(list(self.values.values()))
        return best, -np.argsort(order).astype(float)

    def shares(self, scores: WordScores) -> dict[str, float]:
        """Share of a ranking under each absence."""
        order = by_score(scores)[None]
        return {name: float(shares(values, order, self.spans[name])[0]) for name, values in self.values.items()}


def cases_of(values: pd.DataFrame) -> list[Subsets]:
    """Cases from tables of `subset_values` with the columns text and model, without those that no model can answer."""
    cases = []
    for (text, model), part in values.groupby(["text", "model"], sort=False):
        means = part.groupby(["absence", "subset"], sort=False)["value"].mean()
        arrays = {str(name): table.sort_index().to_numpy() for name, table in means.groupby(level=0, sort=False)}
        cases.append(Subsets(str(text), str(model), arrays))
    best = {text: max(case.probability for case in cases if case.text == text) for text in {c.text for c in cases}}
    return [case for case in cases if best[case.text] >= COMPETENT and case.words > 1]


def candidates(cases: Sequence[Subsets], seed: int = 0) -> pd.DataFrame:
    """Table `panels`: a row a candidate of one to four absences, best mean share over all absences first.

    All are means over texts: `share` under all absences, with its bootstrap 95 % interval; `share_own` under the
    panel's absences and `share_other` under the others; `of_ceiling` the share over that of the best single order;
    `stands` the share of words with one sign over the panel; `stands_elsewhere` how often these keep it under the other
    absences; `rank_correlation` and `same_top` as in `stability`. `passes` is what one subset of words costs.
    """
    absences = list(cases[0].values)
    rows = []
    for panel in (panel for size in SIZES for panel in combinations(absences, size)):
        by_text = pd.DataFrame([_judge(case, panel) for case in cases]).groupby("text").mean()
        low, high = interval(by_text["share"], seed=seed)
        row = by_text.mean().to_dict() | {"low": low, "high": high, "texts": len(by_text), "cases": len(cases)}
        row["of_ceiling"] = row["share"] / row.pop("ceiling")
        passes = len(panel) + (PANEL_DRAWS - 1) * ("sampled" in panel)
        rows.append({"panel": " + ".join(panel), "size": len(panel), "passes": passes} | row)
    table = pd.DataFrame(rows).sort_values("share", ascending=False, ignore_index=True)
    return table.assign(chosen=table["panel"] == " + ".join(choice(table)))


def choice(table: pd.DataFrame) -> tuple[str, ...]:
    """The panel to take: the best share among those of several absences whose standing words stand elsewhere too."""
    fit = table[(table["size"] > 1) & (table["stands_elsewhere"] >= KEEPS)]
    return tuple(str(fit.sort_values("share", ascending=False)["panel"].iloc[0]).split(" + "))


def _judge(case: Subsets, panel: tuple[str, ...]) -> dict[str, object]:
    stacked = np.stack([case.shapley[absence] for absence in panel])
    others = np.array([case.shapley[absence] for absence in case.values if absence not in panel])
    found = case.shares(stacked.mean(0))
    agreement = stability(stacked)
    standing = np.abs(np.sign(stacked).sum(0)) == len(panel)
    same = np.sign(others[:, standing]) == np.sign(stacked[0, standing])
    return {
        "text": case.text,
        "share": float(np.nanmean(list(found.values()))),
        "share_own": float(np.nanmean([found[absence] for absence in panel])),
        "share_other": float(np.nanmean([share for absence, share in found.items() if absence not in panel])),
        "ceiling": case.ceiling[0],
        "stands": agreement["one_sign"],
        "stands_elsewhere": float(same.mean()) if same.size else np.nan,
        "rank_correlation": agreement["rank_correlation"],
        "same_top": agreement["same_top"],
    }


def confidence(cases: Sequence[Subsets], panel: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Table `panel_confidence`: is an explanation better where the model is sure of its answer? A row a measure.

    `correlation` is Spearman's, of the answer's log-probability with the measure over cases, between `low` and `high`
    in 95 % of resamples of whole texts; `sure` and `unsure` are the measure's means over cases with a probability of at
    least SURE and below it.
    """
    rows = [_judge(case, tuple(panel)) | {"probability": case.probability} for case in cases]
    table = pd.DataFrame(rows).set_index("text")
    rng, texts = np.random.default_rng(seed), table.index.unique()
    resamples = [table.loc[rng.choice(texts, len(texts))] for _ in range(RESAMPLES)]
    sure = table["probability"] >= SURE
    found = []
    for measure in MEASURES:
        correlation, *drawn = (_spearman(part["probability"], part[measure]) for part in [table, *resamples])
        low, high = np.quantile([one for one in drawn if not np.isnan(one)] or [np.nan], [0.025, 0.975])
        means = {"sure": table.loc[sure, measure].mean(), "unsure": table.loc[~sure, measure].mean()}
        counts = {"cases": len(table), "sure_cases": int(sure.sum()), "texts": len(texts)}
        found.append({"measure": measure, "correlation": correlation, "low": low, "high": high} | means | counts)
    return pd.DataFrame(found)


def _spearman(first: pd.Series, second: pd.Series) -> float:
    """nan where either does not vary."""
    return first.corr(second, method="spearman") if min(first.nunique(), second.nunique()) > 1 else np.nan


def rankings(cases: Sequence[Subsets], panel: Sequence[str], others: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table `panel_methods`: the mean share over texts of rankings of words under each absence, a row a ranking.

    The panel, Shapley values and ablation under each absence, both orders of position, and the ceiling: each text's
    best single order over all absences; `others` are rows of `word_scores`, words alone, of more methods. `share` is
    the mean over absences, `share_other` over those not its own.
    """
    scored = _scored(others)
    rows = []
    for case in cases:
        for method, baseline, scores, used in [*_ranked(case, panel), *scored.get((case.text, case.model), [])]:
            found = case.shares(scores)
            other = [share for absence, share in found.items() if absence not in used]
            mean = {"share": np.nanmean(list(found.values())), "share_other": np.nanmean(other) if other else np.nan}
            rows.append({"method": method, "baseline": baseline, "text": case.text} | mean | found)
    key = ["method", "baseline"]
    by_text = pd.DataFrame(rows).groupby([*key, "text"], sort=False).mean()
    return by_text.groupby(key, sort=False).mean().reset_index().sort_values("share", ascending=False)


def _scored(others: pd.DataFrame | None) -> dict[tuple[str, str], list[Ranking]]:
    """Rankings of other methods, by text and model."""
    found: dict[tuple[str, str], list[Ranking]] = {}
    if others is not None:
        key = ["text", "model", "method", "baseline"]
        for (text, model, method, baseline), part in others.fillna({"baseline": ""}).groupby(key, sort=False):
            ranking = (str(method), str(baseline), part["score"].to_numpy(float), [str(baseline)])
            found.setdefault((str(text), str(model)), []).append(ranking)
    return found


def _ranked(case: Subsets, panel: Sequence[str]) -> list[Ranking]:
    """The panel, single absences, position and the ceiling."""
    place, whole = np.arange(case.words, dtype=float), 2**case.words - 1
    without = [whole & ~(1 << word) for word in range(case.words)]
    return [
        ("ceiling", "", case.ceiling[1], list(case.values)),
        ("panel_shapley", "panel", np.mean([case.shapley[name] for name in panel], axis=0), panel),
        *(("shapley", name, scores, [name]) for name, scores in case.shapley.items()),
        *(("ablation", name, values[whole] - values[without], [name]) for name, values in case.values.items()),
        ("first_to_last", "", -place, []),
        ("last_to_first", "", place, []),
    ]
