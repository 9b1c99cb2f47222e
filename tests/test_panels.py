"""Candidate panels against loops over orders, and the evidence behind the default one."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.absence import PANEL
from xai_utils.attribution.masking import Removal
from xai_utils.attribution.shapley import panel_shapley
from xai_utils.evaluation.agreement import stability
from xai_utils.evaluation.orders import by_score
from xai_utils.evaluation.panels import candidates, cases_of, choice, confidence, rankings, subset_values
from xai_utils.study import evidence
from xai_utils.study.config import Study, load_study
from xai_utils.study.explainer import Explainer
from xai_utils.text.words import normalise, words

TEXT = "The capital of France"


@pytest.fixture(scope="module")
def model():
    return tiny_loaded()


@pytest.fixture(scope="module")
def values(model):
    """Two texts of four words and one of three, whose answers the model is made to give."""
    tables = []
    for text in (TEXT, "Water boils at zero", "The cat sat"):
        case, target = tiny_case(model, text, answer=None)
        tables.append(subset_values(model, case, target).assign(text=text, model="tiny"))
    return pd.concat(tables, ignore_index=True)


def test_values_are_those_of_prompts_with_some_words(model):
    case, target = tiny_case(model, TEXT)
    table = subset_values(model, case, target, absences=("dropped", "sampled"))
    assert table.groupby("absence")["draw"].nunique().to_dict() == {"dropped": 1, "sampled": 8}
    for absence in ("dropped", "sampled"):
        removal = Removal(model, case, target, absence, draws=8)
        for subset in (0, 5, 10, 15):
            present = np.array([[subset >> word & 1 for word in range(4)]])
            found = table[(table["absence"] == absence) & (table["subset"] == subset)].sort_values("draw")["value"]
            assert found.tolist() == pytest.approx(removal.without(present)[0].tolist())


def test_texts_that_no_model_can_answer_are_left_out(model, values):
    assert len(cases_of(values)) == 3
    worse = values.assign(value=values["value"] - np.where(values["text"] == TEXT, 20, 0))
    assert {case.text for case in cases_of(worse)} == {"Water boils at zero", "The cat sat"}
    twin = pd.concat([worse, values.assign(model="twin")])  # another model gives it
    assert {case.text for case in cases_of(twin)} == set(values["text"])


def by_hand(values, scores):
    """Share of the ranking by `scores` under one absence, from all orders."""
    count = len(scores)

    def mean(order):
        present, seen = 0, []
        for word in order[:-1]:
            present |= 1 << word
            seen.append(values[present])
        return np.mean(seen)

    every = np.array([mean(order) for order in permutations(range(count))])
    order = by_score(scores).tolist()
    return (
        (mean(order) - every.mean()) / (every.max() - every.mean())
        + (every.mean() - mean(order[::-1])) / (every.mean() - every.min())
    ) / 2


def test_a_candidate_is_scored_from_all_orders(model, values):
    cases = cases_of(values)
    table = candidates(cases).set_index("panel")
    assert len(table) == 7 + 21 + 35 + 35
    panel = ("dropped", "mean", "eos")
    row = table.loc[" + ".join(panel)]
    shares, own, stands, elsewhere = [], [], [], []
    for case in cases:
        worth = np.stack([case.shapley[name] for name in panel])
        found = {name: by_hand(case.values[name], worth.mean(0)) for name in case.values}
        shares.append(np.mean(list(found.values())))
        own.append(np.mean([found[name] for name in panel]))
        one = [len(set(np.sign(column))) == 1 for column in worth.T]
        stands.append(np.mean(one))
        others = [name for name in case.values if name not in panel]
        kept = [np.sign(case.shapley[o][w]) == np.sign(worth[0, w]) for w in np.flatnonzero(one) for o in others]
        elsewhere.append(np.mean(kept) if kept else np.nan)
    assert row["share"] == pytest.approx(np.mean(shares)) and row["share_own"] == pytest.approx(np.mean(own))
    assert row["stands"] == pytest.approx(np.mean(stands))
    assert row["stands_elsewhere"] == pytest.approx(np.nanmean(elsewhere))
    assert row["passes"] == 3 and table.loc["mean + sampled", "passes"] == 9
    assert table["share"].max() <= rankings(cases, panel).set_index("method").loc["ceiling", "share"] + 1e-9


def test_rankings_hold_the_method_itself(model, values):
    cases = cases_of(values)
    table = rankings(cases, PANEL).set_index(["method", "baseline"])
    total = []
    for case in cases:
        found = panel_shapley(model, *tiny_case(model, case.text, answer=None), absences=PANEL)
        total.append(np.mean(list(case.shares(found.word_scores[1:]).values())))
    assert table.loc[("panel_shapley", "panel"), "share"] == pytest.approx(np.mean(total), abs=1e-3)
    forward, backward = (table.loc[(name, ""), "share"] for name in ("first_to_last", "last_to_first"))
    place = [np.mean([by_hand(case.values[name], -np.arange(case.words)) for name in case.values]) for case in cases]
    assert forward == pytest.approx(np.mean(place)) and backward != forward


def test_confidence_is_the_rank_correlation_with_the_probability(values):
    cases = cases_of(values)
    table = confidence(cases, PANEL).set_index("measure")
    shares = []
    for case in cases:
        worth = np.mean([case.shapley[name] for name in PANEL], axis=0)
        shares.append(np.mean([by_hand(own, worth) for name, own in case.values.items() if name not in PANEL]))
    expected = spearmanr([case.probability for case in cases], shares).statistic
    assert table.loc["share_other", "correlation"] == pytest.approx(expected)
    assert table["cases"].unique() == [len(cases)]
    assert (table["low"].isna() | (table["low"] <= table["high"])).all()


def test_stability_of_scores_under_several_absences():
    same = stability(np.array([[3.0, 1.0, -2.0], [30.0, 2.0, -1.0]]))
    assert same == {"rank_correlation": 1.0, "one_sign": 1.0, "same_top": 1.0}
    turned = stability(np.array([[3.0, 1.0, -2.0], [-3.0, -1.0, 2.0]]))
    assert turned == {"rank_correlation": -1.0, "one_sign": 0.0, "same_top": 0.0}
    assert np.isnan(stability(np.array([[1.0, 2.0], [2.0, 1.0]]))["rank_correlation"])


# ---- the evidence as it stands


def test_the_default_panel_is_the_one_that_the_evidence_chooses():
    table = evidence.read()["panels"]
    assert set(choice(table)) == set(PANEL) == set(table[table["chosen"]]["panel"].iloc[0].split(" + "))
    chosen = table[table["chosen"]].iloc[0]
    assert chosen["share_other"] >= 0.6 and chosen["of_ceiling"] >= 0.95
    assert set(Study.model_fields["absences"].default) == set(PANEL)


def test_the_texts_are_short_and_not_the_published_ones():
    study, published = evidence.short_texts(), load_study(evidence.LEADING)
    assert all(len(words(normalise(entry.text))) <= evidence.MOST_WORDS for entry in study.texts)
    assert len({entry.text for entry in study.texts}) == len(study.texts) > 60
    assert not {entry.text for entry in study.texts} & {entry.text for entry in published.texts}


def test_the_part_is_published(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_RUNS", str(tmp_path / "runs"))
    models = [tiny_loaded("llama", label="base"), tiny_loaded("llama", seed=1, label="twin", role="adapted")]
    texts = [{"id": "a", "text": "The cat sat"}, {"id": "b", "text": "Water boils"}]
    study = Study.model_validate({"name": "small", "models": [model.entry for model in models], "texts": texts})
    monkeypatch.setattr("xai_utils.study.explainer.load", lambda entry: models[[m.entry for m in models].index(entry)])
    evidence.run_panel(Explainer(study), tmp_path / "evidence")
    tables = evidence.read(tmp_path / "evidence")
    assert tables["panels"]["chosen"].sum() == 1 and tables["panels"]["cases"].unique().tolist() == [4]
    assert set(tables["panel_methods"]["method"]) > {"panel_shapley", "last_to_first", "ceiling"}
