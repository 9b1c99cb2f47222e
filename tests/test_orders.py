"""Best, average and worst orders by dynamic programming against all orders there are."""

from itertools import permutations

import numpy as np
import pytest

from xai_utils.evaluation.orders import along, best_order, by_score, ceiling, shares, some_orders, span


def by_hand(values, order):
    """Mean value while the words of an order come in, none and all left out."""
    present, seen = 0, []
    for word in order[:-1]:
        present |= 1 << word
        seen.append(values[present])
    return np.mean(seen)


@pytest.fixture(params=[2, 3, 5, 6])
def values(request):
    return np.random.default_rng(request.param).normal(size=2**request.param)


def test_extremes_and_mean_are_those_of_all_orders(values):
    count = len(values).bit_length() - 1
    every = np.array([by_hand(values, order) for order in permutations(range(count))])
    found = span(values)
    assert (found.low, found.mean, found.high) == pytest.approx((every.min(), every.mean(), every.max()))
    total, order = best_order(values)
    assert by_hand(values, order) == pytest.approx(every.max()) and total == pytest.approx(every.max() * (count - 1))
    orders = np.array(list(permutations(range(count))))
    assert along(values, orders) == pytest.approx(every)


def test_shares_are_zero_on_average_and_one_at_best(values):
    count = len(values).bit_length() - 1
    orders = np.array(list(permutations(range(count))))
    found = shares(values, orders)
    assert found.mean() == pytest.approx(0, abs=1e-9) and found.max() <= 1 + 1e-9
    drops = np.array([by_hand(values, order) for order in orders.tolist()])
    removals = np.array([by_hand(values, order[::-1]) for order in orders.tolist()])
    expected = (drops - drops.mean()) / (drops.max() - drops.mean())
    expected += (removals.mean() - removals) / (removals.mean() - removals.min())
    assert found == pytest.approx(expected / 2)


def test_an_additive_game_is_solved_by_its_worths():
    worth = np.array([3.0, -1.0, 0.5, 2.0])
    values = np.array([sum(worth[w] for w in range(4) if s >> w & 1) for s in range(16)])
    assert shares(values, by_score(worth)[None]) == pytest.approx([1])
    assert shares(values, by_score(-worth)[None])[0] < 0


def test_the_ceiling_is_the_best_order_over_several_tables():
    generator = np.random.default_rng(7)
    tables = [scale * generator.normal(size=64) for scale in (1, 10, 0.1)]
    orders = np.array(list(permutations(range(6))))
    mean = np.mean([shares(values, orders) for values in tables], axis=0)
    best, order = ceiling(tables)
    assert best == pytest.approx(mean.max())
    assert np.mean([shares(values, order[None])[0] for values in tables]) == pytest.approx(best)
    flat = np.zeros(64)
    assert ceiling([*tables, flat])[0] == pytest.approx(best) and np.isnan(ceiling([flat])[0])


def test_words_without_a_score_come_last_and_ties_keep_reading_order():
    assert by_score(np.array([np.nan, 1, 3, 1, -2])).tolist() == [2, 1, 3, 4, 0]


def test_one_word_has_no_order_to_judge():
    assert np.isnan(shares(np.array([0.0, 1.0]), np.array([[0]]))).all()


def test_orders_are_all_or_random():
    assert len(some_orders(4, 24, 0)) == 24 and len({tuple(order) for order in some_orders(4, 24, 0)}) == 24
    few = some_orders(5, 24, 0)
    assert few.shape == (24, 5) and (np.sort(few) == np.arange(5)).all()
    assert (few == some_orders(5, 24, 0)).all() and (few != some_orders(5, 24, 1)).any()
