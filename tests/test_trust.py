"""The trust card: each check's level at its thresholds, and the whole card on models whose answer is known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tests.planted import planted_model
from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.integrated_gradients import fixed_steps, input_x_gradient, integrated_gradients
from xai_utils.attribution.masking import players
from xai_utils.attribution.perturbation import ablation
from xai_utils.attribution.result import from_words
from xai_utils.attribution.shapley import panel_shapley
from xai_utils.evaluation import trust
from xai_utils.evaluation.agreement import STABILITY, stability_of, stability_row
from xai_utils.text.cases import units

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def model():
    return tiny_loaded()


def scored(model, by_absence, method="panel_shapley"):
    """An attribution with these word scores under each absence."""
    case, target = tiny_case(model, TEXT)
    rows = np.array(by_absence, dtype=float)
    return from_words(
        method, case, target, players(case, True), rows.mean(0), 0 * rows[0], baseline="panel", keep_sink=True,
        additive=True, low=rows.min(0), high=rows.max(0), by_absence=rows,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("probability", "level"), [(0.5, "passes"), (0.49, "doubtful"), (0.01, "doubtful"), (0.009, "fails")]
)
def test_competence(probability, level):
    found = trust.competence({"probability": probability, "rank": 3, "margin": 1.5, "next_probability": 0.6})
    assert (found.level, found.probability, found.rank, found.margin) == (level, probability, 3, 1.5)


def test_competence_in_the_model_s_own_next_token():
    found = trust.competence({"probability": np.nan, "rank": pd.NA, "margin": np.nan, "next_probability": 0.3})
    assert found == trust.Competence("doubtful", 0.3, 1, None)


def test_completeness_is_exact_integrated_or_none(model):
    case, target = tiny_case(model, TEXT)
    exact = trust.completeness(panel_shapley(model, case, target))
    assert (exact.kind, exact.level) == ("exact", "passes") and exact.error < 1e-4
    certified = integrated_gradients(model, case, target, baseline="mean", tolerance=0.05)
    walked = trust.completeness(certified)
    assert walked.kind == "integrated" and walked.bound == certified.certificate.bound
    assert walked.level == ("passes" if certified.certificate.converged else "fails")
    broken = dataclasses.replace(certified, certificate=dataclasses.replace(certified.certificate, bound=0.5))
    assert trust.completeness(broken).level == "fails"
    assert trust.completeness(input_x_gradient(model, case, target)) == trust.Completeness(
        "doubtful", "none", None, None
    )
    assert trust.completeness(ablation(model, case, target)) == trust.Completeness("unknown", "none", None, None)
    assert trust.completeness(fixed_steps(model, case, target, baseline="zero", steps=3)).kind == "integrated"


@pytest.mark.parametrize(
    ("scores", "level", "signs", "ranks"),
    [
        ([[5, 4, 3, 2, 1], [9, 4, 3, 2, 1]], "passes", 1.0, 1.0),
        ([[5, 4, 3, 2, -1], [9, 4, 3, 2, 1]], "passes", 0.8, 1.0),
        ([[5, 4, 3, -2, -1], [9, 4, 3, 2, 1]], "doubtful", 0.6, 0.9),
        ([[5, 4, 3, 2, 1], [4, 5, 1, 2, 3]], "doubtful", 1.0, 0.5 - 1e-12),
        ([[5, 4, -3, -2, -1], [9, 4, 3, 2, 1]], "fails", 0.4, None),
        ([[5, 4, 3, 2, 1], [1, 2, 3, 4, 5]], "fails", 1.0, -1.0),
    ],
)
def test_stability_is_judged_by_signs_and_ranks(model, scores, level, signs, ranks):
    found = trust.stable(stability_of(scored(model, scores)))
    assert found.one_sign == pytest.approx(signs)
    expected = pd.DataFrame(np.array(scores, dtype=float).T).corr(method="spearman").iloc[0, 1]
    assert found.rank_correlation == pytest.approx(expected)
    assert found.same_top == (np.argmax(scores[0]) == np.argmax(scores[1]))
    assert found.level == level or (ranks is not None and expected >= trust.ALIKE and level == "doubtful")


def test_a_method_without_a_panel_has_no_stability(model):
    case, target = tiny_case(model, TEXT)
    found = ablation(model, case, target)
    assert trust.stable(stability_of(found)) == trust.Stability("unknown", None, None, None)
    row = stability_row(found)
    assert set(row) == set(STABILITY) and np.isnan(row["one_sign"])


def test_the_stability_table_is_that_of_the_absences(model):
    case, target = tiny_case(model, TEXT)
    found = panel_shapley(model, case, target)
    row = stability_row(found)
    words = found.by_absence[:, 1:]
    assert row["one_sign"] == np.mean(np.abs(np.sign(words).sum(0)) == len(words))
    ranks = pd.DataFrame(words.T).corr(method="spearman").to_numpy()
    assert row["rank_correlation"] == pytest.approx(ranks[np.triu_indices(len(words), 1)].mean())
    assert row["same_top"] == (len(set(words.argmax(1))) == 1)


def deletions(shares, chance=0.4, position=0.5):
    """A table `faithfulness`: shares of the method under four absences, the first of which is its own."""
    rows = []
    for absence, share in zip(("mean", "hidden", "space", "sampled"), shares, strict=True):
        mine = {"method": "panel_shapley", "baseline": "panel", "share": share, "own": absence == "mean"}
        controls = [
            {"method": name, "baseline": "", "share": position, "own": False}
            for name in ("first_to_last", "last_to_first")
        ]
        rows += [row | {"absence": absence, "random_95": chance} for row in (mine, *controls)]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("shares", "position", "level"),
    [
        ((0.1, 0.7, 0.6, 0.8), 0.5, "passes"),
        ((0.1, 0.7, 0.6, 0.8), 0.9, "doubtful"),
        ((1.0, 0.5, 0.5, 0.5), 0.1, "doubtful"),
        ((1.0, 0.2, 0.3, 0.2), 0.1, "fails"),
    ],
)
def test_faithfulness_is_judged_on_absences_not_its_own(model, shares, position, level):
    found = trust.faithful(scored(model, [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]), deletions(shares, position=position))
    assert found.level == level and found.absences == 3 and found.position == pytest.approx(position)
    assert found.share == pytest.approx(np.mean(shares[1:]))
    assert trust.faithful(scored(model, [[1, 2, 3, 4, 5]] * 2), None).level == "unknown"


@pytest.mark.parametrize(
    ("other", "level"), [([5, 4, 3, 2, 1], "passes"), ([1, 2, 3, 4, 5], "fails"), ([1, 2, 5, 4, 3], "doubtful")]
)
def test_a_control_that_agrees_is_a_warning(model, other, level):
    found = scored(model, [[1, 2, 3, 4, 5]] * 2)
    controls = {"untrained": scored(model, [other] * 2)}
    checked = trust.controlled(found, controls)
    expected = np.corrcoef([1, 2, 3, 4, 5], other)[0, 1]  # ranks are the scores here
    assert checked.correlations["untrained"] == pytest.approx(expected)
    assert checked.level == level or pytest.approx(expected) in (trust.CONTROLLED, trust.SAME)
    assert trust.controlled(found, {}).level == "unknown"


def test_the_whole_card_of_a_model_whose_reason_is_known():
    text = "The capital of France is"
    case, _ = tiny_case(tiny_loaded(), text)
    token = case.ids[units(case)[3].tokens[0]]
    model = planted_model(token)
    case, target = tiny_case(model, text, answer=None)
    found = panel_shapley(model, case, target)
    card = trust.assess(model, found, controls={"other": panel_shapley(planted_model(5), case, target)})
    assert card.completeness.level == card.faithfulness.level == "passes" and card.faithfulness.share > 0.9
    assert card.competence.rank == 1 and set(card.levels) == {
        "competence", "completeness", "stability", "faithfulness", "controls"
    }  # fmt: skip
    row = card.row()
    assert row["competence"] == card.competence.level and row["faithfulness_share"] == card.faithfulness.share
    assert row["control_other"] == card.controls.correlations["other"]
    assert trust.assess(model, found, tests=False).faithfulness.level == "unknown"


def test_a_headline_needs_a_sure_model_and_no_failure(model):
    found = scored(model, [[5, 4, 3, 2, 1]] * 2)
    sure = {"probability": 0.8, "rank": 1, "margin": np.nan, "next_probability": 0.8}
    good = trust.card(found, sure, deletions((0.1, 0.7, 0.6, 0.8)))
    assert good.completeness.level == "doubtful" and good.headline
    assert not trust.card(found, sure | {"probability": 0.2}, deletions((0.1, 0.7, 0.6, 0.8))).headline
    assert not trust.card(found, sure, deletions((0.9, 0.1, 0.1, 0.1))).headline
