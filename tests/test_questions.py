"""Questions over texts: measures as a hand computes them, tests by all sign flips, verdicts on enough texts alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.synthetic import PANEL, measured, refreshed
from xai_utils.evaluation.statistics import FOUND, NONE, UNDECIDED
from xai_utils.study import measures, questions
from xai_utils.study.tables import IG, StudyTables, board, preferred
from xai_utils.text.entry import TextEntry


@pytest.fixture(scope="module")
def found() -> StudyTables:
    return measured()


def changed(found: StudyTables, name: str, change) -> StudyTables:
    return StudyTables(found.study, dict(found.tables) | {name: change(found.table(name).copy())})


def scores(found: StudyTables, text: str, model: str, method: str = PANEL) -> pd.DataFrame:
    rows = found.table("word_scores")
    return rows[rows["is_word"] & (rows[["text", "model", "method"]] == [text, model, method]).all(axis=1)]


def test_measures_are_what_a_hand_computes(found):
    one = scores(found, "moons", "ru-ts")
    values = dict(zip(one["word"], one["score"], strict=True))
    size = sum(abs(value) for value in values.values())
    place = ("moons", "ru-ts")
    shares = np.array([abs(value) / size for value in values.values()])
    assert measures.negative(found, PANEL)[place] == pytest.approx(-sum(min(v, 0) for v in values.values()) / size)
    assert measures.question_mark(found, PANEL)[place] == pytest.approx(values["?"] / size)
    assert measures.original_word(found, PANEL)[place] == pytest.approx(values["Сколько"] / size)
    entropy = -(shares * np.log(shares)).sum() / np.log(len(shares))
    assert measures.evenness(found, PANEL)[place] == pytest.approx(entropy)
    other = scores(found, "moons", "ru-ts", "ablation")["score"]
    expected = stats.spearmanr(scores(found, "moons", "ru-ts", IG)["score"], other).statistic
    assert measures.ranks(found, IG)[place] == pytest.approx(expected)
    assert "moons" not in measures.other_marks(found, PANEL).index.get_level_values("text")
    dash = scores(found, "proverb", "base").set_index("word")["score"]
    assert measures.other_marks(found, PANEL)[("proverb", "base")] == pytest.approx(dash["—"] / dash.abs().sum())


def test_the_answer_is_counted_by_the_character(found):
    row = found.table("behaviour").query("text == 'bird' and model == 'base'").iloc[0]
    expected = np.log(row["probability"]) / len(" fly.")
    assert measures.answer(found, "")[("bird", "base")] == pytest.approx(expected)


def test_what_did_not_converge_is_not_measured(found):
    failed = changed(found, "certificates", lambda table: table.assign(converged=table["text"] != "moons"))
    texts = measures.evenness(failed, IG).index.get_level_values("text")
    assert "moons" not in texts and "planets" in texts
    assert "moons" in measures.evenness(failed, "fixed_steps").index.get_level_values("text")  # the original's own rule


def test_p_is_that_of_all_sign_flips(found):
    table = found.table("questions").set_index(["question", "method"])
    values = measures.evenness(found, PANEL).unstack("model")
    change = (values["ru-ts"] - values["base"]).to_numpy()
    flips = [abs(np.mean(change * signs)) for signs in product((1, -1), repeat=len(change))]
    expected = np.mean(np.array(flips) >= abs(change.mean()) - 1e-12)
    row = table.loc[("evenness", PANEL)]
    assert row["p"] == pytest.approx(expected) and row["difference"] == pytest.approx(change.mean())
    both = measures.of_first_head("sink")(found, "").unstack("model").mean(axis=1) - questions.HALF
    flips = [abs(np.mean(both.to_numpy() * signs)) for signs in product((1, -1), repeat=len(both))]
    assert table.loc[("first_head_sink", ""), "p"] == pytest.approx(
        np.mean(np.array(flips) >= abs(both.mean()) - 1e-12)
    )


def test_p_values_are_corrected_for_all_that_the_pair_is_asked(found):
    table = found.table("questions")
    asked = table[table["p_adjusted"].notna()]
    assert len(asked) > 3
    order = asked["p"].to_numpy().argsort()
    raw = asked["p"].to_numpy()[order] * len(asked) / np.arange(1, len(asked) + 1)
    expected = np.minimum.accumulate(raw[::-1])[::-1].clip(max=1)
    assert asked["p_adjusted"].to_numpy()[order] == pytest.approx(expected)


def loud(found: StudyTables, texts: int) -> StudyTables:
    """The same in which the first head gives nearly all to the first position, on so many texts, and the base more."""

    def louder(table: pd.DataFrame) -> pd.DataFrame:
        value = 0.95 - 0.1 * (table["model"] == "ru-ts") + 0.001 * (table.index % 7)
        return table.assign(sink=np.where((table["layer"] == 0) & (table["head"] == 0), value, table["sink"]))

    made = changed(found, "attention_heads", louder)
    keep = [text.id for text in found.study.texts][:texts]
    tables = {name: table[table["text"].isin(keep)] for name, table in made.tables.items() if "text" in table}
    entries = tuple(text for text in found.study.texts if text.id in keep)
    return StudyTables(found.study.model_copy(update={"texts": entries}), tables)


@pytest.mark.parametrize("texts", [1, 5, 12])
def test_no_claim_is_decided_on_fewer_texts_than_its_test_needs(found, texts):
    table = questions.tests(loud(found, texts)).set_index("question")
    row = table.loc["first_head_sink"]
    assert row["n"] == texts and row["difference"] > 0.3
    assert row["verdict"] == (UNDECIDED if texts < 6 else questions.HOLDS)
    claimed = table[table["claim"] != ""]
    assert set(claimed["verdict"]) <= {questions.HOLDS, questions.FAILS, UNDECIDED}
    assert (claimed.loc[claimed["changed"] < 6, "verdict"] == UNDECIDED).all()


def test_a_difference_in_the_other_direction_refutes_a_claim(found):
    quiet = changed(
        loud(found, 12), "attention_heads", lambda table: table.assign(sink=1 - table["sink"], norm_sink=np.nan)
    )
    assert questions.tests(quiet).set_index("question").loc["first_head_sink", "verdict"] == questions.FAILS


def test_the_two_texts_of_a_pair_are_one_observation(found):
    pair = {"planets": "capital", "capital": "planets"}
    entries = [TextEntry.model_validate(text.model_dump() | {"pair": pair.get(text.id)}) for text in found.study.texts]
    joined = replace(found, study=found.study.model_copy(update={"texts": tuple(entries)}))
    before, after = (table.set_index("question") for table in (found.table("questions"), questions.tests(joined)))
    assert before.loc["sink", "n"] == 12 and after.loc["sink", "n"] == 11
    values = measures.sink(found, "").unstack("model")
    change = values["ru-ts"] - values["base"]
    apart = change.drop(["planets", "capital"]).tolist() + [change[["planets", "capital"]].mean()]
    assert after.loc["sink", "difference"] == pytest.approx(np.mean(apart))


def test_claims_are_put_only_where_a_study_names_them(found):
    quiet = replace(found, study=found.study.model_copy(update={"claims": None}))
    table = questions.tests(quiet)
    assert len(table) and set(table["claim"]) == {""} and set(table["verdict"]) <= {FOUND, NONE, UNDECIDED}


def test_one_model_is_asked_what_needs_no_second():
    table = questions.tests(measured(("base",)))
    assert len(table) and not table["paired"].any() and set(table["other"]) == {""}


def test_a_table_that_is_missing_leaves_its_questions_out(found):
    fewer = StudyTables(
        found.study, {k: v for k, v in found.tables.items() if k not in ("attention_heads", "behaviour")}
    )
    asked = set(questions.tests(fewer)["question"])
    assert "evenness" in asked and not asked & {"sink", "answer", "first_head_sink"}
    assert questions.tests(StudyTables(found.study, {})).empty


def test_the_preferred_method_is_the_first_of_the_board(found):
    ranked = board(found)
    rows = found.table("faithfulness")
    used = set(rows.loc[rows["own"], "absence"])
    rows = rows[(rows["method"] == IG) & ~rows["absence"].isin(used)]
    assert len(used) > 1 and len(rows)
    assert ranked.set_index("method").loc[IG, "other"] == pytest.approx(rows["share"].mean())
    assert ranked["other"].is_monotonic_decreasing and preferred(found) in set(ranked["method"])
    best = changed(found, "faithfulness", lambda table: table.assign(share=(table["method"] == "ablation") * 0.9))
    assert preferred(best) == "ablation"
    unsigned = changed(
        found, "faithfulness", lambda table: table.assign(share=(table["method"] == "sensitivity") * 0.9)
    )
    assert preferred(unsigned) != "sensitivity"
    assert preferred(StudyTables(found.study, {"word_scores": found.table("word_scores")})) == PANEL
    assert preferred(StudyTables(found.study, {})) is None


def test_a_swapped_pair_turns_a_paired_question(found):
    def other(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(model=table["model"].map({"base": "ru-ts", "ru-ts": "base"}))

    turned = StudyTables(
        found.study, {name: other(table) if "model" in table else table for name, table in found.tables.items()}
    )
    before, after = (one.table("questions").set_index(["question", "method"]) for one in (found, refreshed(turned)))
    for name in (("evenness", PANEL), ("attention_evenness", ""), ("answer", "")):
        assert after.loc[name, "difference"] == pytest.approx(-before.loc[name, "difference"])
