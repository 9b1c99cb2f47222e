"""The long studies on tiny models, and their tables and sentences on tables made by hand."""

import functools
import inspect
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.tiny import tiny_loaded
from xai_utils import adapters, corpus_tables, evidence, evidence_sentences, explain
from xai_utils import evidence_tables as tables_of
from xai_utils.compare import FOUND, NONE, UNDECIDED, paired_test
from xai_utils.evidence_sentences import chosen_methods
from xai_utils.explain import METHODS, Explainer
from xai_utils.measured import IG
from xai_utils.models import content_hash
from xai_utils.study import Study, UserError, load_study
from xai_utils.text import words

# ---- the corpus as it stands


def test_the_corpus_is_thirty_pairs_in_six_groups():
    study = load_study(evidence.CORPUS)
    texts = {entry.id: entry for entry in study.texts}
    assert len(texts) >= 60
    assert {entry.language for entry in texts.values()} == {"ru", "en"}
    for entry in texts.values():
        twin = texts[entry.pair]
        assert twin.pair == entry.id and twin.group == entry.group and twin.language != entry.language
        assert entry.answer.startswith(" ") and corpus_tables.is_punctuation(entry.answer[-1])
        assert bool(entry.contrast) == bool(twin.contrast)
    counts = pd.Series([entry.group for entry in texts.values()]).value_counts()
    assert set(counts.index) == {"fact", "agreement", "negation", "idiom", "numeral", "name"} and set(counts) == {10}
    asked = [entry for entry in texts.values() if entry.text.endswith("?")]
    assert len({evidence.observation(entry) for entry in asked}) >= 6  # else no test over pairs could pass


def test_no_two_texts_of_the_corpus_share_a_frame():
    for language in ("ru", "en"):
        read = [entry.text for entry in load_study(evidence.CORPUS).texts if entry.language == language]
        starts = [tuple(word.text.casefold() for word in words(text)[:3]) for text in read]
        assert len(set(starts)) == len(starts)


def test_the_further_texts_are_eight_others():
    default, further, corpus = (load_study(name) for name in (evidence.DEFAULT, evidence.FURTHER, evidence.CORPUS))
    both = evidence.joined(default, further)
    assert len(both.texts) == 16 and not both.published
    everything = [entry.text for study in (both, corpus) for entry in study.texts]
    assert len(set(everything)) == len(everything)


def test_first_pairs_of_every_group():
    study = load_study(evidence.CORPUS)
    some = evidence.first_texts(study, 1)
    assert [entry.id for entry in some.texts[:2]] == ["mercury", "mercury-ru"]
    assert len(some.texts) == 12 and len({entry.group for entry in some.texts}) == 6
    assert evidence.first_pairs(study, None) == [entry.id for entry in study.texts]
    assert set(evidence.first_pairs(study, 1)) < set(evidence.first_pairs(study, 2))


# ---- tables from tables


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
    found = corpus_tables.measures(tables, "mean").set_index(["measure", "text", "model"])["value"]
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
    found = corpus_tables.measures(tables, "mean")
    left = found[(found["text"] == "t1") & (found["model"] == "a")]["measure"]
    assert set(left) == {"question_mark_ablation", "other_marks_ablation", "answer"}


def test_every_question_gets_its_verdict_and_swapping_the_models_turns_it():
    pairs = {f"t{index}": f"t{index}" for index in range(8)}
    found = corpus_tables.tests(corpus_tables.measures(made_tables(EVEN, PEAKED), "mean"), pairs, "a", "mean")
    verdicts = found.set_index(["question", "model", "paired"])["verdict"]
    assert verdicts["entropy", "b", True] == verdicts["gini", "b", True] == "holds"
    assert verdicts["question_mark", "a", False] == verdicts["question_mark", "b", False] == "holds"
    assert verdicts["question_mark_ablation", "a", False] == "the opposite holds"
    assert verdicts["first_position", "a", False] == "holds"
    assert verdicts["pieces", "b", True] == "no difference found"
    assert (found["p_adjusted"] >= found["p"] - 1e-12).all()
    turned = corpus_tables.tests(corpus_tables.measures(made_tables(PEAKED, EVEN), "mean"), pairs, "a", "mean")
    assert turned.set_index(["question", "model", "paired"])["verdict"]["entropy", "b", True] == "the opposite holds"
    same = corpus_tables.tests(corpus_tables.measures(made_tables(EVEN, EVEN), "mean"), pairs, "a", "mean")
    assert set(same[same["paired"]]["verdict"]) == {"no difference found"}


def test_the_two_texts_of_a_pair_are_one_observation():
    measured = corpus_tables.measures(made_tables(EVEN, PEAKED), "mean")
    pairs = {f"t{index}": f"p{index // 2}" for index in range(8)}
    row = corpus_tables.tests(measured, pairs, "a", "mean").set_index(["question", "paired"]).loc[("entropy", True)]
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
    found = corpus_tables.changes(tables, "a", ("mean", "eos")).set_index("model")
    assert found.loc["b", ["texts", "words", "real"]].tolist() == [1, 5, 5]
    assert found.loc["b", "mean_size"] == pytest.approx(np.abs(np.subtract(EVEN[0], PEAKED[0])).mean())


def test_a_model_without_certified_scores_counts_no_words():
    tables = made_tables(EVEN, PEAKED)
    proofs = tables["certificates"]
    tables["certificates"] = proofs.assign(converged=proofs["converged"] & (proofs["model"] != "b"))
    found = corpus_tables.changes(tables, "a", ("mean",)).set_index("model")
    assert found.loc["b", list(corpus_tables.COUNTS)].tolist() == [0, 0, 0, 0]
    once = corpus_tables.changes(made_tables(EVEN, PEAKED), "a", ("mean",)).set_index("model")
    assert once.loc["b", list(corpus_tables.COUNTS)].tolist() == [0, 0, 0, 0]  # no second baseline, so no stable sign


def test_controls_and_other_baselines_are_corrected_apart():
    measured = corpus_tables.measures(made_tables(EVEN, PEAKED), "mean")
    pairs = {f"t{index}": f"t{index}" for index in range(8)}
    alone = corpus_tables.tests(measured, pairs, "a", "mean").set_index(["question", "model", "paired"])["p_adjusted"]
    control = measured[measured["model"] == "b"].assign(model="c")
    both = corpus_tables.tests(pd.concat([measured, control]), pairs, "a", "mean", ["c"])
    again = both.set_index(["question", "model", "paired"])["p_adjusted"]
    pd.testing.assert_series_equal(again.loc[alone.index], alone)


def test_a_small_effect_of_the_claimed_sign_is_not_a_large_one():
    measured = corpus_tables.measures(made_tables(EVEN, PEAKED), "mean")
    first = measured["measure"] == "first_position"
    small = measured.assign(value=measured["value"].where(~first, -0.1 - measured.index / 1e4))
    pairs = {f"t{index}": f"t{index}" for index in range(8)}
    found = corpus_tables.tests(small, pairs, "a", "mean").set_index(["question", "model", "paired"])["verdict"]
    assert found["first_position", "a", False] == "does not hold"


# ---- the run itself


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The command on tiny models and a few texts of the real studies; counts what is computed."""
    monkeypatch.setenv("XAI_RUNS", str(tmp_path / "runs"))
    models = [
        tiny_loaded("llama", label="base"),
        tiny_loaded("llama", seed=1, label="twin", role="adapted"),
        tiny_loaded("llama", seed=2, label="shuffled", role="control"),
    ]
    real = {name: load_study(name) for name in (evidence.DEFAULT, evidence.FURTHER, evidence.CORPUS)}

    few = {"mercury", "mercury-ru", "apples", "apples-ru", "boiling", "boiling-ru"}

    def small(name):
        texts = [entry for entry in real[name].texts if name != evidence.CORPUS or entry.id in few]
        return Study(
            name="small",
            models=tuple(model.entry for model in models),
            texts=tuple(texts if name == evidence.CORPUS else texts[:1]),
            budget=200,
            tolerance=0.2,
            methods=(IG, "ablation", "attention"),
            baseline="mean",
            baselines=("mean", "zero"),
        )

    computed = []
    for name in (IG, "ablation", "attention"):
        line = METHODS[name]

        def counted(*args, _line=line, **settings):
            computed.append(args[1].text_id)
            return _line.function(*args, **settings)

        counted.__module__, counted.__name__ = line.function.__module__, line.function.__name__
        counted.__signature__ = inspect.signature(line.function)
        monkeypatch.setitem(METHODS, name, explain.Method(counted, "", line.fixed))
    monkeypatch.setattr(evidence, "load_study", small)
    monkeypatch.setattr(explain, "load", lambda entry: next(m for m in models if m.label == entry.label))
    return tmp_path / "evidence", computed


def test_a_killed_run_goes_on_where_it_was(tiny, monkeypatch):
    folder, computed = tiny
    tables, asked = Explainer.tables, []

    def killed(book, *args, **settings):
        asked.append(settings)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return tables(book, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Explainer, "tables", killed)
        with pytest.raises(KeyboardInterrupt):
            evidence.run("baselines", folder=folder)
    assert set(evidence.read(folder)["baselines"]["baseline"]) == {"mean", "zero"}  # published as far as it came
    before = len(computed)
    evidence.run("baselines", folder=folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before > 0 and len(computed) > before
    done = len(computed)
    evidence.run("baselines", folder=folder)
    assert len(computed) == done  # nothing a second time
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    table = evidence.read(folder)["baselines"]
    assert table[["baseline", "sink"]].to_numpy().tolist() == [
        ["mean", "kept"], ["zero", "kept"], ["mean", "moved"], ["zero", "moved"],
        ["sampled", "kept"], ["eos", "kept"], ["space", "kept"],
    ]  # fmt: skip


def test_methods_are_chosen_on_texts_of_their_own(tiny):
    folder, computed = tiny
    summary = evidence.run("methods", folder=folder)
    tables = evidence.read(folder)
    assert set(computed) == {load_study(evidence.FURTHER).texts[0].id}
    table = tables["methods"]
    assert dict(zip(table["method"], table["family"], strict=True)) == {
        IG: "gradients", "ablation": "influence", "attention": "attention",
        "first_to_last": "position", "last_to_first": "position",
    }  # fmt: skip
    assert (table["cases"] == 2).all()  # the pair, not the control
    assert "the best gradient method is integrated gradients" in summary.read_text(encoding="utf-8")


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


def test_randomised_weights_are_published_with_their_interval(tiny, monkeypatch):
    folder, _ = tiny
    small, texts = evidence.load_study, load_study(evidence.DEFAULT).texts[:3]
    monkeypatch.setattr(evidence, "load_study", lambda name: small(name).model_copy(update={"texts": texts}))
    monkeypatch.setattr(evidence, "SANE", ("ablation", "attention"))
    summary = evidence.run("sanity", folder=folder)
    table = evidence.read(folder)["sanity"]
    assert table[["model", "method"]].drop_duplicates().to_numpy().tolist() == [
        ["base", "ablation"], ["base", "attention"], ["twin", "ablation"], ["twin", "attention"],
    ]  # fmt: skip
    assert table["share"].max() == 1
    line = table[(table["share"] == 1) & (table["method"] == "ablation")].iloc[0]
    text = summary.read_text(encoding="utf-8")
    assert f"ablation under base {line['correlation']:+.2f}" in text and "drawn anew in all layers" in text

    @functools.wraps(evidence.randomisation)
    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(evidence, "randomisation", refuse)
    evidence.run("sanity", folder=folder)
    assert evidence.read(folder)["sanity"].equals(table)


def test_the_corpus_study_answers_its_questions(tiny):
    folder, computed = tiny
    summary = evidence.run("corpus", folder=folder)
    tables = evidence.read(folder)
    tests = tables["corpus_tests"]
    asked = {(question.measure, question.paired) for question in corpus_tables.QUESTIONS}
    missing = asked - set(tests[["question", "paired"]].itertuples(index=False, name=None))
    assert missing == set()
    assert set(tests[tests["paired"]]["model"]) == {"twin", "shuffled"}
    assert set(tests["verdict"]) <= {"holds", "the opposite holds", FOUND, NONE, UNDECIDED}
    assert set(tables["corpus_changes"]["model"]) == {"twin", "shuffled"}
    assert (tables["corpus_changes"]["real"] > 0).all()
    text = summary.read_text(encoding="utf-8")
    assert "## The original's claims" in text and "spreads importance more evenly" in text
    done = len(computed)
    evidence.run("corpus", folder=folder)
    assert len(computed) == done


def test_fewer_pairs_are_a_smaller_study(tiny):
    folder, computed = tiny
    evidence.run("corpus", pairs=1, folder=folder)
    assert len(set(evidence.read(folder)["corpus_measures"]["text"])) == 4


def test_an_unknown_part_is_an_error():
    with pytest.raises(UserError, match="--only corpora: expected baselines, methods, sanity, corpus"):
        evidence.run("corpora")


# ---- sentences


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
    row = {"question": "entropy", "asked": "evenness", "paired": True, "claim": corpus_tables.EVEN, "sign": 1}
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
        corpus_tables.EVEN: "holds",
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
        columns=["model", *corpus_tables.COUNTS, "mean_size"],
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


# ---- what was computed with another checkpoint


def made_with(adapter: str) -> dict[str, pd.DataFrame]:
    rows = [("model base", "smollm2, 0123"), ("model ru-ts", f"smollm2, 0123+adapter:{adapter}, float32, cpu")]
    return {"corpus_provenance": pd.DataFrame(rows, columns=["what", "is"])}


def test_tables_of_a_former_checkpoint_are_known_as_such():
    default = load_study(evidence.DEFAULT)
    (twin,) = [model for model in default.models if model.label == "ru-ts"]
    now = content_hash(adapters.folder(twin.adapter))[:12]
    assert evidence.outdated(made_with(now), default) == []
    assert evidence.outdated(made_with("0" * 12), default) == ["ru-ts"]
    assert evidence.outdated(made_with(now) | {"sanity_provenance": made_with("0")["corpus_provenance"]}, default) == [
        "ru-ts"
    ]
    assert evidence.outdated({}, default) == []
