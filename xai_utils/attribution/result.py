"""What every attribution method returns: scores of tokens and of words, their errors and, for a path, a certificate.

A score is in the unit of the target; a position that a method keeps fixed has no score (nan): it is *not explained*,
which is something else than zero. Additive scores are summed over the tokens of a word; the other methods hand in
scores that were computed for the whole word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from xai_utils.text.cases import Case, word_weights

FLOOR = 0.1  # nats or logits: the least difference that relative errors are measured against

Scores = Float[np.ndarray, " position"]
Words = Float[np.ndarray, " unit"]


@dataclass(frozen=True)
class Certificate:
    """The proof of a path attribution (completeness: Sundararajan et al. 2017, arXiv 1703.01365, proposition 1).

    `delta` is the sum of the scores minus F(x) - F(baseline); `bound` the errors of the path's pieces added without
    sign and `token_error` the largest estimated error of one token, both, like `relative_delta`, over
    max(|F(x) - F(baseline)|, 0.1). Converged means that both are within the tolerance; a rule that has no nested one to
    compare with has no token_error (nan) and is judged by its bound alone.
    """

    tolerance: float
    evaluations: int  # sequences passed forward and backward
    forwards: int  # sequences passed forward alone
    f_input: float
    f_baseline: float
    delta: float
    bound: float
    token_error: float

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


@dataclass(frozen=True)
class Piece:
    """One piece of an integration path, for the figure of the path and for whoever wants to refine it further."""

    start: float
    end: float
    alphas: np.ndarray  # [node]
    values: np.ndarray  # F at the nodes [node]
    scores: np.ndarray  # [position]
    residual: float  # sum of scores - (F(end) - F(start))


@dataclass(frozen=True)
class Attribution:
    """Scores of one method for one case and target. `errors` are standard or quadrature errors, nan where unknown."""

    method: str
    baseline: str  # '' where the method has none
    sink: str  # kept | moved
    unit: str
    additive: bool
    scores: Scores
    errors: Scores
    word_scores: Words
    word_errors: Words
    certificate: Certificate | None = None
    path: tuple[Piece, ...] = ()

    @property
    def certified(self) -> bool:
        """Whether nothing speaks against the scores: no certificate is needed, or there is one and it converged."""
        return self.certificate is None or self.certificate.converged

    def keys(self) -> dict[str, str]:
        return {"method": self.method, "baseline": self.baseline, "sink": self.sink, "unit": self.unit}


def to_words(scores: Scores, case: Case) -> Words:
    """Additive token scores summed over words; a unit of kept tokens alone stays without a score.

    The sum is conserved: every token's weights add up to 1.
    """
    weights = word_weights(case)
    explained = ~np.isnan(scores)
    summed = np.nan_to_num(scores) @ weights
    summed[weights[explained].sum(0) == 0] = np.nan
    return summed
