"""The long studies on tiny models, and the texts that they read."""

import functools
import inspect
from dataclasses import replace

import pandas as pd
import pytest

from tests.tiny import tiny_loaded
from xai_utils.attribution.methods import METHODS
from xai_utils.errors import UserError
from xai_utils.evaluation.statistics import UNDECIDED
from xai_utils.models import adapters
from xai_utils.models.loading import content_hash
from xai_utils.study import evidence, explainer
from xai_utils.study.config import Study, load_study
from xai_utils.study.explainer import Explainer
from xai_utils.study.measures import is_punctuation
from xai_utils.study.tables import IG
from xai_utils.text.words import words

# ---- the corpus as it stands


def test_the_corpus_is_thirty_pairs_in_six_groups():
    study = load_study(evidence.CORPUS)
    texts = {entry.id: entry for entry in study.texts}
    assert len(texts) >= 60
    assert {entry.language for entry in texts.values()} == {"ru", "en"}
    for entry in texts.values():
        twin = texts[entry.pair]
        assert twin.pair == entry.id and twin.group == entry.group and twin.language != entry.language
        assert entry.answer.startswith(" ") and is_punctuation(entry.answer[-1])
        assert bool(entry.contrast) == bool(twin.contrast)
    counts = pd.Series([entry.group for entry in texts.values()]).value_counts()
    assert set(counts.index) == {"fact", "agreement", "negation", "idiom", "numeral", "name"} and set(counts) == {10}
    asked = [entry for entry in texts.values() if entry.text.endswith("?")]
    assert len({entry.observation for entry in asked}) >= 6  # else no test over pairs could pass


def test_no_two_texts_of_the_corpus_share_a_frame():
    for language in ("ru", "en"):
        read = [entry.text for entry in load_study(evidence.CORPUS).texts if entry.language == language]
        starts = [tuple(word.text.casefold() for word in words(text)[:3]) for text in read]
        assert len(set(starts)) == len(starts)


def test_the_further_texts_are_eight_others():
    default, further, corpus = (load_study(name) for name in (evidence.LEADING, evidence.FURTHER, evidence.CORPUS))
    both = evidence.with_texts_of(default, further)
    assert len(both.texts) == len(default.texts) + 8 and not both.published
    everything = [entry.text for study in (both, corpus) for entry in study.texts]
    assert len(set(everything)) == len(everything)


def test_first_pairs_of_every_group():
    study = load_study(evidence.CORPUS)
    some = evidence.first_texts(study, 1)
    assert [entry.id for entry in some.texts[:2]] == ["mercury", "mercury-ru"]
    assert len(some.texts) == 12 and len({entry.group for entry in some.texts}) == 6
    assert evidence.first_pairs(study, None) == [entry.id for entry in study.texts]
    assert set(evidence.first_pairs(study, 1)) < set(evidence.first_pairs(study, 2))


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
    real = {name: load_study(name) for name in (evidence.LEADING, evidence.FURTHER, evidence.CORPUS)}

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
            claims="original",
        )

    computed = []
    for name in (IG, "ablation", "attention"):
        line = METHODS[name]

        def counted(*args, _line=line, **settings):
            computed.append(args[1].text_id)
            return _line.function(*args, **settings)

        counted.__module__, counted.__name__ = line.function.__module__, line.function.__name__
        counted.__signature__ = inspect.signature(line.function)
        monkeypatch.setitem(METHODS, name, replace(line, source=counted))
    monkeypatch.setattr(evidence, "load_study", small)
    monkeypatch.setattr(explainer, "load", lambda entry: next(m for m in models if m.label == entry.label))
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


def test_randomised_weights_are_published_with_their_interval(tiny, monkeypatch):
    folder, _ = tiny
    small, texts = evidence.load_study, load_study(evidence.LEADING).texts[:3]
    monkeypatch.setattr(evidence, "load_study", lambda name: small(name).model_copy(update={"texts": texts}))
    monkeypatch.setattr(evidence, "SANE", ("ablation", "attention"))
    evidence.run("sanity", folder=folder)
    table = evidence.read(folder)["sanity"]
    assert table[["model", "method"]].drop_duplicates().to_numpy().tolist() == [
        ["base", "ablation"], ["base", "attention"], ["twin", "ablation"], ["twin", "attention"],
    ]  # fmt: skip
    assert table["share"].max() == 1

    @functools.wraps(evidence.randomisation)
    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(evidence, "randomisation", refuse)
    evidence.run("sanity", folder=folder)
    assert evidence.read(folder)["sanity"].equals(table)


def test_the_corpus_study_answers_its_questions(tiny):
    folder, computed = tiny
    evidence.run("corpus", folder=folder)
    asked = evidence.read(folder)["corpus_questions"]
    assert {"evenness", "negative", "ranks", "other_marks", "pieces"} <= set(asked["question"])
    assert set(asked["other"]) == {"twin"} and set(asked.loc[(asked["claim"] != ""), "claim"]) >= {"even", "less"}
    assert (asked.loc[(asked["claim"] != "") & (asked["n"] < 6), "verdict"] == UNDECIDED).all()
    done = len(computed)
    evidence.run("corpus", folder=folder)
    assert len(computed) == done


def test_fewer_pairs_are_a_smaller_study(tiny):
    folder, computed = tiny
    evidence.run("corpus", pairs=1, folder=folder)
    assert evidence.read(folder)["corpus_questions"]["n"].max() == 2 and len(set(computed)) == 4


def test_an_unknown_part_is_an_error():
    with pytest.raises(UserError, match="--only corpora: expected panel, baselines, sanity, corpus"):
        evidence.run("corpora")


# ---- what was computed with another checkpoint


def made_with(adapter: str) -> dict[str, pd.DataFrame]:
    rows = [("model base", "smollm2, 0123"), ("model ru-ts", f"smollm2, 0123+adapter:{adapter}, float32, cpu")]
    return {"corpus_provenance": pd.DataFrame(rows, columns=["what", "is"])}


def test_tables_of_a_former_checkpoint_are_known_as_such():
    default = load_study(evidence.LEADING)
    (twin,) = [model for model in default.models if model.label == "ru-ts"]
    now = content_hash(adapters.folder(twin))[:12]
    assert evidence.outdated(made_with(now), default) == []
    assert evidence.outdated(made_with("0" * 12), default) == ["ru-ts"]
    assert evidence.outdated(made_with(now) | {"sanity_provenance": made_with("0")["corpus_provenance"]}, default) == [
        "ru-ts"
    ]
    assert evidence.outdated({}, default) == []
