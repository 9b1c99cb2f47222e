"""Orders in which words are removed: the mean, the best and the worst of all of them, from the values of all subsets.

An order of n words passes through n - 1 subsets between none and all: its first word, its first two, and so on. Both
deletion measures average F over such a chain, so the best order is a longest path through the lattice of subsets and is
found exactly by dynamic programming in n 2^n steps. A subset's number, read as bits, says which words are in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
from jaxtyping import Bool, Float, Int

from xai_utils.attribution.subsets import all_subsets, chains
from xai_utils.evaluation.statistics import ROUNDING

Values = Float[np.ndarray, " subset"]
Order = Int[np.ndarray, " word"]
Orders = Int[np.ndarray, "order word"]
Value = Callable[[Bool[np.ndarray, "row word"]], Float[np.ndarray, " row"]]


@dataclass(frozen=True)
class Span:
    """Mean F along the chain of the lowest, the average and the highest order: what a share is measured against.

    Sufficiency is best where F stays high (the chain of an order), comprehensiveness where it falls low (the chain of
    the reversed order); the average over all orders is the same for both.
    """

    low: float
    mean: float
    high: float

    def share(self, kept: np.ndarray | float, left: np.ndarray | float) -> np.ndarray:
        """0 for an average order, 1 for the best, both measures averaged (Normalised AOPC, arXiv 2408.08137).

        `kept` is the mean F along an order's chain, `left` that along its reverse. nan where all orders are alike.

        >>> float(Span(low=0.0, mean=1.0, high=3.0).share(kept=2.0, left=0.0))
        0.75
        """
        if not (self.high - self.mean > ROUNDING and self.mean - self.low > ROUNDING):
            return np.full(np.shape(kept), np.nan)
        sufficiency = (np.asarray(kept) - self.mean) / (self.high - self.mean)
        comprehensiveness = (self.mean - np.asarray(left)) / (self.mean - self.low)
        return (sufficiency + comprehensiveness) / 2


def word_count(values: Values) -> int:
    return len(values).bit_length() - 1


def span(values: Values) -> Span:
    """Lowest, average and highest order, exact. nan for fewer than two words, where no subset lies between."""
    count = word_count(values)
    if count < 2:
        return Span(np.nan, np.nan, np.nan)
    sizes = all_subsets(count).sum(1)
    mean = np.mean([values[sizes == size].mean() for size in range(1, count)])
    low, high = (sign * best_order(sign * values)[0] / (count - 1) for sign in (-1, 1))
    return Span(float(low), float(mean), float(high))


def best_order(gains: Values) -> tuple[float, Order]:
    """The order whose chain has the largest sum of gains, and that sum; none and all do not count.

    >>> total, order = best_order(np.array([0.0, 5.0, 1.0, 9.0]))  # two words: either the first or the second is first
    >>> float(total), order.tolist()
    (5.0, [0, 1])
    """
    count = word_count(gains)
    subsets = all_subsets(count)
    sizes, numbers = subsets.sum(1), np.arange(2**count)
    best, last = np.zeros(2**count), np.zeros(2**count, dtype=np.int64)
    for size in range(1, count + 1):
        here = numbers[sizes == size]
        before = np.where(subsets[here], best[here[:, None] & ~(1 << np.arange(count))], -np.inf)
        last[here] = before.argmax(1)
        best[here] = before.max(1) + (gains[here] if size < count else 0)
    order, left = [], 2**count - 1
    while left:
        order.append(int(last[left]))
        left &= ~(1 << order[-1])
    return float(best[-1]), np.array(order[::-1])


def chain_numbers(orders: Orders) -> Int[np.ndarray, "order step"]:
    """The subsets between none and all that each order passes through, by number.

    >>> chain_numbers(np.array([[1, 0, 2]])).tolist()
    [[2, 3]]
    """
    present = chains(orders)[:, 1:-1]
    return present @ (1 << np.arange(orders.shape[1]))


def along(values: Float[np.ndarray, " subset"], orders: Orders) -> Float[np.ndarray, " order"]:
    """Mean value along each order's chain."""
    return values[chain_numbers(orders)].mean(1)


def shares(values: Values, orders: Orders, scale: Span | None = None) -> Float[np.ndarray, " order"]:
    """Share of each order: 0 for an average one, 1 for the best; nan for fewer than two words."""
    if word_count(values) < 2:
        return np.full(len(orders), np.nan)
    return (scale or span(values)).share(along(values, orders), along(values, orders[:, ::-1]))


def ceiling(tables: list[Values]) -> tuple[float, Order]:
    """The best mean share that a single order can have over several tables of values, and that order, exact.

    A share is a sum over the subsets of an order's chain, so the mean of shares is one more sum. Tables on which all
    orders are alike take no part; nan if none is left.
    """
    known = [(values, scale) for values in tables if not np.isnan((scale := span(values)).share(0.0, 0.0))]
    if not known:
        return np.nan, np.arange(word_count(tables[0]))
    count = word_count(tables[0])
    gains, constant = np.zeros(2**count), 0.0
    for values, scale in known:
        weights = 2 * len(known) * np.array([scale.high - scale.mean, scale.mean - scale.low])
        gains += (values / weights[0] - values[::-1] / weights[1]) / (count - 1)
        constant += scale.mean / weights[1] - scale.mean / weights[0]
    total, order = best_order(gains)
    return total + float(constant), order


def by_score(scores: Float[np.ndarray, " word"]) -> Order:
    """Words from the highest score to the lowest; ties in reading order, words without a score last."""
    return np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")


def some_orders(count: int, most: int, seed: int) -> Orders:
    """All orders of `count` words where there are at most `most`, else that many random ones."""
    if factorial(count) <= most:
        return np.array(list(permutations(range(count)))).reshape(-1, count)
    generator = np.random.default_rng(seed)
    return np.array([generator.permutation(count) for _ in range(most)])


# ---- too many words to enumerate


def step_sizes(count: int, most: int) -> Int[np.ndarray, " step"]:
    """Sizes of subsets, at most `most` and evenly spaced, at which a long order's chain is measured.

    >>> step_sizes(5, 10).tolist(), step_sizes(41, 4).tolist()
    ([1, 2, 3, 4], [8, 16, 25, 33])
    """
    steps = min(most, count - 1)
    return np.rint(np.arange(1, steps + 1) * count / (steps + 1)).astype(int)


def beam(value: Value, count: int, sizes: Int[np.ndarray, " step"], width: int, sign: int) -> float:
    """Mean value along the best chain that a beam search finds through these sizes; `sign` -1 seeks the lowest.

    From each of `width` subsets the search asks what every word alone would add, takes the best block of words to the
    next size, and variants of it that end in another word (Normalised AOPC, arXiv 2408.08137, with blocks).
    """
    found, totals = np.zeros((1, count), dtype=bool), np.zeros(1)
    for size in sizes:
        single = [np.where(np.eye(count, dtype=bool)[~row], True, row) for row in found]
        gains = np.split(sign * value(np.concatenate(single)), np.cumsum([len(rows) for rows in single])[:-1])
        children, parents = [], []
        for parent, (row, gain) in enumerate(zip(found, gains, strict=True)):
            ranked = np.flatnonzero(~row)[np.argsort(-gain, kind="stable")]
            block = size - row.sum()
            for last in ranked[block - 1 : block - 1 + width]:
                child = row.copy()
                child[[*ranked[: block - 1], last]] = True
                children.append(child)
                parents.append(parent)
        unique, first = np.unique(np.array(children), axis=0, return_index=True)
        sums = totals[np.array(parents)[first]] + sign * value(unique)
        best = np.argsort(-sums, kind="stable")[:width]
        found, totals = unique[best], sums[best]
    return float(sign * totals[0] / len(sizes))
