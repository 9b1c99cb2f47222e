"""Figures that lay models and methods side by side, read back from what they drew."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from xai_utils.plots import pairs


def test_a_column_by_text_has_a_mark_a_model_where_its_values_are():
    rows = [("a", "base", 2.0), ("b", "base", 4.0), ("a", "twin", 1.0)]
    table = pd.DataFrame(rows, columns=["text", "model", "tokens_per_word"])
    axes = pairs.by_text(table, "tokens_per_word", "A title", "tokens a word").axes[0]
    marks = {line.get_label(): line.get_xdata().tolist() for line in axes.get_lines() if line.get_label()[0] != "_"}
    assert marks["base"] == [2.0, 4.0] and marks["twin"][0] == 1.0 and np.isnan(marks["twin"][1])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_xlabel() == "tokens a word"


def correlations(models=("base", "twin")):
    """Two families of methods, alike inside and opposed outside, in alphabetical order by turns."""
    methods = ["ablation", "attention", "lime", "rollout"]
    family = np.array([1, -1, 1, -1])
    square = 0.9 * np.outer(family, family) + 0.1 * np.eye(4)
    index = pd.MultiIndex.from_product([models, methods], names=["model", "method"])
    return pd.DataFrame(np.kron(np.ones((len(models), len(models))), square), index=index, columns=index)


def test_agreement_is_one_triangle_a_model_with_neighbours_that_agree():
    fig = pairs.agreement(correlations(), "Rank correlation")
    first, second = fig.axes[:2]
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["base", "twin"]
    values = first.collections[0].get_array()
    assert values.count() == 4 * 3 / 2  # every pair once, no diagonal
    names = [label.get_text() for label in first.get_yticklabels()]
    columns = [label.get_text() for label in first.get_xticklabels()]
    order = [columns[0], *names]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {
        frozenset({"ablation", "LIME"}),
        frozenset({"attention", "rollout"}),
    }
    assert values[1, 0] == pytest.approx(0.9) and values[2, 1] == pytest.approx(-0.9)


def test_agreement_of_one_model_and_of_two_methods_is_drawn():
    matrix = correlations(("base",))
    fig = pairs.agreement(matrix.iloc[:2, :2])
    assert fig.axes[0].collections[0].get_array().count() == 1


def test_differences_that_do_not_count_are_hatched():
    common = {"text": "t", "unit": "nats", "word": "w", "beyond_floor": True}
    rows = [
        common | {"start": n, "difference": d, "sign_stable": s} for n, (d, s) in enumerate([(2, True), (-1, False)])
    ]
    fig = pairs.differences(pd.DataFrame(rows), "Differences")
    counted, other = fig.axes[0].patches[:2]
    assert not counted.get_hatch() and other.get_hatch()
    assert to_hex(counted.get_facecolor()) == to_hex(pairs.diverging()(1.0))
