"""Residual-guided integration along a straight path in embedding space.

Completeness holds on every piece of the path: the scores of a piece add up to F(end) - F(start), and both ends cost one
forward pass. So each piece carries an exact measure of its own error, and the path is refined just where that is large.

1. Forward passes alone, which cost half of a gradient or less, cut the path into pieces on which F is smooth: a piece
   is halved while a polynomial through five of its points mispredicts the four between them.
2. The worst pieces get more nodes (Gauss-Kronrod-Patterson rules of 7, 15 and 31 nodes, nested, so that no gradient is
   thrown away; Patterson 1968, doi 10.1090/S0025-5718-68-99866-9), then are halved.

Each token's own error is the difference between a rule and the one nested in it, times what the larger rule gained on
the sum of all tokens, where both rules' errors are known exactly. Nothing here knows of tokens' labels, of baselines by
name, or of captum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import BarycentricInterpolator
from torch import Tensor

from xai_utils.attribution.result import FLOOR, Certificate, Piece
from xai_utils.attribution.target import Objective
from xai_utils.errors import UserError

LEVELS = (2, 3, 4)  # orders of the Patterson rules: 7, 15 and 31 nodes
FIRST = ((0.0, 0.5), (0.5, 1.0))
FIRST_ROUND = 7 * len(FIRST)  # gradient evaluations before anything is known
POINTS = np.linspace(0, 1, 9)  # of a piece, where F is looked at before any gradient
SMOOTH = 2.0  # tolerances: how far F may lie from its polynomial on a piece that is not halved
NEARLY = 0.8  # of the worst piece's error: what is refined in the same round
GAIN = 0.05  # the most that a larger rule's gain on the sum is trusted to hold for a single token


@cache
def _rule(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in (0, 1) in rising order and weights of a Patterson rule: order 1 has 3 nodes, 2 has 7, 3 has 15."""
    import chaospy

    nodes, weights = chaospy.quadrature.patterson(order, chaospy.Uniform(0, 1))
    return nodes[0], weights


@dataclass(frozen=True)
class _Part:
    """One piece with the integrand at the nodes of its rule, in rising order."""

    start: float
    end: float
    level: int
    alphas: Float[np.ndarray, " node"]
    values: Float[np.ndarray, " node"]
    densities: Float[np.ndarray, "node position"]
    rise: float  # F(end) - F(start)

    @cached_property
    def scores(self) -> Float[np.ndarray, " position"]:
        return (self.end - self.start) * _rule(LEVELS[self.level])[1] @ self.densities

    @cached_property
    def errors(self) -> Float[np.ndarray, " position"]:
        """|rule - nested rule|, which is the nested rule's error, times the gain in the error of the sum."""
        coarse = self.densities[1::2]  # Patterson nodes interlace: every second one belongs to the nested rule
        nested = (self.end - self.start) * _rule(LEVELS[self.level] - 1)[1] @ coarse
        before = abs(nested.sum() - self.rise)
        gain = abs(self.residual) / before if before else 1.0
        return np.abs(self.scores - nested) * np.clip(gain, GAIN, 1.0)

    @property
    def residual(self) -> float:
        return float(self.scores.sum() - self.rise)

    def piece(self) -> Piece:
        return Piece(self.start, self.end, self.alphas, self.values, self.scores, self.residual)


class _Path:
    """The straight path from `start` to the objective's own inputs."""

    def __init__(self, objective: Objective, start: Float[Tensor, "position hidden"]):
        self.objective, self.since = objective, objective.unchanged(start)
        self.start = start[self.since :]
        self.step = objective.inputs[self.since :] - self.start
        self.ends: dict[float, float] = {}

    def _points(self, alphas: np.ndarray) -> Float[Tensor, "point position hidden"]:
        return self.start + torch.tensor(alphas).to(self.step)[:, None, None] * self.step

    def add_ends(self, alphas: list[float]) -> None:
        new = sorted({alpha for alpha in alphas if alpha not in self.ends})
        if new:
            found = self.objective.values(self._points(np.array(new)), self.since)
            self.ends.update(zip(new, found.double().tolist(), strict=True))

    def integrand(self, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """F and the scores' densities (gradient times step, summed over the embedding axis) at some points."""
        values, gradients = self.objective.values_and_gradients(self._points(alphas), self.since)
        densities = torch.einsum("nph,ph->np", gradients.double(), self.step.double())
        return values.double().cpu().numpy(), np.pad(densities.cpu().numpy(), ((0, 0), (self.since, 0)))

    @property
    def scale(self) -> float:
        """|F(x) - F(start)|, or the floor where that is next to nothing."""
        return max(abs(self.ends[1.0] - self.ends[0.0]), FLOOR)

    def misprediction(self, start: float, end: float) -> float:
        """The largest distance of F from the quartic through every second of a piece's nine points."""
        values = np.array([self.ends[alpha] for alpha in start + (end - start) * POINTS])
        quartic = BarycentricInterpolator(POINTS[::2], values[::2])
        return float(np.abs(quartic(POINTS[1::2]) - values[1::2]).max())


def _smooth_pieces(path: _Path, tolerance: float, most: int) -> list[tuple[float, float]]:
    """Pieces, at most so many, halved by forward passes alone until F is smooth on each."""
    pieces, smooth = list(FIRST), list[tuple[float, float]]()
    while pieces:
        path.add_ends([alpha for start, end in pieces for alpha in (start + (end - start) * POINTS).tolist()])
        rough = [piece for piece in pieces if path.misprediction(*piece) > SMOOTH * tolerance * path.scale]
        if len(smooth) + len(pieces) + len(rough) > most:
            rough = []
        smooth += [piece for piece in pieces if piece not in rough]
        pieces = [half for start, end in rough for half in _halves(start, end)]
    return sorted(smooth)


def _halves(start: float, end: float) -> list[tuple[float, float]]:
    middle = (start + end) / 2
    return [(start, middle), (middle, end)]


def _evaluate(path: _Path, wanted: list[tuple[float, float, int, _Part | None]]) -> list[_Part]:
    """Parts for (start, end, level, the same part one level below), all their new nodes in one batch."""
    path.add_ends([end for start, stop, _, _ in wanted for end in (start, stop)])
    grids = [start + (stop - start) * _rule(LEVELS[level])[0] for start, stop, level, _ in wanted]
    fresh = [grid if below is None else grid[::2] for grid, (*_, below) in zip(grids, wanted, strict=True)]
    values, densities = path.integrand(np.concatenate(fresh))
    cuts = np.cumsum([len(nodes) for nodes in fresh])[:-1]
    parts = []
    for grid, new_values, new_densities, (start, stop, level, below) in zip(
        grids, np.split(values, cuts), np.split(densities, cuts), wanted, strict=True
    ):
        if below is not None:
            new_values = _interlace(new_values, below.values)
            new_densities = _interlace(new_densities, below.densities)
        rise = path.ends[stop] - path.ends[start]
        parts.append(_Part(start, stop, level, grid, new_values, new_densities, rise))
    return parts


def _interlace(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """
    >>> _interlace(np.array([1, 3, 5]), np.array([2, 4]))
    array([1, 2, 3, 4, 5])
    """
    merged = np.empty((len(outer) + len(inner), *outer.shape[1:]), outer.dtype)
    merged[::2], merged[1::2] = outer, inner
    return merged


def _refine(part: _Part) -> list[tuple[float, float, int, _Part | None]]:
    """More nodes while there is a larger rule, else two halves."""
    if part.level + 1 < len(LEVELS):
        return [(part.start, part.end, part.level + 1, part)]
    return [(start, end, 0, None) for start, end in _halves(part.start, part.end)]


def _cost(part: _Part) -> int:
    return len(part.alphas) + 1 if part.level + 1 < len(LEVELS) else 14


def integrate(
    objective: Objective, start: Float[Tensor, "position hidden"], tolerance: float, budget: int
) -> tuple[tuple[Piece, ...], np.ndarray, np.ndarray, Certificate]:
    """Integrated gradients from `start` to the objective's inputs: pieces, scores and errors [position], certificate.

    Refines the worst pieces until the pieces' residuals added without sign, and the largest error of a token, are
    within `tolerance` times max(|F(x) - F(start)|, 0.1), or until the next round would pass `budget` gradient
    evaluations.
    Raises UserError for a tolerance that is not positive and a budget below the first round.
    """
    if not tolerance > 0:
        raise UserError(f"tolerance is {tolerance}; expected a positive number such as 0.01")
    if budget < FIRST_ROUND:
        raise UserError(f"budget is {budget} gradient evaluations; the first round takes {FIRST_ROUND}; raise it")
    path, spent = _Path(objective, start), (objective.gradients, objective.forwards)
    pieces = _smooth_pieces(path, tolerance, budget // FIRST_ROUND)
    parts = _evaluate(path, [(begin, end, 0, None) for begin, end in pieces])
    rise, scale = path.ends[1.0] - path.ends[0.0], path.scale
    while True:
        residuals = np.array([abs(part.residual) for part in parts]) / scale
        errors = np.array([part.errors for part in parts]) / scale
        loose, worst_token = residuals.sum() > tolerance, int(errors.sum(0).argmax())
        need = residuals * loose + errors[:, worst_token] * (errors.sum(0).max() > tolerance)
        left = budget - (objective.gradients - spent[0])
        chosen = _worst(parts, need, left)
        if not chosen:
            break
        wanted = [request for index in chosen for request in _refine(parts[index])]
        parts = [part for index, part in enumerate(parts) if index not in chosen] + _evaluate(path, wanted)
        parts.sort(key=lambda part: part.start)
    scores = np.sum([part.scores for part in parts], axis=0)
    evaluations = objective.gradients - spent[0]
    certificate = Certificate(
        tolerance=tolerance,
        evaluations=evaluations,
        forwards=objective.forwards - spent[1] - evaluations,
        f_input=path.ends[1.0],
        f_baseline=path.ends[0.0],
        delta=float(scores.sum() - rise),
        bound=float(residuals.sum()),
        token_error=float(errors.sum(0).max()),
    )
    return tuple(part.piece() for part in parts), scores, errors.sum(0) * scale, certificate


def _worst(parts: list[_Part], need: np.ndarray, left: int) -> set[int]:
    """The pieces nearly as bad as the worst, as far as the budget goes; none when nothing is needed."""
    chosen: set[int] = set()
    for index in np.argsort(-need):
        cost = _cost(parts[index])
        if need[index] <= 0 or need[index] < NEARLY * need.max() or cost > left:
            break
        chosen.add(int(index))
        left -= cost
    return chosen


def fixed_rule(objective: Objective, start: Float[Tensor, "position hidden"], steps: int) -> tuple[Piece, ...]:
    """A fixed Gauss-Legendre rule as pieces of one node each, so that it can be looked at as `integrate`'s path can.

    Each node stands for the stretch of the path that its weight covers (node and stretch interlace: Chebyshev, Markov
    and Stieltjes; Szego 1939, theorem 3.41.1); the pieces' scores add up to the rule's.
    """
    nodes, weights = (array / 2 for array in np.polynomial.legendre.leggauss(steps))
    nodes = nodes + 0.5
    edges = [0.0, *np.cumsum(weights)[:-1].tolist(), 1.0]
    path = _Path(objective, start)
    path.add_ends(edges)
    values, densities = path.integrand(nodes)
    return tuple(
        Piece(a, b, nodes[i : i + 1], values[i : i + 1], scores, float(scores.sum() - (path.ends[b] - path.ends[a])))
        for i, (a, b, scores) in enumerate(zip(edges, edges[1:], weights[:, None] * densities, strict=False))
    )
