"""The sentences of the long studies, on tables made by hand."""

import pandas as pd
import pytest

from report import evidence_sentences
from report.evidence_sentences import chosen_methods
from xai_utils.evaluation.statistics import FOUND, NONE
from xai_utils.study import corpus
from xai_utils.study.tables import IG


def test_a_sentence_follows_its_table():
    row = {"sink": "kept", "cases": 32, "limit": 300, "budget": 1000, "tolerance": 0.01, "certified": 0.97}
    row |= {"evaluations_max": 800, "rank_mean": 0.9, "rank_least": 0.5, "rank_cases": 30, "default": "mean"}
    table = pd.DataFrame(
        [
            row | {"baseline": "mean", "certified_within": 0.91, "evaluations_median": 96.0},
            row | {"baseline": "eos", "certified_within": 0.84, "evaluations_median": 128.0},
        ]
    )
    said = str(evidence_sentences.default_baseline({"baselines": table}))
    assert said.startswith("Within 300 gradient evaluations") and "so many of 32 cases" in said
    assert "mean 91% and eos 84%. The default is mean." in said
    table.loc[1, "certified_within"] = 0.95
    assert "eos 95% and mean 91%" in str(evidence_sentences.default_baseline({"baselines": table}))
    table.loc[1, "cases"] = 8  # not the same cases: nothing to compare
    assert evidence_sentences.default_baseline({"baselines": table}) is None
    assert evidence_sentences.default_baseline({"baselines": table[:1]}) is None  # one alone is no choice
    assert "800 at most" in str(evidence_sentences.published_setting({"baselines": table}))
    assert "eos with the sink kept 0.90 (least 0.50, 30 cases)" in str(evidence_sentences.ranks({"baselines": table}))


def claims(verdict, difference=-0.2, **more):
    row = {"question": "entropy", "asked": "evenness", "paired": True, "claim": corpus.EVEN, "sign": 1}
    row |= {"model": "b", "base": "a", "role": "adapted", "baseline": "mean", "default": "mean", "sink": "kept"}
    row |= {
        "mean_base": 0.8,
        "mean": 0.6,
        "difference": difference,
        "low": -0.3,
        "high": -0.1,
        "p_adjusted": 0.01,
        "n": 30,
        "against": 0.0,
        "at_default": None,
    }
    return pd.DataFrame([row | {"verdict": verdict} | more])


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("holds", "holds."), ("the opposite holds", "is turned round."), ("no difference found", "is not shown")],
)
def test_a_claim_is_told_with_its_verdict(verdict, said):
    (sentence,) = evidence_sentences.corpus_claims({"corpus_tests": claims(verdict)})
    assert f"evenly” {said}" in str(sentence)
    assert "0.6 under b, 0.8 under a, change -0.2" in str(sentence) and "over 30 pairs" in str(sentence)


def test_a_finding_that_turns_with_the_baseline_is_said_to():
    both = pd.concat([claims("holds"), claims("holds", 0.1, baseline="zero", at_default=-0.15, n=6)])
    turned = str(evidence_sentences.turned({"corpus_tests": both}))
    assert "depends on the baseline" in turned
    assert "(-0.15 at mean, +0.1 at zero on the same 6 pairs of texts)" in turned
    # on other texts the sign may differ without the baseline's doing
    both = pd.concat([claims("holds"), claims("holds", 0.1, baseline="zero", at_default=0.15, n=6)])
    assert str(evidence_sentences.turned({"corpus_tests": both})).startswith("No change that was found")
    none = pd.concat([claims(NONE), claims("holds", 0.1, baseline="zero", at_default=-0.15)])
    assert evidence_sentences.turned({"corpus_tests": none}) is None  # nothing was found that could turn


def test_a_claim_with_a_mark_of_its_own_is_told_with_it():
    row = claims("does not hold", -0.37, paired=False, against=0.5, mean=0.13, low=-0.45, high=-0.3)
    said = str(evidence_sentences.corpus_claims({"corpus_tests": row})[0])
    assert "does not hold" in said and "+0.13 under b" in said and "interval +0.05 to +0.2" in said
    assert "the claim asks for more than 0.5" in said
    row = claims("holds", paired=False, sink="moved", baseline="zero", against=-1.0, sign=-1)
    assert "at the baseline zero, with the first position moved" in str(
        evidence_sentences.corpus_claims({"corpus_tests": row})[0]
    )


def test_the_verdicts_on_a_claim_are_counted():
    table = pd.concat([claims("holds"), claims("holds"), claims("holds", claim="m"), claims(NONE, claim="m")])
    told = evidence_sentences.over_corpus({"corpus_tests": table})
    assert {claim: str(sentence) for claim, sentence in told.items()} == {
        corpus.EVEN: "holds",
        "m": "holds in 1 of 2 tests and no difference found in 1 of 2 tests",
    }
    assert evidence_sentences.over_corpus({}) == {}


def test_a_report_opens_with_what_the_corpus_found():
    table = pd.concat([claims(FOUND), claims(NONE, asked="spread"), claims(FOUND, paired=False, asked="mark")])
    said = str(evidence_sentences.corpus_tested({"corpus_tests": table}))
    assert said == (
        "Over up to 30 translation pairs of the corpus, the models differ in evenness (0.8 under a, 0.6 under b; "
        "interval of the change -0.3 to -0.1, 30 pairs); no difference is found in spread."
    )
    none = evidence_sentences.corpus_tested({"corpus_tests": claims(NONE)})
    assert str(none) == "Over up to 30 translation pairs of the corpus, no question finds a difference."
    assert evidence_sentences.corpus_tested({}) is None


def test_words_are_counted_where_every_model_has_them():
    table = pd.DataFrame(
        [("b", 3, 10, 6, 4, 2.03), ("c", 0, 0, 0, 0, float("nan"))],
        columns=["model", *corpus.COUNTS, "mean_size"],
    )
    said = str(evidence_sentences.controls({"corpus_changes": table}))
    assert "b in 4 of 10 words (mean absolute difference over all of these 2.03 nats)" in said and "c in" not in said


def sane(low, high, texts=8, method="ablation"):
    return {"model": "a", "method": method, "share": 1.0, "texts": texts, "correlation": (low + high) / 2} | {
        "low": low, "high": high
    }  # fmt: skip


def test_rankings_that_random_weights_keep_are_counted_on_both_sides():
    rows = [sane(0.7, 0.9), sane(-0.9, -0.7), sane(-0.02, 0.3), sane(0.8, 0.8, texts=1)]
    said = str(evidence_sentences.randomised({"sanity": pd.DataFrame(rows)}))
    assert "2 of these intervals leave out zero" in said and "over 8 texts" in said and "+0.80 to +0.80" not in said
    assert "every interval holds zero" in str(
        evidence_sentences.randomised({"sanity": pd.DataFrame([sane(-0.1, 0.3)])})
    )
    assert evidence_sentences.randomised({"sanity": pd.DataFrame([sane(0.8, 0.8, texts=1)])}) is None


def test_an_order_by_position_is_named_with_its_rank():
    rows = [(IG, "gradients", 4.0), ("ablation", "influence", 3.0), ("last_to_first", "position", 2.5)]
    board = pd.DataFrame(rows, columns=["method", "family", "mean_rank"]).assign(cases=4)
    assert "(2.50 against 3.00)" in str(evidence_sentences.best_methods({"methods": board}))
    board.loc[2, "mean_rank"] = 3.5
    assert "position" not in str(evidence_sentences.best_methods({"methods": board}))


def test_nothing_is_said_without_tables():
    assert all(sentences == [] for sentences in evidence_sentences.said({}).values())


@pytest.mark.parametrize(
    ("gradients", "ablation", "reached"),
    [((14, 10), (16, 16), 2), ((13, 10), (16, 16), 1), ((14, 10), (14, 9), 1), ((13, 16), (16, 9), 0)],
)
def test_the_chosen_methods_are_held_to_a_mark(gradients, ablation, reached):
    board = [(IG, "gradients", 2.0), ("fixed_steps", "gradients", 3.0), ("ablation", "influence", 1.0)]
    tables = {"methods": pd.DataFrame(board, columns=["method", "family", "mean_rank"]).assign(cases=16)}
    rows = [
        {"method": method, "deletion": deletion, "comprehensiveness": float(case < above if deletion == "mean" else 0),
         "comprehensiveness_random": 0.5, "comprehensiveness_beats_random": case < beyond}
        for deletion in ("mean", "eos")
        for method, (above, beyond) in ((IG, gradients), ("ablation", ablation), ("fixed_steps", (0, 0)))
        for case in range(16)
    ]  # fmt: skip
    said = str(chosen_methods(tables, pd.DataFrame(rows)))
    for name, (above, beyond) in (("integrated gradients", gradients), ("ablation", ablation)):
        for deletion, count in (("mean", above), ("eos", 0)):
            assert (
                f"{name} is above their mean in {count} and beyond their 95th percentile in {beyond} of 16 with words "
                f"put at {deletion}"
            ) in said
    assert f"in 88% of the cases and beyond the percentile in 62%: {reached} of these 4 are." in said
