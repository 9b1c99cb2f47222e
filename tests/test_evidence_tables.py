"""The tables of the long studies, on tables made by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xai_utils.evaluation.statistics import paired_test
from xai_utils.study import corpus
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


def made_tables(values, base_values):
    """Tables of several texts under base `a` and twin `b`, with marks, ablation and a run that moves the sink."""
    scores, proofs, tokens = [], [], []
    for index, (own, start) in enumerate(zip(values, base_values, strict=True)):
        text, marks = f"t{index}", [*(f"w{i}" for i in range(len(own) - 2)), ",", "?"]
        for model, row in (("a", start), ("b", own)):
            scores += words_of(row, text, model, marks=marks, pieces=[1, 2, 3, 1, 1])
            scores += words_of(row[::-1], text, model, "ablation", marks=marks, pieces=[1, 2, 3, 1, 1])
            proofs += [proof(text, model), proof(text, model, sink="moved")]
            keys = {
                "text": text,
                "model": model,
                "target": "logprob",
                "method": IG,
                "baseline": "mean",
                "sink": "moved",
            }
            tokens += [keys | {"position": place, "score": value} for place, value in enumerate([-4.0, *row])]
    return {
        name: pd.DataFrame(rows)
        for name, rows in (("word_scores", scores), ("certificates", proofs), ("attributions", tokens))
    }


EVEN = [[1.0, 1.1, 0.9, 1.0, -1.0 - index / 50] for index in range(8)]
PEAKED = [[5.0, 0.3, 0.2, 0.1, -0.1 - index / 50] for index in range(8)]


def test_measures_against_what_a_hand_computes():
    tables = made_tables(EVEN, PEAKED)
    found = corpus.measures(tables, "mean").set_index(["measure", "text", "model"])["value"]
    row = np.array(PEAKED[2])
    assert found["question_mark", "t2", "a"] == pytest.approx(row[4] / np.abs(row).sum())
    assert found["other_marks", "t2", "a"] == pytest.approx(row[3] / np.abs(row).sum())
    assert found["question_mark_ablation", "t2", "a"] == pytest.approx(row[0] / np.abs(row).sum())
    assert found["negative", "t2", "a"] == pytest.approx(-row[4] / np.abs(row).sum())
    assert found["first_position", "t2", "a"] == pytest.approx(-4 / ((4 + np.abs(row).sum()) / 6))
    assert found["entropy", "t2", "a"] == pytest.approx(stats.entropy(np.abs(row) / np.abs(row).sum()) / math.log(5))
    assert found["answer", "t2", "a"] == pytest.approx(-3 / len(" x."))
    assert found["pieces", "t2", "a"] == pytest.approx(8 / 5)
    assert found["agreement_ablation", "t2", "a"] == pytest.approx(stats.spearmanr(row, row[::-1]).statistic)
    apart = np.abs(stats.rankdata(row) - stats.rankdata(row[::-1]))
    assert found["cut", "t2", "a"] == pytest.approx(stats.spearmanr([1, 2, 3, 1, 1], apart).statistic)


def test_what_did_not_converge_is_not_measured():
    tables = made_tables(EVEN, PEAKED)
    failed = (tables["certificates"]["text"] == "t1") & (tables["certificates"]["model"] == "a")
    tables["certificates"].loc[failed, "converged"] = False
    found = corpus.measures(tables, "mean")
    left = found[(found["text"] == "t1") & (found["model"] == "a")]["measure"]
    assert set(left) == {"question_mark_ablation", "other_marks_ablation", "answer"}


def test_every_question_gets_its_verdict_and_swapping_the_models_turns_it():
    pairs = {f"t{index}": f"t{index}" for index in range(8)}
    found = corpus.tests(corpus.measures(made_tables(EVEN, PEAKED), "mean"), pairs, "a", "mean")
    verdicts = found.set_index(["question", "model", "paired"])["verdict"]
    assert verdicts["entropy", "b", True] == verdicts["gini", "b", True] == "holds"
    assert verdicts["question_mark", "a", False] == verdicts["question_mark", "b", False] == "holds"
    assert verdicts["question_mark_ablation", "a", False] == "the opposite holds"
    assert verdicts["first_position", "a", False] == "holds"
    assert verdicts["pieces", "b", True] == "no difference found"
    assert (found["p_adjusted"] >= found["p"] - 1e-12).all()
    turned = corpus.tests(corpus.measures(made_tables(PEAKED, EVEN), "mean"), pairs, "a", "mean")
    assert turned.set_index(["question", "model", "paired"])["verdict"]["entropy", "b", True] == "the opposite holds"
    same = corpus.tests(corpus.measures(made_tables(EVEN, EVEN), "mean"), pairs, "a", "mean")
    assert set(same[same["paired"]]["verdict"]) == {"no difference found"}


def test_the_two_texts_of_a_pair_are_one_observation():
    measured = corpus.measures(made_tables(EVEN, PEAKED), "mean")
    pairs = {f"t{index}": f"p{index // 2}" for index in range(8)}
    row = corpus.tests(measured, pairs, "a", "mean").set_index(["question", "paired"]).loc[("entropy", True)]
    wide = measured[measured["measure"] == "entropy"].pivot_table(index="text", columns="model", values="value")
    by_hand = wide.groupby(wide.index.map(pairs)).mean()
    assert row["n"] == 4
    assert row["p"] == paired_test(by_hand["a"], by_hand["b"])["p"]
    assert row["difference"] == pytest.approx((wide["b"] - wide["a"]).mean())


def test_differences_are_counted_over_texts_with_two_baselines():
    tables = made_tables(EVEN, PEAKED)
    shown = [
        row
        for model, values in (("a", PEAKED[0]), ("b", EVEN[0]))
        for row in words_of(values, "t0", model, baseline="eos", marks=["w0", "w1", "w2", ",", "?"])
    ]
    tables["word_scores"] = pd.concat([tables["word_scores"], pd.DataFrame(shown)])
    found = corpus.changes(tables, "a", ("mean", "eos")).set_index("model")
    assert found.loc["b", ["texts", "words", "real"]].tolist() == [1, 5, 5]
    assert found.loc["b", "mean_size"] == pytest.approx(np.abs(np.subtract(EVEN[0], PEAKED[0])).mean())


def test_a_model_without_certified_scores_counts_no_words():
    tables = made_tables(EVEN, PEAKED)
    proofs = tables["certificates"]
    tables["certificates"] = proofs.assign(converged=proofs["converged"] & (proofs["model"] != "b"))
    found = corpus.changes(tables, "a", ("mean",)).set_index("model")
    assert found.loc["b", list(corpus.COUNTS)].tolist() == [0, 0, 0, 0]
    once = corpus.changes(made_tables(EVEN, PEAKED), "a", ("mean",)).set_index("model")
    assert once.loc["b", list(corpus.COUNTS)].tolist() == [0, 0, 0, 0]  # no second baseline, so no stable sign


def test_controls_and_other_baselines_are_corrected_apart():
    measured = corpus.measures(made_tables(EVEN, PEAKED), "mean")
    pairs = {f"t{index}": f"t{index}" for index in range(8)}
    alone = corpus.tests(measured, pairs, "a", "mean").set_index(["question", "model", "paired"])["p_adjusted"]
    control = measured[measured["model"] == "b"].assign(model="c")
    both = corpus.tests(pd.concat([measured, control]), pairs, "a", "mean", ["c"])
    again = both.set_index(["question", "model", "paired"])["p_adjusted"]
    pd.testing.assert_series_equal(again.loc[alone.index], alone)


def test_a_small_effect_of_the_claimed_sign_is_not_a_large_one():
    measured = corpus.measures(made_tables(EVEN, PEAKED), "mean")
    first = measured["measure"] == "first_position"
    small = measured.assign(value=measured["value"].where(~first, -0.1 - measured.index / 1e4))
    pairs = {f"t{index}": f"t{index}" for index in range(8)}
    found = corpus.tests(small, pairs, "a", "mean").set_index(["question", "model", "paired"])["verdict"]
    assert found["first_position", "a", False] == "does not hold"
