"""A model that copies one token: every method must find that token, and no other."""

import numpy as np
import pandas as pd
import pytest

from tests.planted import planted_model
from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.methods import METHODS
from xai_utils.attribution.tables import word_rows
from xai_utils.attribution.target import next_token
from xai_utils.evaluation.faithfulness import faithfulness
from xai_utils.text.cases import units

TEXT = "The capital of France is"
FIRST, MIDDLE = 1, 3  # words of one token
# rollout counts the residual stream as half of all attention, so that late words win by construction
TRIALS = [(name, place) for name in METHODS for place in (FIRST, MIDDLE) if (name, place) != ("rollout", MIDDLE)]


def planted(place):
    case, _ = tiny_case(tiny_loaded(), TEXT)
    unit = units(case)[place]
    assert len(unit.tokens) == 1
    model = planted_model(case.ids[unit.tokens[0]])
    return model, *tiny_case(model, TEXT, answer=None)


@pytest.mark.parametrize("place", [FIRST, MIDDLE])
def test_the_model_copies_the_planted_token(place):
    model, case, target = planted(place)
    assert next_token(model, case) == case.ids[place] == target.ids[0]
    without, _ = tiny_case(model, "ran after")
    assert next_token(model, without) != case.ids[place]


@pytest.mark.parametrize(("name", "place"), TRIALS)
def test_every_method_finds_it(name, place):
    model, case, target = planted(place)
    found = METHODS[name].function(model, case, target, **METHODS[name].fixed)
    words = [unit.is_word for unit in units(case)]
    scores = found.word_scores[words]
    order = np.argsort(-scores)
    assert order[0] == place - 1
    assert scores[order[0]] > 1.2 * abs(scores[order[1]])


def test_faithfulness_knows_it_too():
    model, case, target = planted(MIDDLE)
    names = ("integrated_gradients", "ablation", "panel_shapley")
    rows = [row for name in names for row in word_rows(METHODS[name].function(model, case, target))]
    table = faithfulness(model, case, target, pd.DataFrame(rows))
    assert (table[table["method"].isin(names)].groupby("method")["share"].mean() > 0.8).all()
