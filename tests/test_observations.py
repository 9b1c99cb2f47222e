"""Every branch of what the tables may say, forced both ways, with its numbers computed another way."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from synthetic import measured, refreshed

from report import limits, observed_methods
from report import observations as say
from xai_utils.attribution.methods import method_name
from xai_utils.study.tables import Measured

PAIR = ("base", "ru-ts")


def changed(found: Measured, name: str, change) -> Measured:
    """The same with one table changed and what follows from it computed again."""
    made = replace(found, tables={**found.tables, name: change(found.tables[name].copy())})
    return made if name in ("attributions", "leaderboard", "questions") else refreshed(made)


def set_where(column: str, value: object, **where: object):
    def change(table: pd.DataFrame) -> pd.DataFrame:
        rows = np.logical_and.reduce([table[name] == wanted for name, wanted in where.items()])
        table.loc[rows, column] = value
        return table

    return change


@pytest.fixture(scope="module")
def pair() -> Measured:
    return measured((*PAIR, "shuffled"))


@pytest.fixture(scope="module")
def single() -> Measured:
    return measured(("base",))


def test_largest_differences_are_those_of_the_scores(pair):
    scores = pair.table("word_scores")
    rows = scores[(scores["text"] == "planets") & (scores["method"] == "integrated_gradients") & scores["is_word"]]
    wide = rows.pivot(index="word", columns=["model", "baseline"], values="score")
    change = wide["ru-ts"] - wide["base"]
    floor = 1.96 * np.hypot(0.02, 0.02)
    sure = (np.sign(change["mean"]) == np.sign(change["eos"])) & (change.abs() > floor).all(axis=1)
    stable = change[sure]["mean"]
    best = stable.reindex(stable.abs().sort_values(ascending=False).index)[:3]
    said = str(say.largest_differences(pair))
    assert re.findall("“([^”]+)” \\(", said) == best.index.tolist()
    assert re.findall(r": (\S+) nats against", said) == [f"{value:+.2f}" for value in best]
    assert f"floor of {floor:.2g}" in said and "(mean and eos)" in said and "the largest at mean" in said
    low, high = change.loc[best.index[0]].min(), change.loc[best.index[0]].max()
    assert f"{low:+.2f} to {high:+.2f} over the baselines" in said


def test_no_word_differs_between_a_model_and_itself(pair):
    def twin(scores: pd.DataFrame) -> pd.DataFrame:
        own = scores[scores["model"] == "base"]
        return pd.concat([own, own.assign(model="ru-ts", role="adapted")], ignore_index=True)

    same = changed(measured(PAIR), "word_scores", twin)
    assert "no word differs between base and ru-ts" in str(say.largest_differences(same))
    assert "0 of 35 words differ" in str(say.real_differences(same))


def test_a_difference_within_the_floor_does_not_count():
    wide = changed(measured(PAIR), "word_scores", lambda scores: scores.assign(error=50.0))
    assert "no word differs" in str(say.largest_differences(wide))


def test_what_did_not_converge_is_not_compared_and_is_counted(pair):
    failed = changed(pair, "certificates", set_where("converged", False, text="planets", model="ru-ts"))
    assert "did not converge" in str(say.largest_differences(failed))
    assert "6 words are left out" in str(say.real_differences(failed))
    assert "left out" not in str(say.real_differences(pair))
    said = str(say.convergence(failed))
    assert said.startswith("**1 of 18 certificates") and "“planets” under ru-ts" in said
    assert limits.certificates(failed) == say.convergence(failed) and limits.certificates(pair) is None
    assert str(say.convergence(pair)).startswith("All 18 certificates")


def test_words_cut_alike_are_counted_apart(pair):
    assert "cut differently" not in str(say.real_differences(pair))
    table = pair.table("difference")
    recut = replace(
        pair,
        tables={**pair.tables, "difference": table.assign(pieces_base=np.where(table["text"] == "planets", 5, 2))},
    )
    rows = say.pair_rows(recut)
    apart = rows["text"] == "planets"
    said = str(say.real_differences(recut))
    counts = [int(say.real(rows[chosen]).sum()) for chosen in (apart, ~apart)]
    assert f": {counts[0]} of the 6 words in the 1 text that is cut differently" in said
    assert f"{counts[1]} of the {(~apart).sum()} words in the others" in said


def test_one_certified_baseline_is_no_instability(pair):
    failed = changed(pair, "certificates", set_where("converged", False, text="planets", model="base", baseline="eos"))
    rows = say.pair_rows(failed)
    single = int((rows["beyond_floor"] & (rows["text"] == "planets")).sum())
    assert f"{single} more are beyond the floor where only one baseline is certified" in str(
        say.real_differences(failed)
    )
    assert "only one baseline" not in str(say.real_differences(pair))
    assert "All 18 certificates of integrated gradients at the mean baseline" in str(say.convergence(failed))


def test_a_text_without_an_answer_is_not_compared(pair):
    asked = [entry.model_copy(update={"answer": None} if entry.id == "planets" else {}) for entry in pair.study.texts]
    open_ = replace(pair, study=pair.study.model_copy(update={"texts": tuple(asked)}))
    assert "“Сколько планет в Солнечной системе?” has no answer" in str(say.largest_differences(open_))
    assert "of 5 texts" in str(say.answers(open_))
    assert limits.unlikely_answers(open_).facts["parts"][0].facts["n"] == 5
    assert "in 5 of 6 it asks for an answer" in str(limits.given_answers(open_))


def test_scores_that_turn_with_the_baseline_are_counted(pair):
    scores = pair.table("word_scores").query("method == 'integrated_gradients' and is_word")
    wide = scores[scores["model"].isin(PAIR)].pivot(
        index=["text", "model", "start"], columns="baseline", values="score"
    )
    turned = int((wide["mean"] * wide["eos"] < 0).sum())
    assert f"for {turned} of {len(wide)} words" in str(say.turning_scores(pair)) and turned > 0
    one = changed(pair, "word_scores", lambda table: table[table["baseline"] != "eos"])
    assert say.turning_scores(one) is None


def test_methods_behind_an_order_by_position_are_counted(pair):
    board = pair.table("leaderboard")
    ranks = {"last_to_first": 0.5, "integrated_gradients": 0.4}
    made = board.assign(mean_rank=board["method"].map(ranks).fillna(2.0))
    said = str(observed_methods.outranked(replace(pair, tables={**pair.tables, "leaderboard": made})))
    methods = len(set(board["method"]) & set(pair.study.methods))
    assert f"{methods - 1} of {methods} methods under base with words put at mean" in said
    assert said.endswith("integrated gradients are among these in 0 of 2 lists.")
    first = board.assign(mean_rank=np.where(board["method"] == "last_to_first", 9.0, 1.0))
    none = observed_methods.outranked(replace(pair, tables={**pair.tables, "leaderboard": first}))
    assert f"0 of {methods} methods under ru-ts" in str(none)


def test_the_original_rule_both_ways(pair):
    assert "none of 18 converged" in str(say.original_setting(pair))
    good = changed(pair, "certificates", set_where("converged", True, method="fixed_steps", text="bird"))
    assert "3 of 18 converged" in str(say.original_setting(good))
    errors = pair.table("certificates").query("method == 'fixed_steps'")["relative_delta"]
    assert f"{errors.median():.0%}" in str(say.original_setting(pair))


def test_answers_count_the_texts_on_which_the_twin_is_better(pair):
    table = pair.table("certificates").query("method == 'integrated_gradients' and baseline == 'mean'")
    wide = table.pivot(index="text", columns="model", values="f_input")
    change = wide["ru-ts"] - wide["base"]
    said = str(say.answers(pair))
    assert f"in {(change > 0.01).sum()} of 6 texts and less likely in {(change < -0.01).sum()}" in said
    assert f"{change.median():+.2f} in the median, {change.min():+.2f} to {change.max():+.2f}" in said
    better = changed(pair, "certificates", set_where("f_input", 0.0, model="ru-ts"))
    assert "in 6 of 6 texts" in str(say.answers(better))
    same = changed(pair, "certificates", lambda table: table.assign(f_input=-3.0))
    assert "in 0 of 6 texts and less likely in 0" in str(say.answers(same))


def test_controls_stand_in_the_order_of_their_distance(pair):
    rows = pair.table("difference").query("method == 'integrated_gradients'")
    means = rows["difference"].abs().groupby(rows["other"]).mean()
    said = str(say.controls(pair))
    assert re.findall(r"(ru-ts|shuffled) (\d+\.\d+)", said) == [
        (label, f"{means[label]:.2f}") for label in means.sort_values(ascending=False).index
    ]
    near = changed(
        pair, "word_scores", lambda scores: scores.assign(score=scores["score"].where(scores["model"] != "ru-ts", 99.0))
    )
    assert str(say.controls(near)).index("ru-ts") < str(say.controls(near)).index("shuffled")
    assert say.controls(measured(PAIR)) is None
    assert limits.no_controls(measured(PAIR)) is not None and limits.no_controls(pair) is None


def test_questions_are_said_by_their_verdict(pair):
    none, rows = str(say.tested(pair)), pair.table("questions")
    assert "none finds a difference" in none and rows.iloc[0]["asked"] in none
    found = rows.assign(verdict="difference")
    every = say.tested(replace(pair, tables={**pair.tables, "questions": found}))
    assert "7 find a difference" in str(every) and "no difference found" not in str(every)
    assert f"{rows.iloc[0]['difference']:+.2g}" in str(every)
    few = say.tested(replace(pair, tables={**pair.tables, "questions": rows.assign(verdict="cannot be decided")}))
    assert "cannot be decided, for too few texts changed at all: " in str(few) and "no difference found" not in str(few)


def test_pieces_are_tokens_over_words(pair):
    table = pair.table("tokenization")
    part = table[table["text"].isin(["planets", "moons", "proverb"]) & (table["model"] == "base")]
    tokens = part["tokens"].sum() - part["special"].sum()
    assert f"{tokens / part['words'].sum():.2f} under base" in str(say.pieces(pair)).split("ru:")[1]


def test_rank_correlation_between_models(pair):
    rows = pair.table("difference").query("method == 'ablation' and other == 'ru-ts'")
    values = [spearmanr(part["score_base"], part["score_other"]).statistic for _, part in rows.groupby("text")]
    assert f"ablation {np.mean(values):.2f}" in str(say.between_models(pair))


def test_highest_words_are_the_highest_and_certified(pair):
    rows = pair.words("ablation").query("model == 'base' and text == 'planets'")
    top = rows.loc[rows["score"].idxmax(), "word"]
    assert f"“{top}” by ablation" in str(observed_methods.highest_words(pair))
    assert "fixed steps" not in str(observed_methods.highest_words(pair))


def test_most_and_least_alike_methods(pair):
    table = pair.table("agreement").query("model != 'shuffled'")
    means = table.groupby(["method_a", "method_b"])["spearman"].mean()
    said = str(observed_methods.closest_methods(pair))
    assert f"({means.max():.2f})" not in said and f"{means.max():.2f} on average" in said
    assert said.endswith(f"({means.min():.2f}).") and means.idxmin()[1].replace("_", " ") in said
    two = table.query("method_a == 'ablation'")
    one = observed_methods.closest_methods(replace(pair, tables={**pair.tables, "agreement": two}))
    assert str(one) == f"The ranks of ablation and sensitivity correlate by {two['spearman'].mean():.2f} on average."


def test_methods_against_random_orders(pair):
    tests = pair.table("faithfulness")
    first = tests[tests["deletion"] == pair.study.deletions[0]]
    means = first[first["model"] == "base"].query("baseline != 'eos'").groupby("method")["comprehensiveness"].mean()
    said = str(observed_methods.faithful(pair))
    assert f"under base in that of {method_name(means.idxmax())}, by {means.max():.2f} nats" in said
    none = tests.assign(comprehensiveness_beats_random=False)
    weak = str(observed_methods.unfaithful(replace(pair, tables={**pair.tables, "faithfulness": none})))
    assert weak.startswith("4 of 4 methods") and "ablation (0 of 12)" in weak
    every = tests.assign(comprehensiveness_beats_random=True)
    assert str(observed_methods.unfaithful(replace(pair, tables={**pair.tables, "faithfulness": every}))).startswith(
        "All 4"
    )


def test_heads_that_rest_on_the_first_position(pair):
    assert "4 of 4 heads under base" in str(observed_methods.sinks(pair))
    less = changed(pair, "attention_heads", set_where("sink", 0.1, model="base", head=1))
    assert "2 of 4 heads under base and 4 of 4 heads under ru-ts" in str(observed_methods.sinks(less))


def test_one_model_says_so_and_compares_nothing(single, pair):
    assert "one model, base" in str(say.one_model(single)) and say.one_model(pair) is None
    silent = (say.largest_differences, say.real_differences, say.tested, say.controls, say.answers, say.between_models)
    assert [observation(single) for observation in silent] == [None] * len(silent)


def test_nothing_is_said_without_tables(pair):
    empty = Measured(pair.study, {})
    every = say.ALL + observed_methods.ALL
    assert [observation(empty) for observation in every] == [None] * len(every)


def test_cut_texts_are_named(pair):
    assert limits.truncated(pair) is None
    cut = changed(pair, "tokenization", set_where("truncated", 7, text="bird", model="base"))
    assert str(limits.truncated(cut)) == "1 text was cut to 128 tokens: “bird” under base by 7 tokens."


def test_the_score_of_white_space_is_named(pair):
    assert limits.outside_words(pair) is None
    scores = pair.table("word_scores")
    space = scores[(scores["text"] == "bird") & (scores["model"] == "base")].head(1)
    space = space.assign(word=" ", is_word=False, score=-2.5943)
    found = replace(pair, tables={**pair.tables, "word_scores": pd.concat([scores, space], ignore_index=True)})
    assert str(limits.outside_words(found)).endswith("left out of the comparison: -2.59 nats on “bird” under base.")


def test_what_the_checkpoint_gained_is_read_from_its_own_table(pair):
    rows = [("trained", "ru", 0.4, 0.7), ("trained", "en", 1.0, 1.012), ("untrained", "ru", 0.4, 1.5)]
    columns = ["model", "language", "tokens_of_base", "bits_per_character_of_base"]
    table = pd.DataFrame(rows, columns=columns).assign(kind="all", label="ru-ts")
    found = replace(pair, tables={**pair.tables, "evaluation": table})
    assert "ru: 40.0 % of the tokens, and bits per character changed by -30.00 %" in str(say.quality(found))
    assert "en: 100.0 % of the tokens, and bits per character changed by +1.20 %" in str(say.quality(found))
    assert say.quality(pair) is None and say.quality(measured(("base",))) is None
