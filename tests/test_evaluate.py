"""Agreement and leaderboard against scipy, sets and sums over small tables."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xai_utils.evaluation.agreement import agreement, agreement_matrix, leaderboard, one_setting, top_overlap

METHODS = ["integrated_gradients", "fixed_steps", "ablation", "flat"]
BASELINES = {"integrated_gradients": ["mean", "eos"], "fixed_steps": ["zero"], "ablation": ["mean"], "flat": [""]}
CASE = {"study": "s", "role": "base", "target": "logprob", "target_text": " a"}


def word_scores(words=7, seed=0):
    rng, rows = np.random.default_rng(seed), []
    for text in ("t", "u"):
        for model in ("base", "twin"):
            for method in METHODS:
                for baseline in BASELINES[method]:
                    keys = CASE | {"text": text, "model": model, "method": method, "baseline": baseline, "sink": "kept"}
                    special = keys | {"word": "<s>", "start": None, "end": None, "is_word": False, "score": np.nan}
                    rows.append(special)
                    for word in range(words):
                        score = 1.0 if method == "flat" else rng.normal()
                        place = {"word": f"w{word}", "start": 3 * word, "end": 3 * word + 2, "is_word": True}
                        rows.append(keys | place | {"score": score})
    return pd.DataFrame(rows).astype({"start": "Int64", "end": "Int64"})


def certificates(words, failing=("fixed_steps",)):
    keys = ["text", "model", "target", "method", "baseline", "sink"]
    proven = words[words["method"].isin(["integrated_gradients", "fixed_steps"])]
    found = proven[keys].drop_duplicates()
    return found.assign(converged=~found["method"].isin(failing))


def scores(table, text, model, method, baseline):
    rows = table[(table.text == text) & (table.model == model) & (table.method == method) & table.is_word]
    return rows[rows.baseline == baseline]["score"].to_numpy()


def test_agreement_is_scipy_s_and_a_set_s():
    table = word_scores()
    found = agreement(table, certificates(table)).set_index(["text", "model", "method_a", "method_b"])
    pairs = {index[2:] for index in found.index}
    assert pairs == {("integrated_gradients", "ablation"), ("integrated_gradients", "flat"), ("ablation", "flat")}
    for text in ("t", "u"):
        for model in ("base", "twin"):
            a = scores(table, text, model, "integrated_gradients", "mean")
            b = scores(table, text, model, "ablation", "mean")
            row = found.loc[(text, model, "integrated_gradients", "ablation")]
            assert row["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)
            assert row["top_k_overlap"] == len(set(np.argsort(a)[-3:]) & set(np.argsort(b)[-3:])) / 3
    assert found.xs("flat", level="method_b")["spearman"].isna().all()


def test_what_did_not_converge_stays_out():
    table = word_scores()
    proofs = certificates(table)
    assert "fixed_steps" not in set(agreement(table, proofs)[["method_a", "method_b"]].to_numpy().ravel())
    none = agreement(table, certificates(table, ("fixed_steps", "integrated_gradients")))
    assert set(map(tuple, none[["method_a", "method_b"]].to_numpy())) == {("ablation", "flat")}


def test_one_failed_case_leaves_the_others():
    table = word_scores()
    proofs = certificates(table, ())
    proofs.loc[(proofs.text == "t") & (proofs.model == "base") & (proofs.baseline == "mean"), "converged"] = False
    found = agreement(table, proofs)
    with_ig = found[found.method_a == "integrated_gradients"][["text", "model"]].drop_duplicates()
    assert sorted(map(tuple, with_ig.to_numpy())) == [("t", "twin"), ("u", "base"), ("u", "twin")]


def test_few_words():
    short = word_scores(words=2)
    found = agreement(short, certificates(short))
    assert found["spearman"].isna().all() and (found["k"] == 1).all() and (found["words"] == 2).all()
    five = word_scores(words=5)
    assert (agreement(five, certificates(five))["k"] == 2).all()


def test_a_word_that_one_method_does_not_score_is_left_out():
    table = word_scores()
    gap = (table.method == "ablation") & (table.word == "w3")
    table.loc[gap, "score"] = np.nan
    found = agreement(table, certificates(table)).set_index(["text", "model", "method_a", "method_b"])
    row = found.loc[("u", "twin", "integrated_gradients", "ablation")]
    keep = np.arange(7) != 3
    a = scores(table, "u", "twin", "integrated_gradients", "mean")[keep]
    b = scores(table, "u", "twin", "ablation", "mean")[keep]
    assert row["words"] == 6 and row["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)


def test_each_method_has_one_setting():
    found = one_setting(word_scores(), "eos")[["method", "baseline"]].drop_duplicates()
    assert dict(found.to_numpy()) == {
        "integrated_gradients": "eos",
        "fixed_steps": "zero",
        "ablation": "mean",
        "flat": "",
    }


def test_top_overlap_takes_ties_in_reading_order():
    assert top_overlap(pd.Series([1.0, 1, 1, 0]), pd.Series([5.0, 4, 0, 0]), 2) == 1


def test_the_matrix_holds_means_over_texts():
    table = word_scores()
    found = agreement_matrix(table, certificates(table))
    assert list(found.index.names) == ["model", "method"] and found.shape == (6, 6)
    pairs = [
        stats.spearmanr(
            scores(table, text, "base", "integrated_gradients", "mean"), scores(table, text, "twin", "ablation", "mean")
        ).statistic
        for text in ("t", "u")
    ]
    assert found.loc[("base", "integrated_gradients"), ("twin", "ablation")] == pytest.approx(np.mean(pairs))
    inside = agreement(table, certificates(table))
    same = inside[
        (inside.model == "base") & (inside.method_a == "integrated_gradients") & (inside.method_b == "ablation")
    ]
    within = found.loc[("base", "integrated_gradients"), ("base", "ablation")]
    assert within == pytest.approx(same["spearman"].mean())
    assert np.isnan(found.loc[("base", "flat"), ("base", "ablation")])


def test_no_rows_no_agreement():
    table = word_scores()
    alone = table[table.method == "ablation"]
    assert agreement(alone, pd.DataFrame()).empty
    assert "spearman" in agreement(alone, pd.DataFrame())


def faithful(shares, absences=("mean", "hidden")):
    """A table where `shares[method][case]` is the share under the first absence, which is its own, and 0.1 less under
    the other; beyond 0.5 it beats random orders."""
    rows = []
    for method, values in shares.items():
        for case, share in enumerate(values):
            place = {"text": f"t{case // 2}", "model": f"m{case % 2}", "method": method, "baseline": "mean", "sink": ""}
            for number, absence in enumerate(absences):
                value = share - 0.1 * number
                test = {"absence": absence, "own": number == 0, "share": value, "beats_random": value > 0.5}
                rows.append(CASE | place | test)
    return pd.DataFrame(rows).astype({"own": "boolean", "beats_random": "boolean"})


def test_leaderboard():
    shares = {"bad": [0.1, -0.5, -1, 0.3], "good": [0.9, 0.7, 0.8, 0.55], "tie": [0.9, 0.1, 0.1, 0.1]}
    found = leaderboard(faithful(shares))
    assert found["method"].tolist() == ["good", "tie", "bad"]
    good = found.iloc[0]
    assert (good["texts"], good["tests"], good["beats_random"]) == (2, 8, 7)
    assert good["share_own"] == pytest.approx(0.7375) == good["mean"]
    assert good["share_other"] == pytest.approx(0.6375) == good["hidden"]
    assert good["share"] == pytest.approx(0.6875) and good["low"] <= 0.6375 <= good["high"]


def test_a_method_without_an_absence_of_its_own_has_no_own_share():
    table = faithful({"a": [0.4, 0.6]}).assign(own=False)
    found = leaderboard(table).iloc[0]
    assert np.isnan(found["share_own"]) and found["share_other"] == pytest.approx(0.45)


def test_the_ceiling_belongs_to_no_method():
    table = faithful({"a": [0.4, 0.6], "ceiling": [0.8, 0.9]})
    table.loc[table["method"] == "ceiling", "own"] = pd.NA
    assert leaderboard(table)["method"].tolist() == ["ceiling", "a"]


def test_the_interval_is_over_texts_not_cases():
    wide = leaderboard(faithful({"a": [0.1, 0.3] * 8}))
    assert wide["low"].item() == wide["high"].item() == pytest.approx(0.1)


def test_leaderboard_leaves_out_what_has_no_curve():
    table = faithful({"a": [0.1, 0.2, 0.3]})
    table.loc[table["text"] == "t1", "share"] = np.nan
    assert leaderboard(table)["tests"].item() == 4
    assert leaderboard(table[table["text"] == "t1"]).empty
