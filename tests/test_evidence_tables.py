"""The tables of the long studies, on tables made by hand."""

import pandas as pd
import pytest
from scipy import stats

from xai_utils.study import evidence_tables as tables_of
from xai_utils.study.tables import IG


def words_of(values, text="t", model="a", method=IG, baseline="mean", sink="kept", marks=None, pieces=None):
    shown = marks or [f"w{index}" for index in range(len(values))]
    keys = {"study": "s", "text": text, "model": model, "role": "base", "target": "logprob", "target_text": " x."}
    keys |= {"method": method, "baseline": baseline, "sink": sink, "unit": "nats", "additive": True, "is_word": True}
    return [
        keys
        | {"word": word, "start": 3 * place, "end": 3 * place + 1, "pieces": (pieces or [1] * len(values))[place]}
        | {"score": value, "error": 0.01}
        for place, (word, value) in enumerate(zip(shown, values, strict=True))
    ]


def proof(text="t", model="a", baseline="mean", sink="kept", converged=True, evaluations=100, **more):
    keys = {"text": text, "model": model, "target": "logprob", "target_text": " x.", "method": IG}
    keys |= {"baseline": baseline, "sink": sink, "tolerance": 0.01, "budget": 1000, "f_input": -3.0}
    return keys | {"converged": converged, "evaluations": evaluations} | more


def test_what_a_baseline_costs():
    proofs = pd.DataFrame(
        [
            proof("t", evaluations=100),
            proof("u", evaluations=400),
            proof("v", evaluations=1000, converged=False),
            proof("t", baseline="eos", evaluations=50, budget=300),
            proof("u", baseline="eos", evaluations=300, budget=300, converged=False),
        ]
    )
    scores = words_of([1.0, 2.0, 3.0, 4.0]) + words_of([1.0, 3.0, 2.0, 4.0], baseline="eos")
    scores += words_of([1.0, 2.0, 3.0], "u") + words_of([3.0, 2.0, 1.0], "u", baseline="eos")
    table = tables_of.baseline_table(pd.DataFrame(scores), proofs, "mean", limit=300).set_index("baseline")
    assert table.loc["mean", "certified"] == pytest.approx(2 / 3)
    assert table.loc["mean", "certified_within"] == pytest.approx(1 / 3)
    assert table.loc["mean", ["evaluations_median", "evaluations_max", "rank_mean"]].tolist() == [400, 1000, 1]
    assert table.loc["eos", ["certified", "certified_within", "rank_cases"]].tolist() == [0.5, 0.5, 1]
    assert table.loc["eos", "rank_mean"] == pytest.approx(stats.spearmanr([1, 2, 3, 4], [1, 3, 2, 4]).statistic)
