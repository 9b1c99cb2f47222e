"""What every attribution method returns: scores of tokens and of words, their errors and what proves their sum.

A score is in the unit of the target. A position that a method keeps fixed has no score (nan): it is *not explained*,
which is something else than zero. `from_tokens` and `from_words` are the two ways to make a result: from scores of
tokens, which are summed over a word, or from scores that were computed for whole words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from xai_utils.attribution.absence import moved
from xai_utils.attribution.target import Target
from xai_utils.display import Displayed
from xai_utils.text.cases import Case, units, word_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xai_utils.attribution.masking import Player
    from xai_utils.evaluation.trust import TrustCard

NORMAL_95 = 1.96  # standard errors: the half width of a 95 % interval
FLOOR = 0.1  # nats or logits: the least difference that relative errors are measured against

Scores = Float[np.ndarray, " position"]
Words = Float[np.ndarray, " unit"]


@dataclass(frozen=True)
class Certificate:
    """What proves a sum (completeness: Sundararajan et al. 2017, arXiv 1703.01365, proposition 1).

    `delta` is the sum of the scores minus F(x) - F(baseline); `bound` the errors of the path's pieces added without
    sign and `token_error` the largest estimated error of one token, both, like `relative_delta`, over
    max(|F(x) - F(baseline)|, 0.1). Converged means that both are within the tolerance; a rule that has no nested one to
    compare with has no token_error (nan) and is judged by its bound alone. `exact` marks a sum that holds by
    construction, to rounding: nothing was integrated.
    """

    tolerance: float
    evaluations: int  # sequences passed forward and backward
    forwards: int  # sequences passed forward alone
    f_input: float
    f_baseline: float
    delta: float
    bound: float
    token_error: float
    exact: bool = False

    @classmethod
    def of_sum(
        cls,
        total: float,
        f_input: float,
        f_baseline: float,
        tolerance: float,
        *,
        evaluations: int = 0,
        forwards: int = 0,
        exact: bool = False,
    ) -> Certificate:
        """Of scores that add up to `total` and have no error of their own: the error of the sum is the bound."""
        rise = f_input - f_baseline
        delta = float(total - rise)
        bound = abs(delta) / max(abs(rise), FLOOR)
        return cls(tolerance, evaluations, forwards, f_input, f_baseline, delta, bound, math.nan, exact)

    @property
    def scale(self) -> float:
        return max(abs(self.f_input - self.f_baseline), FLOOR)

    @property
    def relative_delta(self) -> float:
        return abs(self.delta) / self.scale

    @property
    def converged(self) -> bool:
        return self.bound <= self.tolerance and not self.token_error > self.tolerance

    @property
    def verdict(self) -> str:
        return "converged" if self.converged else "not converged"

    def summary(self, unit: str) -> str:
        """The verdict with its numbers, on one line."""
        rise = f"{self.f_input - self.f_baseline:.3g} {unit}"
        if self.exact:
            return f"exact: the scores add up to {rise}"
        return f"{self.verdict}: integration error {max(self.bound, self.relative_delta):.2g} of {rise}"


@dataclass(frozen=True)
class Piece:
    """One piece of an integration path; the figure of the path shows them."""

    start: float
    end: float
    alphas: np.ndarray  # [node]
    values: np.ndarray  # F at the nodes [node]
    scores: np.ndarray  # [position]
    residual: float  # sum of scores - (F(end) - F(start))


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Displayed):
    """Scores of one method for one case and target; it shows itself in a notebook and in a terminal.

    `errors` are standard or quadrature errors, nan where unknown. `low` and `high` are a word's least and greatest
    score over a panel of absences, `by_absence` its scores under each of them. `scores` have one entry a token,
    `word_scores` one a row of the word view: words, and tokens that belong to none. `trust` is the trust card where
    one was made.
    """

    case: Case
    target: Target
    method: str
    baseline: str  # '' where the method has none
    sink: str  # kept | moved
    unit: str
    additive: bool
    scores: Scores
    errors: Scores
    word_scores: Words
    word_errors: Words
    low: Words | None = None
    high: Words | None = None
    by_absence: Float[np.ndarray, "absence unit"] | None = None
    certificate: Certificate | None = None
    path: tuple[Piece, ...] = ()
    trust: TrustCard | None = None

    @property
    def certified(self) -> bool:
        """Whether nothing speaks against the scores: no certificate is needed, or there is one and it converged."""
        return self.certificate is None or self.certificate.converged

    @property
    def stands(self) -> Bool[np.ndarray, " unit"] | None:
        """Whether a word has one sign over the panel, its sampling error included; None for a method without one."""
        return None if self.low is None or self.high is None else (self.low > 0) | (self.high < 0)

    def keys(self) -> dict[str, str]:
        """The key columns of every table that these scores go into."""
        own = {"method": self.method, "baseline": self.baseline, "sink": self.sink, "unit": self.unit}
        return self.case.keys() | self.target.keys() | own

    @property
    def verdicts(self) -> list[str]:
        """What is proven of the scores and what is not, one short line each."""
        lines = [self.certificate.summary(self.unit)] if self.certificate else []
        if self.certificate is None and not self.additive:
            lines.append("scores of words do not add up to anything")
        elif self.certificate is None:
            lines.append("no certificate of the sum")
        if self.certificate and self.certificate.exact and np.nan_to_num(self.word_errors).max(initial=0) > 0:
            most = np.nanmax(self.word_errors)
            lines.append(f"scores of words are sampled: standard errors up to {most:.2g} {self.unit}")
        if self.stands is not None:
            there = np.isfinite(self.word_scores)
            explained = [row for row, unit in enumerate(units(self.case)) if unit.is_word and there[row]]
            lines.append(f"{self.stands[explained].sum()} of {len(explained)} words stand: one sign over all absences")
        return lines

    @property
    def words(self) -> pd.DataFrame:
        """One row a word in reading order: word, score, error, low, high, stands (empty where the method has none).

        A token outside all words, such as the document's start, has a row where it has a score.
        """
        rows = units(self.case)
        nothing = np.full(len(rows), np.nan)
        table = pd.DataFrame(
            {
                "word": [unit.text for unit in rows],
                "score": self.word_scores,
                "error": self.word_errors,
                "low": nothing if self.low is None else self.low,
                "high": nothing if self.high is None else self.high,
                "stands": pd.array([None] * len(rows) if self.stands is None else self.stands, dtype="boolean"),
            }
        )
        table.loc[table["score"].isna(), "stands"] = pd.NA
        shown = [unit.is_word or not np.isnan(score) for unit, score in zip(rows, self.word_scores, strict=True)]
        return table[shown].reset_index(drop=True)

    @property
    def tokens(self) -> pd.DataFrame:
        """One row a token: token, kind (text, special), score, error."""
        kinds = [token.kind for token in self.case.tokens]
        return pd.DataFrame({"token": self.case.labels, "kind": kinds, "score": self.scores, "error": self.errors})

    def plot(self, by: str = "word") -> Figure:
        """Bars of the scores by `word` or by `token`. Raises UserError for another `by`."""
        from xai_utils.plots.sentence import bars_of

        return bars_of(self, by)

    def __repr__(self) -> str:
        from xai_utils.plots.terminal import plain

        return plain(self)

    def _repr_html_(self) -> str:
        from xai_utils.plots.html import result_html

        return result_html(self)

    def png(self) -> bytes:
        """The sentence in colour, as a picture."""
        from xai_utils.plots.sentence import sentences
        from xai_utils.plots.style import png

        return png(sentences([self]))


def from_tokens(
    method: str,
    case: Case,
    target: Target,
    scores: Scores,
    errors: Scores | None = None,
    *,
    baseline: str = "",
    keep_sink: bool,
    additive: bool = True,
    unit: str | None = None,
    certificate: Certificate | None = None,
    path: tuple[Piece, ...] = (),
) -> Attribution:
    """A result from scores of tokens: kept positions lose theirs, a word's score is the sum over its tokens.

    `errors` not given are unknown; `unit` not given is the target's.
    """
    kept = ~moved(case, keep_sink).numpy()
    scores = np.where(kept, np.nan, scores)
    errors = np.full(len(scores), np.nan) if errors is None else np.where(kept, np.nan, errors)
    return Attribution(
        case=case,
        target=target,
        method=method,
        baseline=baseline,
        sink="kept" if keep_sink else "moved",
        unit=unit or target.unit,
        additive=additive,
        scores=scores,
        errors=errors,
        word_scores=to_words(scores, case),
        word_errors=to_words(errors, case),
        certificate=certificate,
        path=path,
    )


def from_words(
    method: str,
    case: Case,
    target: Target,
    players: Sequence[Player],
    scores: Float[np.ndarray, " player"],
    errors: Float[np.ndarray, " player"],
    *,
    baseline: str = "",
    keep_sink: bool,
    additive: bool,
    tokens: Float[np.ndarray, "2 position"] | None = None,
    low: Float[np.ndarray, " player"] | None = None,
    high: Float[np.ndarray, " player"] | None = None,
    by_absence: Float[np.ndarray, "absence player"] | None = None,
    certificate: Certificate | None = None,
) -> Attribution:
    """A result from scores of whole words, one a player; a unit without a player has no score.

    `tokens` holds scores and errors of single tokens where they were computed. Otherwise an additive score is shared
    equally by the word's tokens, and of the others a token has one only where it is the whole word.
    """

    def over_units(values: np.ndarray) -> np.ndarray:
        filled = np.full((*values.shape[:-1], len(units(case))), np.nan)
        filled[..., [player.unit for player in players]] = values
        return filled

    pieces = _pieces(case, players, np.stack([scores, errors]), additive) if tokens is None else tokens
    return Attribution(
        case=case,
        target=target,
        method=method,
        baseline=baseline,
        sink="kept" if keep_sink else "moved",
        unit=target.unit,
        additive=additive,
        scores=pieces[0],
        errors=pieces[1],
        word_scores=over_units(scores),
        word_errors=over_units(errors),
        low=None if low is None else over_units(low),
        high=None if high is None else over_units(high),
        by_absence=None if by_absence is None else over_units(by_absence),
        certificate=certificate,
    )


def _pieces(case: Case, players: Sequence[Player], both: np.ndarray, additive: bool) -> Float[np.ndarray, "2 position"]:
    """Scores and errors of tokens from those of words."""
    tokens = np.full((2, len(case.tokens)), np.nan)
    for player, values in zip(players, both.T, strict=True):
        where = list(player.positions)
        if additive:  # a token that two words share has its part of both
            tokens[:, where] = np.nan_to_num(tokens[:, where]) + values[:, None] / len(where)
        elif len(where) == 1:
            tokens[:, where] = values[:, None]
    return tokens


def to_words(scores: Scores, case: Case) -> Words:
    """Additive token scores summed over words; a unit of kept tokens alone stays without a score.

    The sum is conserved: every token's weights add up to 1.
    """
    weights = word_weights(case)
    explained = ~np.isnan(scores)
    summed = np.nan_to_num(scores) @ weights
    summed[weights[explained].sum(0) == 0] = np.nan
    return summed
