"""Gradient methods: integrated gradients with a certificate, the original study's fixed steps, and their relatives.

Scores are summed over the embedding axis, signed, in the unit of the target. The path's integration is path.py's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xai_utils.attribution.absence import baseline_rows
from xai_utils.attribution.path import fixed_rule, integrate
from xai_utils.attribution.result import Attribution, Certificate, from_tokens
from xai_utils.attribution.target import Objective, Target
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

VERSION = 1  # raise it when results would come out different


class EmbeddingPath:
    """F and the densities of its positions' scores between `start` (alpha 0) and the objective's own inputs (alpha 1).

    Positions in front of the first that moves are computed once.
    """

    def __init__(self, objective: Objective, start: Float[Tensor, "position hidden"]):
        self.objective, self.since = objective, objective.unchanged(start)
        self.start = start[self.since :]
        self.step = objective.inputs[self.since :] - self.start

    def values(self, alphas: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        """F at some points, without gradients."""
        return self.objective.values(self._points(alphas), self.since).double().cpu().numpy()

    def densities(
        self, alphas: Float[np.ndarray, " point"]
    ) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, "point position"]]:
        """F, and the gradient times the step, summed over the embedding axis."""
        values, gradients = self.objective.values_and_gradients(self._points(alphas), self.since)
        densities = torch.einsum("nph,ph->np", gradients.double(), self.step.double())
        return values.double().cpu().numpy(), np.pad(densities.cpu().numpy(), ((0, 0), (self.since, 0)))

    def _points(self, alphas: Float[np.ndarray, " point"]) -> Float[Tensor, "point position hidden"]:
        return self.start + torch.tensor(alphas).to(self.step)[:, None, None] * self.step


def integrated_gradients(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    baseline: str = "zero",
    keep_sink: bool = True,
    tolerance: float = 0.01,
    budget: int = 1024,
    seed: int = 0,
    sequences: int = 8,
) -> Attribution:
    """Integrated gradients with a certificate (Sundararajan et al. 2017, arXiv 1703.01365), refined by residuals.

    With `baseline="sampled"` the mean over so many random token sequences (expected gradients, Erion et al. 2021); its
    errors hold their standard error as well, its certificate their means and the sum of their costs.
    Raises UserError for an unknown baseline, one that equals the input, a bad tolerance or budget, a gradient that is
    not finite.
    """
    objective = Objective(model, case, target)
    starts = baseline_rows(model, case, baseline, keep_sink, seed, sequences)
    runs = [integrate(EmbeddingPath(objective, start), tolerance, budget // len(starts)) for start in starts]
    scores = np.array([run[1] for run in runs])
    errors = np.mean([run[2] for run in runs], axis=0)
    if len(runs) > 1:
        errors = np.hypot(errors, scores.std(0, ddof=1) / math.sqrt(len(runs)))
    certificate = runs[0][3] if len(runs) == 1 else _pooled([run[3] for run in runs])
    path = runs[0][0] if len(runs) == 1 else ()
    return from_tokens(
        "integrated_gradients",
        case,
        target,
        scores.mean(0),
        errors,
        baseline=baseline,
        keep_sink=keep_sink,
        certificate=certificate,
        path=path,
    )


def _pooled(certificates: list[Certificate]) -> Certificate:
    """One certificate for a mean over paths: absolute errors are averaged, costs added."""
    rise = np.mean([c.f_input - c.f_baseline for c in certificates])
    pooled = Certificate(
        tolerance=certificates[0].tolerance,
        evaluations=sum(c.evaluations for c in certificates),
        forwards=sum(c.forwards for c in certificates),
        f_input=certificates[0].f_input,
        f_baseline=certificates[0].f_input - float(rise),
        delta=float(np.mean([c.delta for c in certificates])),
        bound=0.0,
        token_error=0.0,
    )
    bound, token = (float(np.mean([getattr(c, k) * c.scale for c in certificates])) for k in ("bound", "token_error"))
    return Certificate(**{**vars(pooled), "bound": bound / pooled.scale, "token_error": token / pooled.scale})


def fixed_steps(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    baseline: str = "zero",
    keep_sink: bool = False,
    tolerance: float = 0.01,
    steps: int = 50,
) -> Attribution:
    """Integrated gradients with a fixed Gauss-Legendre rule, as captum's: the original's setting, for comparison.

    The certificate has the completeness error as its bound, and no error of single tokens (nan), which a fixed rule
    cannot tell. Raises UserError as `integrated_gradients` does.
    """
    path = EmbeddingPath(Objective(model, case, target), baseline_rows(model, case, baseline, keep_sink)[0])
    nodes, weights = (array / 2 for array in np.polynomial.legendre.leggauss(steps))
    start, end = path.values(np.array([0.0, 1.0])).tolist()  # no gradient there: at the zero vector it can be infinite
    scores = weights @ path.densities(nodes + 0.5)[1]
    certificate = Certificate.of_sum(scores.sum(), end, start, tolerance, evaluations=steps, forwards=2)
    return from_tokens(
        "fixed_steps", case, target, scores, baseline=baseline, keep_sink=keep_sink, certificate=certificate
    )


def fixed_path(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    baseline: str = "zero",
    keep_sink: bool = False,
    steps: int = 50,
) -> Attribution:
    """`fixed_steps` with its path, for its figure: pieces of one node each, what captum adds up before it is added."""
    start = baseline_rows(model, case, baseline, keep_sink)[0]
    path = fixed_rule(EmbeddingPath(Objective(model, case, target), start), steps)
    scores = np.sum([piece.scores for piece in path], axis=0)
    return from_tokens("fixed_path", case, target, scores, baseline=baseline, keep_sink=keep_sink, path=path)


def input_x_gradient(model: LoadedModel, case: Case, target: Target, *, keep_sink: bool = True) -> Attribution:
    """Embedding times gradient (Shrikumar et al. 2016): the first-order guess at zeroing a token, without a proof."""
    objective = Objective(model, case, target)
    _, gradients = objective.values_and_gradients(objective.inputs[None])
    scores = (objective.inputs * gradients[0]).double().sum(-1).cpu().numpy()
    return from_tokens("input_x_gradient", case, target, scores, baseline="zero", keep_sink=keep_sink)
