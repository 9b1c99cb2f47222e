"""Differences with their floor, and tests over texts, against other ways of computing them."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.tiny import tiny_loaded
from xai_utils.errors import UserError
from xai_utils.evaluation.statistics import (
    certified,
    corrected,
    differences,
    interval,
    normalised_entropy,
    paired_test,
    real,
)
from xai_utils.study import explainer
from xai_utils.study.config import Study
from xai_utils.study.explainer import Explainer
from xai_utils.text.entry import TextEntry

WORDS = ("Water", "boils", ".")
finite = st.floats(-100, 100).map(lambda value: round(value, 3))
samples = st.lists(finite, min_size=2, max_size=12)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Scores of a tiny model, of itself under another label, and of another random model, at two baselines."""
    models = [
        tiny_loaded("llama", label="base"),
        tiny_loaded("llama", label="itself", role="control"),
        tiny_loaded("llama", seed=1, label="other", role="adapted"),
    ]
    study = Study(
        name="tiny",
        models=tuple(model.entry for model in models),
        texts=(
            TextEntry(id="capital", text="The capital of France is", answer=" Paris."),
            TextEntry(id="planets", text="Сколько планет в Солнечной системе?", answer=" Восемь."),
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(explainer, "load", lambda entry: next(m for m in models if m.label == entry.label))
        book = Explainer(study)
        parts = [book.tables(["integrated_gradients"], baseline=name) for name in ("mean", "eos")]
    return tuple(pd.concat([part[name] for part in parts]) for name in ("word_scores", "certificates"))


def test_a_model_compared_with_itself_does_not_differ(scores):
    found = differences(*scores, "base", "itself", "mean")
    assert len(found) == 5 + 6
    assert (found["difference"] == 0).all()
    assert not found["beyond_floor"].any() and not real(found).any()


def test_another_random_model_differs_in_many_words(scores):
    words, proofs = scores
    assert proofs["converged"].all()
    found = differences(words, proofs, "base", "other", "mean")
    assert found["beyond_floor"].mean() > 0.9
    assert real(found).sum() >= 3
    one = found.iloc[0]
    pick = words.query("text == @one.text and word == @one.word and baseline == 'mean'").set_index("model")
    assert one["difference"] == pick.loc["other", "score"] - pick.loc["base", "score"]
    assert one["floor"] == pytest.approx(1.96 * math.hypot(*pick.loc[["other", "base"], "error"]))


def test_a_difference_keeps_its_sign_over_baselines_or_does_not_count(scores):
    words, proofs = scores
    found = differences(words, proofs, "base", "other", "mean").set_index(["text", "start"])
    wide = words[words["is_word"]].pivot_table(index=["text", "start"], columns=["baseline", "model"], values="score")
    same = np.sign(wide["mean"]["other"] - wide["mean"]["base"]) == np.sign(wide["eos"]["other"] - wide["eos"]["base"])
    assert found["sign_stable"].astype(bool).to_dict() == same.to_dict()
    assert 0 < same.sum() < len(same)  # both kinds are there
    assert (real(found) == (found["beyond_floor"] & same)).all()


def table(method="m", baseline="mean", error=0.1, model="a", values=(1.0, 2.0, -1.0)):
    common = {"study": "s", "text": "t", "model": model, "role": "base", "target": "logprob", "target_text": " x."}
    setting = {"method": method, "baseline": baseline, "sink": "kept", "unit": "nats", "additive": True}
    starts = (0, 6, 11)
    return pd.DataFrame(
        [
            common
            | setting
            | {"word": word, "start": start, "end": start + len(word), "is_word": True, "pieces": 1}
            | {"score": value, "error": error}
            for word, start, value in zip(WORDS, starts, values, strict=True)
        ]
    )


def proof(converged=True, **keys):
    row = {"text": "t", "model": "a", "target": "logprob", "method": "m", "baseline": "mean", "sink": "kept"}
    return row | keys | {"converged": converged}


def test_scores_without_a_converged_certificate_are_left_out():
    words = pd.concat([table(), table(model="b"), table(method="plain")])
    proofs = pd.DataFrame([proof(), proof(False, model="b"), proof(False, model="b")])
    left = certified(words, proofs)
    assert left[["model", "method"]].drop_duplicates().to_numpy().tolist() == [["a", "m"], ["a", "plain"]]
    as_read_back = proofs.assign(converged=proofs["converged"].astype(object))
    pd.testing.assert_frame_equal(certified(words, as_read_back), left)


def test_a_sampled_score_counts_beyond_two_standard_errors():
    words = pd.concat([table(values=(1.0, 1.0, 1.0)), table(model="b", values=(1.2, 1.3, 1.0))])
    sampled = differences(words, pd.DataFrame(), "a", "b", "mean")
    assert sampled["floor"].to_numpy() == pytest.approx(1.96 * math.hypot(0.1, 0.1))
    assert sampled["beyond_floor"].tolist() == [False, True, False]
    proven = differences(words, pd.DataFrame([proof(), proof(model="b")]), "a", "b", "mean")
    assert proven["floor"].equals(sampled["floor"])  # the quadrature error of a word is an estimate as well


def test_one_certified_baseline_is_not_enough_for_a_real_difference():
    words = pd.concat([table(), table(model="b", values=(5.0, 5.0, 5.0))])
    found = differences(words, pd.DataFrame([proof()]), "a", "b", "mean")
    assert found["beyond_floor"].all() and found["sign_stable"].isna().all() and not real(found).any()


def test_a_panel_s_difference_counts_where_the_ranges_do_not_meet():
    def ranged(model, values, low, high):
        return table("panel_shapley", "panel", 0.0, model, values).assign(low=low, high=high)

    base = ranged("a", (1.0, 1.0, 1.0), [0.5, 0.5, 0.5], [2.0, 2.0, 2.0])
    other = ranged("b", (3.0, 3.0, -1.0), [2.5, 1.5, -2.0], [4.0, 4.0, 0.4])
    found = differences(pd.concat([base, other]), pd.DataFrame(), "a", "b", "mean")
    assert real(found).tolist() == [True, False, True]
    assert found["difference_low"].tolist() == pytest.approx([0.5, -0.5, -4.0])
    assert found["difference_high"].tolist() == pytest.approx([3.5, 3.5, -0.1])


def test_the_study_s_baseline_is_not_replaced_by_another_that_converged():
    words = pd.concat([table(baseline=name, model=model) for name in ("mean", "eos") for model in "ab"])
    proofs = pd.DataFrame([proof(False, model="b"), proof(baseline="eos"), proof(baseline="eos", model="b")])
    assert differences(words, proofs, "a", "b", "mean").empty
    assert len(differences(words, proofs, "a", "b", "eos")) == 3


def test_a_method_with_one_baseline_of_its_own_is_compared_at_that():
    words = pd.concat([table(baseline="zero"), table(baseline="zero", model="b")])
    assert set(differences(words, pd.DataFrame(), "a", "b", "mean")["baseline"]) == {"zero"}


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no scores of model 'b'; expected one of a"):
        differences(table(), pd.DataFrame(), "a", "b", "mean")


def test_the_entropy_of_known_shares():
    assert normalised_entropy([2.0, -2.0, 2.0, 2.0]) == 1.0 and normalised_entropy([0.0, 0.0, -7.0, 0.0]) == 0.0
    shares = np.array([1, 2, 3]) / 6
    assert normalised_entropy([1.0, 2.0, 3.0]) == pytest.approx(-(shares * np.log(shares)).sum() / np.log(3))
    assert math.isnan(normalised_entropy([1.0])) and math.isnan(normalised_entropy([0.0, 0.0]))


@given(samples.filter(lambda values: any(values)), st.floats(0.01, 100))
def test_the_entropy_does_not_depend_on_scale_sign_or_order(values, factor):
    values = np.array(values)
    assert normalised_entropy(-factor * values[::-1]) == pytest.approx(normalised_entropy(values), abs=1e-9)
    assert -1e-9 <= normalised_entropy(values) <= 1 + 1e-9


def test_paired_test_is_scipy_s():
    rng = np.random.default_rng(3)
    base = rng.normal(size=20)
    other = base + 0.4 + rng.normal(size=20) / 3
    found = paired_test(base, other, seed=5)
    change = other - base
    assert found["n"] == 20 and found["difference"] == pytest.approx(change.mean())
    assert found["p"] == pytest.approx(stats.ttest_rel(other, base).pvalue, abs=0.01)
    assert found["dz"] * math.sqrt(20) == pytest.approx(stats.ttest_rel(other, base).statistic)
    again = stats.bootstrap((change,), np.mean, rng=np.random.default_rng(5)).confidence_interval
    assert (found["low"], found["high"]) == (again.low, again.high)
    assert found["low"] < 0.4 < found["high"]


def test_paired_test_is_the_share_of_all_flips():
    change = np.array([0.3, -0.1, 0.5, 0.2, 0.0, 0.4])
    flips = np.array(list(itertools.product([1, -1], repeat=6))) @ change
    share = (np.abs(flips) >= change.sum() - 1e-12).mean()
    assert paired_test(np.zeros(6), change)["p"] == pytest.approx(share)


def test_one_outlier_does_not_turn_a_finding_round():
    change = np.array([0.02] * 29 + [-5.0])  # 29 of 30 rose, the mean fell
    found = paired_test(np.zeros(30), change)
    assert found["difference"] < 0 and found["p"] > 0.05


def test_what_lies_within_the_resolution_is_no_change():
    found = paired_test(np.zeros(6), [0.004, -0.003, 0.002, 0.3, 0.2, 0.4], resolution=0.01)
    assert found["changed"] == 3 and found["difference"] == pytest.approx(0.9 / 6)
    assert found["p"] == paired_test(np.zeros(3), [0.3, 0.2, 0.4])["p"] == 0.25


def test_paired_test_drops_texts_that_one_model_lacks():
    assert paired_test([1, np.nan, 3, 4], [2, 2, np.nan, 6]) == paired_test([1, 4], [2, 6])


def test_paired_test_without_a_change_and_with_one_and_the_same():
    none = paired_test([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (none["p"], none["dz"], none["low"], none["high"]) == (1.0, 0.0, 0.0, 0.0)
    same = paired_test(np.zeros(8), np.ones(8))
    assert same["p"] == 2 / 2**8 == stats.wilcoxon(np.ones(8)).pvalue
    assert (same["dz"], same["low"], same["high"]) == (math.inf, 1.0, 1.0)
    single = paired_test([1.0], [2.0])
    assert single["n"] == 1 and single["p"] == 1.0 and math.isnan(single["low"])
    assert paired_test([], [])["n"] == 0


@given(samples)
@settings(max_examples=20, deadline=None)
def test_an_interval_is_an_interval(values):
    low, high = interval(values)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_intervals_cover_what_they_promise():
    rng = np.random.default_rng(0)
    hits = sum(low <= 0 <= high for low, high in (interval(rng.normal(size=30)) for _ in range(60)))
    assert hits >= 51  # 95 % of 60 are 57; fewer than 51 has a chance below 1 %


def test_many_questions_need_more_proof():
    p = [0.02, 0.03, 0.04, 0.05, 0.9]  # three of them would pass alone
    found = corrected(pd.DataFrame({"p": p, "changed": 8}))
    by_hand = [min(p[j] * 5 / (j + 1) for j in range(i, 5)) for i in range(5)]  # Benjamini and Hochberg 1995
    assert found["p_adjusted"].tolist() == pytest.approx(by_hand)
    assert found["verdict"].tolist() == ["no difference found"] * 5
    two = corrected(pd.DataFrame({"p": [0.01, 0.9], "changed": 8}))
    assert two["verdict"].tolist() == ["difference", "no difference found"]
    assert corrected(pd.DataFrame({"p": [], "changed": []})).empty


def test_what_no_outcome_could_pass_is_undecided():
    rng = np.random.default_rng(0)
    for changed in range(1, 9):  # the clearest outcome there is: all that changed went one way
        moved = [*rng.uniform(1, 2, changed), *np.zeros(8 - changed)]
        test = paired_test(np.zeros(8), moved)
        (verdict,) = corrected(pd.DataFrame([test]))["verdict"]
        assert test["changed"] == changed
        assert verdict == ("difference" if changed >= 6 else "cannot be decided")
    found = corrected(pd.DataFrame({"p": [0.04, 0.125], "changed": [8, 4]}))
    assert found["p_adjusted"].tolist()[0] == 0.04  # a question that cannot be answered is no question asked
    assert found["verdict"].tolist() == ["difference", "cannot be decided"]
