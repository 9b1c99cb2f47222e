"""The original's claims: each verdict reached both ways by changing a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import measured
from test_observations import changed, set_where

from report import claims
from xai_utils.attention.layers import statistics, uniform
from xai_utils.study.tables import Measured

PAIR = ("base", "ru-ts")


@pytest.fixture(scope="module")
def pair() -> Measured:
    return measured(PAIR)


def outcomes(claim: claims.Claim, *found: Measured) -> list[str]:
    return [claim(one).outcome for one in found]


def with_word(pair: Measured, word: str, method: str, score: float) -> Measured:
    return changed(pair, "word_scores", set_where("score", score, word=word, method=method))


def test_counted_claims_hold_fail_or_hold_in_part(pair):
    down, up = with_word(pair, "?", "ablation", -1.0), with_word(pair, "?", "ablation", 1.0)
    assert outcomes(claims.question_mark, down, up) == [claims.HOLDS, claims.FAILS]
    part = changed(down, "word_scores", set_where("score", 2.0, word="?", method="ablation", text="moons"))
    assert claims.question_mark(part).outcome == claims.PART
    assert "in 4 of 6 cases; its median ablation score is -1 nats" in str(claims.question_mark(part).because)
    nothing = with_word(pair, ",", "ablation", -1.0)
    nothing = changed(nothing, "word_scores", set_where("score", -1.0, word="—", method="ablation"))
    assert outcomes(claims.punctuation, nothing) == [claims.HOLDS]
    assert outcomes(claims.first_word, with_word(pair, "Сколько", "ablation", 3.0)) == [claims.HOLDS]
    assert outcomes(claims.first_word, with_word(pair, "Сколько", "ablation", -3.0)) == [claims.FAILS]


def test_noise_on_the_question_mark_is_the_twins_affair(pair):
    top, low = with_word(pair, "?", "sensitivity", 99.0), with_word(pair, "?", "sensitivity", 0.0)
    assert outcomes(claims.unstable_mark, top, low) == [claims.HOLDS, claims.FAILS]
    assert "in 3 of 3 texts" in str(claims.unstable_mark(top).because)


def test_first_position_needs_a_certificate(pair):
    verdict = claims.first_position(pair)
    assert verdict.outcome == claims.UNDECIDED and "negative in 12 of 12 runs" in str(verdict.because)
    proven = changed(pair, "certificates", lambda table: table.assign(converged=True))
    rows = proven.table("attributions").query("method == 'fixed_steps'")
    shares = [
        part["score"].iloc[0] / part["score"].abs().sum() for _, part in rows.groupby(["text", "model", "baseline"])
    ]
    assert f"its median share is {np.median(shares):+.0%}" in str(claims.first_position(proven).because)
    assert claims.first_position(proven).outcome in (claims.HOLDS, claims.PART)
    up = replace(
        proven,
        tables={**proven.tables, "attributions": set_where("score", 5.0, position=0)(proven.tables["attributions"])},
    )
    assert claims.first_position(up).outcome == claims.FAILS


def test_certified_runs_with_the_sink_moved_come_first(pair):
    tokens, proofs = pair.table("attributions"), pair.table("certificates")
    own = (tokens["method"] == "integrated_gradients") & (tokens["baseline"] == "mean")
    moved = tokens[own].assign(sink="moved", score=tokens["score"].where(tokens["position"] > 0, -40.0))
    proof = proofs[proofs["baseline"] == "mean"].assign(sink="moved")
    tables = {**pair.tables, "attributions": pd.concat([tokens, moved]), "certificates": pd.concat([proofs, proof])}
    verdict = claims.first_position(replace(pair, tables=tables))
    assert verdict.outcome == claims.HOLDS and "in 12 of 12 certified runs" in str(verdict.because)


def test_the_original_delta(pair):
    found = claims.original_delta(pair)
    assert found.outcome == claims.UNDECIDED and "in 12 of 12 runs" in str(found.because)
    good = changed(pair, "certificates", lambda table: table.assign(converged=True))
    assert "in 0 of 12 runs" in str(claims.original_delta(good).because)


def test_methods_agree_by_their_rank_correlation(pair):
    low = changed(pair, "agreement", lambda table: table.assign(spearman=0.1))
    assert outcomes(claims.methods_agree, pair, low) == [claims.HOLDS, claims.FAILS]
    assert "in 0 of 12 cases, by 0.10 on average" in str(claims.methods_agree(low).because)


@pytest.mark.parametrize(
    ("claim", "column", "holds", "fails"),
    [
        (claims.bulk_to_start, "sink", 0.9, 0.2),
        (claims.low_diagonal, "diagonal", 0.1, 0.4),
        (claims.global_head, "local", 0.01, 1.0),
    ],
)
def test_attention_of_the_first_head(pair, claim, column, holds, fails):
    first = {"layer": 0, "head": 0}
    both = [changed(pair, "attention_heads", set_where(column, value, **first)) for value in (holds, fails)]
    assert outcomes(claim, *both) == [claims.HOLDS, claims.FAILS]
    elsewhere = changed(both[0], "attention_heads", set_where(column, fails, layer=1))
    assert claim(elsewhere).outcome == claims.HOLDS


def test_nearness_is_that_of_attention_that_does_not_choose():
    assert claims.uniform_local(9) == pytest.approx(float(statistics(uniform(9))["local"]))
    assert claims.uniform_local(3) == 1.0


@pytest.mark.parametrize(
    ("claim", "question", "sign"),
    [
        (claims.more_even, "entropy", 1),
        (claims.smaller_negatives, "negative", -1),
        (claims.flatter_attention, "attention_entropy", 1),
    ],
)
def test_claims_of_the_pair_follow_the_test_over_texts(pair, claim, question, sign):
    def said(difference: float, verdict: str) -> Measured:
        table = pair.table("questions").copy()
        rows = table["question"] == question
        table.loc[rows, ["difference", "low", "high"]] = difference
        table.loc[rows, "verdict"] = verdict
        return replace(pair, tables={**pair.tables, "questions": table})

    cases = (said(sign, "difference"), said(-sign, "difference"), said(sign, "no difference found"))
    assert outcomes(claim, *cases) == [claims.HOLDS, claims.OPPOSITE, claims.NONE]
    assert f"change {sign:+.2g}" in str(claim(cases[0]).because)


def test_one_model_decides_no_claim_of_a_pair():
    single = measured(("base",))
    undecided = (claims.more_even, claims.smaller_negatives, claims.flatter_attention, claims.unstable_mark)
    assert {claim(single).outcome for claim in undecided} == {claims.UNDECIDED}


def test_without_tables_all_but_what_holds_by_construction_is_undecided(pair):
    empty = [verdict.outcome for verdict in claims.verdicts(Measured(pair.study, {}))]
    assert empty.count(claims.UNDECIDED) == len(claims.CLAIMS) - 1
