"""Residual-guided integration along a straight path, of embeddings or of weights.

Completeness holds on every piece of the path: the scores of a piece add up to F(end) - F(start), and both ends cost one
forward pass. So each piece carries an exact measure of its own error, and the path is refined just where that is large.

1. Forward passes alone, which cost half of a gradient or less, cut the path into pieces on which F is smooth: a piece
   is halved while a polynomial through five of its points mispredicts the four between them.
2. The worst pieces get more nodes (patterson.py: rules of 7, 15 and 31 nodes, nested, so that no gradient is thrown
   away), then are halved.

Each part's own error is the difference between a rule and the one nested in it, times what the larger rule gained on
the sum of all parts, where both rules' errors are known exactly. Nothing here knows of tokens, modules, baselines by
name, or of captum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Float
from scipy.interpolate import BarycentricInterpolator

from xai_utils.attribution.patterson import rule
from xai_utils.attribution.result import FLOOR, Certificate, Piece
from xai_utils.errors import UserError
from xai_utils.models.watch import came_to

RULES = (1, 2, 3)  # of the Patterson rules: 7, 15 and 31 nodes
FIRST_PIECES = ((0.0, 0.5), (0.5, 1.0))
FIRST_ROUND = 7 * len(FIRST_PIECES)  # gradient evaluations before anything is known
POINTS = np.linspace(0, 1, 9)  # of a piece, where F is looked at before any gradient
SMOOTH = 2.0  # tolerances: how far F may lie from its polynomial on a piece that is not halved
GAIN = 0.05  # the most that a larger rule's gain on the sum is trusted to hold for a single part


class Path(Protocol):
    """F along a path, alpha = 0 to 1, and how fast the score of each part grows there: the densities sum to dF/dalpha.

    A part is whatever moves along the path and is to have a score: a position, or a module at a position.
    """

    def values(self, alphas: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]: ...

    def densities(
        self, alphas: Float[np.ndarray, " point"]
    ) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, "point part"]]: ...


@dataclass(frozen=True)
class _Interval:
    """One piece with the integrand at the nodes of its rule, in rising order."""

    start: float
    end: float
    level: int
    alphas: Float[np.ndarray, " node"]
    values: Float[np.ndarray, " node"]
    densities: Float[np.ndarray, "node part"]
    rise: float  # F(end) - F(start)

    @cached_property
    def scores(self) -> Float[np.ndarray, " part"]:
        return (self.end - self.start) * rule(RULES[self.level])[1] @ self.densities

    @cached_property
    def errors(self) -> Float[np.ndarray, " part"]:
        """|rule - nested rule|, which is the nested rule's error, times the gain in the error of the sum."""
        coarse = self.densities[1::2]  # Patterson nodes interlace: every second one belongs to the nested rule
        nested = (self.end - self.start) * rule(RULES[self.level] - 1)[1] @ coarse
        before = abs(nested.sum() - self.rise)
        gain = abs(self.residual) / before if before else 1.0
        return np.abs(self.scores - nested) * np.clip(gain, GAIN, 1.0)

    @property
    def residual(self) -> float:
        return float(self.scores.sum() - self.rise)

    def piece(self) -> Piece:
        return Piece(self.start, self.end, self.alphas, self.values, self.scores, self.residual)


class _Known:
    """A path with the values at pieces' ends that are known already, and a count of what was evaluated."""

    def __init__(self, path: Path):
        self.path = path
        self.ends: dict[float, float] = {}
        self.gradients = 0

    def add_ends(self, alphas: list[float]) -> None:
        new = sorted({alpha for alpha in alphas if alpha not in self.ends})
        if new:
            self.ends.update(zip(new, self.path.values(np.array(new)).tolist(), strict=True))

    def densities(self, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.gradients += len(alphas)
        return self.path.densities(alphas)

    @property
    def rise(self) -> float:
        return self.ends[1.0] - self.ends[0.0]

    @property
    def scale(self) -> float:
        """|F(1) - F(0)|, or the floor where that is next to nothing."""
        return max(abs(self.rise), FLOOR)

    def misprediction(self, start: float, end: float) -> float:
        """The largest distance of F from the quartic through every second of a piece's nine points."""
        values = np.array([self.ends[alpha] for alpha in start + (end - start) * POINTS])
        quartic = BarycentricInterpolator(POINTS[::2], values[::2])
        return float(np.abs(quartic(POINTS[1::2]) - values[1::2]).max())


def _smooth_pieces(known: _Known, tolerance: float, most: int) -> list[tuple[float, float]]:
    """Pieces, at most so many, halved by forward passes alone until F is smooth on each."""
    pieces, smooth = list(FIRST_PIECES), list[tuple[float, float]]()
    while pieces:
        known.add_ends([alpha for start, end in pieces for alpha in (start + (end - start) * POINTS).tolist()])
        rough = [piece for piece in pieces if known.misprediction(*piece) > SMOOTH * tolerance * known.scale]
        if len(smooth) + len(pieces) + len(rough) > most:
            rough = []
        smooth += [piece for piece in pieces if piece not in rough]
        pieces = [half for start, end in rough for half in _halves(start, end)]
    return sorted(smooth)


def _halves(start: float, end: float) -> list[tuple[float, float]]:
    middle = (start + end) / 2
    return [(start, middle), (middle, end)]


def _evaluate(known: _Known, wanted: list[tuple[float, float, int, _Interval | None]]) -> list[_Interval]:
    """Intervals for (start, end, level, the same one level below), all their new nodes in one batch."""
    known.add_ends([end for start, stop, _, _ in wanted for end in (start, stop)])
    grids = [start + (stop - start) * rule(RULES[level])[0] for start, stop, level, _ in wanted]
    fresh = [grid if below is None else grid[::2] for grid, (*_, below) in zip(grids, wanted, strict=True)]
    values, densities = known.densities(np.concatenate(fresh))
    cuts = np.cumsum([len(nodes) for nodes in fresh])[:-1]
    intervals = []
    for grid, new_values, new_densities, (start, stop, level, below) in zip(
        grids, np.split(values, cuts), np.split(densities, cuts), wanted, strict=True
    ):
        if below is not None:
            new_values = _interlace(new_values, below.values)
            new_densities = _interlace(new_densities, below.densities)
        rise = known.ends[stop] - known.ends[start]
        intervals.append(_Interval(start, stop, level, grid, new_values, new_densities, rise))
    return intervals


def _interlace(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """
    >>> _interlace(np.array([1, 3, 5]), np.array([2, 4]))
    array([1, 2, 3, 4, 5])
    """
    merged = np.empty((len(outer) + len(inner), *outer.shape[1:]), outer.dtype)
    merged[::2], merged[1::2] = outer, inner
    return merged


def _refine(interval: _Interval) -> list[tuple[float, float, int, _Interval | None]]:
    """More nodes while there is a larger rule, else two halves."""
    if interval.level + 1 < len(RULES):
        return [(interval.start, interval.end, interval.level + 1, interval)]
    return [(start, end, 0, None) for start, end in _halves(interval.start, interval.end)]


def _cost(interval: _Interval) -> int:
    return len(interval.alphas) + 1 if interval.level + 1 < len(RULES) else 14


def integrate(
    path: Path, tolerance: float, budget: int
) -> tuple[tuple[Piece, ...], Float[np.ndarray, " part"], Float[np.ndarray, " part"], Certificate]:
    """The score of each part over the whole path: pieces, scores, errors, certificate.

    Refines the worst pieces until the pieces' residuals added without sign, and the largest error of a part, are
    within `tolerance` times max(|F(1) - F(0)|, 0.1), or until the next round would pass `budget` gradient evaluations.
    Raises UserError for a tolerance that is not positive and a budget below the first round.
    """
    if not tolerance > 0:
        raise UserError(f"tolerance is {tolerance}; expected a positive number such as 0.01")
    if budget < FIRST_ROUND:
        raise UserError(f"budget is {budget} gradient evaluations; the first round takes {FIRST_ROUND}; raise it")
    known = _Known(path)
    pieces = _smooth_pieces(known, tolerance, budget // FIRST_ROUND)
    intervals = _evaluate(known, [(begin, end, 0, None) for begin, end in pieces])
    while True:
        residuals = np.array([abs(interval.residual) for interval in intervals]) / known.scale
        errors = np.array([interval.errors for interval in intervals]) / known.scale
        unproven = np.stack([residuals, errors[:, errors.sum(0).argmax()]])
        came_to(float(unproven.sum(1).max()), tolerance)
        chosen = _worst(intervals, unproven, tolerance, budget - known.gradients)
        if not chosen:
            break
        wanted = [request for index in chosen for request in _refine(intervals[index])]
        kept = [interval for index, interval in enumerate(intervals) if index not in chosen]
        intervals = sorted(kept + _evaluate(known, wanted), key=lambda interval: interval.start)
    scores = np.sum([interval.scores for interval in intervals], axis=0)
    certificate = Certificate(
        tolerance=tolerance,
        evaluations=known.gradients,
        forwards=len(known.ends),
        f_input=known.ends[1.0],
        f_baseline=known.ends[0.0],
        delta=float(scores.sum() - known.rise),
        bound=float(residuals.sum()),
        token_error=float(errors.sum(0).max()),
    )
    return tuple(interval.piece() for interval in intervals), scores, errors.sum(0) * known.scale, certificate


def _worst(
    intervals: list[_Interval], unproven: Float[np.ndarray, "criterion piece"], tolerance: float, left: int
) -> set[int]:
    """The worst pieces: as many as must become exact for the others to add up to the tolerance, or as the budget takes.

    Fewer would not do, so a round is as large as it can be without waste.
    """
    rest = unproven.sum(1)
    need = unproven[rest > tolerance].sum(0)
    chosen: set[int] = set()
    for index in np.argsort(-need, kind="stable"):
        cost = _cost(intervals[index])
        if (rest <= tolerance).all() or cost > left:
            break
        chosen.add(int(index))
        rest = rest - unproven[:, index]
        left -= cost
    return chosen


def fixed_rule(path: Path, steps: int) -> tuple[Piece, ...]:
    """A fixed Gauss-Legendre rule as pieces of one node each, so that it can be looked at as `integrate`'s path can.

    Each node stands for the interval of the path that its weight covers (node and interval interlace: Chebyshev, Markov
    and Stieltjes; Szego 1939, theorem 3.41.1); the pieces' scores add up to the rule's.
    """
    nodes, weights = (array / 2 for array in np.polynomial.legendre.leggauss(steps))
    nodes = nodes + 0.5
    edges = np.array([0.0, *np.cumsum(weights)[:-1].tolist(), 1.0])
    rises = np.diff(path.values(edges))
    values, densities = path.densities(nodes)
    return tuple(
        Piece(a, b, nodes[i : i + 1], values[i : i + 1], scores, float(scores.sum() - rises[i]))
        for i, (a, b, scores) in enumerate(zip(edges, edges[1:], weights[:, None] * densities, strict=False))
    )
