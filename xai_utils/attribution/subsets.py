"""Subsets and orders of players, and Shapley values from the values of all subsets. No model is asked here."""

from __future__ import annotations

from math import comb

import numpy as np
from jaxtyping import Bool, Float


def all_subsets(count: int) -> Bool[np.ndarray, "subset player"]:
    """Every subset of `count` players, the subset's number read as bits, lowest bit first.

    >>> all_subsets(2).astype(int).tolist()
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    return (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(bool)


def chains(orders: np.ndarray) -> Bool[np.ndarray, "order step player"]:
    """Who is present when players come in one by one, from nobody to all.

    >>> chains(np.array([[1, 0]])).astype(int).tolist()
    [[[0, 0], [0, 1], [1, 1]]]
    """
    ranks = np.argsort(orders, axis=1)
    return ranks[:, None, :] < np.arange(orders.shape[1] + 1)[None, :, None]


def marginals(
    values: Float[np.ndarray, "order step column"], orders: np.ndarray
) -> Float[np.ndarray, "order player column"]:
    """What each player adds when players come in by these orders, from the values of their `chains`."""
    return np.take_along_axis(np.diff(values, axis=1), np.argsort(orders, axis=1)[..., None], axis=1)


def exact_shapley(values: Float[np.ndarray, "subset ..."]) -> Float[np.ndarray, "player ..."]:
    """Shapley values from the values of all subsets, in the order of `all_subsets`.

    >>> exact_shapley(np.array([0.0, 1.0, 3.0, 10.0]))  # alone the first is worth 1, the second 3, both 10
    array([4., 6.])
    """
    count = len(values).bit_length() - 1
    sizes = all_subsets(count).sum(1)
    scores = []
    for player in range(count):
        without = np.flatnonzero(~all_subsets(count)[:, player])
        weights = np.array([1 / (count * comb(count - 1, size)) for size in sizes[without]])
        scores.append(np.tensordot(weights, values[without | 1 << player] - values[without], 1))
    return np.array(scores)
