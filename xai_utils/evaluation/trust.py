"""The trust card of an explanation: five questions, each with its measurements and a level.

*Competence*: would the model give the answer at all? *Completeness*: do the scores add up to what they share out?
*Stability*: do they survive another notion of absence? *Faithfulness*: do they predict what happens when words go,
under absences that the method does not use? *Controls*: does a model that learnt nothing get the same explanation? A
level summarises a check and replaces no number; the words around it are written where it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import pandas as pd
from scipy import stats

from xai_utils.attribution.absence import PANEL
from xai_utils.attribution.result import Attribution
from xai_utils.attribution.tables import word_rows
from xai_utils.evaluation.agreement import LEAST_WORDS, stability_of
from xai_utils.evaluation.behaviour import behaviour
from xai_utils.evaluation.faithfulness import faithfulness
from xai_utils.evaluation.thresholds import (
    ALIKE,
    CHANCE,
    COMPETENT,
    CONTROLLED,
    FAITHFUL,
    SAME,
    STANDS,
    SURE,
    TOSSED,
    UNALIKE,
)
from xai_utils.models.loading import LoadedModel

Level = Literal["passes", "doubtful", "fails", "unknown"]


@dataclass(frozen=True)
class Competence:
    """Probability of the answer, rank of its first token (1 is the likeliest), margin over the contrast in nats.

    Without an answer the model's own next token is the one that is explained. The margin is None without a contrast.
    """

    level: Level
    probability: float
    rank: int
    margin: float | None


@dataclass(frozen=True)
class Completeness:
    """How the sum is proven: `exact` by construction, `integrated` with an error bound, or `none`.

    `error` is the sum's error and `bound` the most that it can be, both over |F(x) - F(absent)|.
    """

    level: Level
    kind: Literal["exact", "integrated", "none"]
    error: float | None
    bound: float | None


@dataclass(frozen=True)
class Stability:
    """Over the panel: mean rank correlation between absences, share of words with one sign, one top word or not."""

    level: Level
    rank_correlation: float | None
    one_sign: float | None
    same_top: bool | None


@dataclass(frozen=True)
class Faithfulness:
    """Mean share of the best order under absences not its own, beside the better order by position and by chance.

    `chance` is the 95th percentile of random orders, the mean over the tests.
    """

    level: Level
    share: float | None
    position: float | None
    chance: float | None
    absences: int


@dataclass(frozen=True)
class Controls:
    """Rank correlation of the word scores with those of each model that should explain nothing."""

    level: Level
    correlations: Mapping[str, float]


@dataclass(frozen=True)
class TrustCard:
    competence: Competence
    completeness: Completeness
    stability: Stability
    faithfulness: Faithfulness
    controls: Controls

    @property
    def levels(self) -> dict[str, Level]:
        """Each check with its level, in the order in which they are read."""
        return {field.name: getattr(self, field.name).level for field in fields(self)}

    @property
    def headline(self) -> bool:
        """Whether a claim may rest on this explanation: the model is sure of the answer and no check fails."""
        return self.competence.level == "passes" and "fails" not in self.levels.values()

    def row(self) -> dict[str, Any]:
        """The card as one flat row: `competence`, `competence_probability` and so on."""
        flat: dict[str, Any] = {}
        for field in fields(self):
            check = getattr(self, field.name)
            flat[field.name] = check.level
            own = {name: value for name, value in vars(check).items() if name not in ("level", "correlations")}
            flat |= {f"{field.name}_{name}": value for name, value in own.items()}
        return flat | {f"control_{name}": value for name, value in self.controls.correlations.items()}


def assess(
    model: LoadedModel,
    found: Attribution,
    *,
    tests: bool = True,
    controls: Mapping[str, Attribution] | None = None,
    absences: Sequence[str] = PANEL,
    budget: int = 1024,
    seed: int = 0,
    asked: Mapping[Any, Any] | None = None,
) -> TrustCard:
    """The trust card of an explanation of this model.

    Asks the model for its own continuation and, with `tests`, for the deletion tests of this one explanation; without
    them faithfulness is unknown. `controls` are explanations of the same text by models that learnt nothing, `absences`
    the panel's, where it is not the default one; `asked` is the case's row of the table `behaviour`, where it is known.
    """
    rows = None
    if tests:
        scores = pd.DataFrame(word_rows(found))
        rows = faithfulness(model, found.case, found.target, scores, absences=absences, budget=budget, seed=seed)
    known = behaviour(model, found.case).to_dict("records")[0] if asked is None else asked
    return card(found, known, rows, controls or {})


def card(
    found: Attribution,
    asked: Mapping[Any, Any],
    tests: pd.DataFrame | None = None,
    controls: Mapping[str, Attribution] | None = None,
) -> TrustCard:
    """The trust card from what is known already.

    `asked` is the case's row of the table `behaviour`, `tests` are its rows of the table `faithfulness`.
    """
    return TrustCard(
        competence(asked),
        completeness(found),
        stable(stability_of(found)),
        faithful(found, tests),
        controlled(found, controls or {}),
    )


def competence(asked: Mapping[Any, Any]) -> Competence:
    """From a row of the table `behaviour`."""
    own = pd.isna(asked["probability"])
    probability = float(asked["next_probability"] if own else asked["probability"])
    level: Level = "passes" if probability >= SURE else "doubtful" if probability >= COMPETENT else "fails"
    margin = None if pd.isna(asked["margin"]) else float(asked["margin"])
    return Competence(level, probability, 1 if own else int(asked["rank"]), margin)


def completeness(found: Attribution) -> Completeness:
    """A sum that holds or is certified passes, one that did not converge fails.

    Scores without a proof are doubtful where they are shares of a whole, and are not judged where they are none.
    """
    proof = found.certificate
    if proof is None:
        return Completeness("doubtful" if found.additive else "unknown", "none", None, None)
    kind: Literal["exact", "integrated"] = "exact" if proof.exact else "integrated"
    return Completeness("passes" if proof.converged else "fails", kind, proof.relative_delta, proof.bound)


def stable(found: Mapping[Any, Any] | None) -> Stability:
    """From `stability_of` or a row of the table `stability`.

    Judged by signs first: a ranking of two words that share a sign may turn with little harm.
    """
    if found is None or pd.isna(found["one_sign"]):
        return Stability("unknown", None, None, None)
    ranks, signs = found["rank_correlation"], found["one_sign"]
    if signs < TOSSED or ranks < UNALIKE:
        level: Level = "fails"
    else:
        level = "passes" if signs >= STANDS and not ranks < ALIKE else "doubtful"
    return Stability(level, None if math.isnan(ranks) else ranks, signs, bool(found["same_top"]))


def faithful(found: Attribution, tests: pd.DataFrame | None) -> Faithfulness:
    """Passes above 0.6 where no order by position does better, fails where a random order often does as well.

    `chance` is not what decides: on a few words one random order in five puts the only word that counts first.
    """
    if tests is None or not len(tests):
        return Faithfulness("unknown", None, None, None, 0)
    mine = tests[(tests["method"] == found.method) & (tests["baseline"] == found.baseline)]
    other = mine[~mine["own"].fillna(False).astype(bool)].dropna(subset="share")
    if not len(other):
        return Faithfulness("unknown", None, None, None, 0)
    under = tests[tests["absence"].isin(other["absence"])].groupby("method")["share"].mean()
    share, chance = float(other["share"].mean()), float(other["random_95"].mean())
    position = float(under.reindex(["first_to_last", "last_to_first"]).max())
    if share < CHANCE:
        level: Level = "fails"
    else:
        level = "passes" if share >= FAITHFUL and share >= position else "doubtful"
    return Faithfulness(level, share, position, chance, len(other))


def controlled(found: Attribution, controls: Mapping[str, Attribution]) -> Controls:
    """Judged by the control that is most alike. Unknown without one, and below three words."""
    alike = {name: _alike(found, other) for name, other in controls.items()}
    most = max((value for value in alike.values() if not math.isnan(value)), default=math.nan)
    if math.isnan(most):
        return Controls("unknown", alike)
    return Controls("passes" if most < CONTROLLED else "fails" if most >= SAME else "doubtful", alike)


def _alike(found: Attribution, other: Attribution) -> float:
    """Rank correlation over the words that both score: words are the same, however a tokenizer cuts them."""
    both = found.words.merge(other.words, left_index=True, right_index=True).dropna(subset=["score_x", "score_y"])
    if len(both) < LEAST_WORDS or both["score_x"].nunique() < 2 or both["score_y"].nunique() < 2:
        return math.nan
    return float(stats.spearmanr(both["score_x"], both["score_y"]).statistic)
