"""A study that changes on one cache: every table is that of a fresh cache, and no name comes out of the store."""

import dataclasses
import shutil

import pandas as pd
import pytest

from report.facts.words import _votes
from tests.tiny import tiny_loaded
from xai_utils.attribution import noise
from xai_utils.study import attention, comparison, evidence, explainer
from xai_utils.study.config import Study
from xai_utils.study.explainer import Explainer
from xai_utils.study.tables import StudyTables
from xai_utils.text.entry import TextEntry

TEXTS = (
    TextEntry(id="capital", text="The capital of France", answer=" is Paris.", rewordings=("A capital of France",)),
    TextEntry(id="planets", text="Сколько планет в Солнечной системе?", answer=" Восемь."),
)
METHODS = ("integrated_gradients", "ablation", "zero_ablation", "attention")
WEIGHTS = {"base": 0, "twin": 1, "start": 0, "changed": 1, "again": 0}  # seeds: two labels may mean the same weights


def study(name: str, labels: tuple[str, ...], texts: tuple[TextEntry, ...]) -> Study:
    roles = dict(zip(labels, ("base", "adapted", "control"), strict=False))
    return Study.model_validate(
        {
            "name": name,
            "models": [{"label": label, "role": roles[label], "model": "tiny/llama"} for label in labels],
            "texts": texts,
            "methods": METHODS,
            "draws": 4,
            "budget": 50,
            "continuation": 2,
        }
    )


BEFORE = study("before", ("base", "twin"), TEXTS)
SWAPPED = tuple(text.model_copy(update={"id": other.id}) for text, other in zip(TEXTS, TEXTS[::-1], strict=True))
RENAMED = TEXTS[0].model_copy(update={"id": "renamed"})
CHANGES = {
    "ids swapped, a label renamed": study("before", ("base", "changed"), SWAPPED),
    "a copy with an id and both labels renamed": study("copy", ("start", "changed"), (RENAMED, TEXTS[1])),
    "labels swapped": study("before", ("twin", "base"), TEXTS),
    "two labels with the same weights": study("before", ("base", "twin", "again"), TEXTS),
}


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def everything(patch):
    """All tables that a study's notebooks and the long studies keep, from the cache under a folder."""
    loaded = {seed: tiny_loaded("llama", seed=seed) for seed in (0, 1)}
    patch.setattr(explainer, "load", lambda entry: dataclasses.replace(loaded[WEIGHTS[entry.label]], entry=entry))

    def _everything(study: Study, runs) -> dict[str, pd.DataFrame]:
        patch.setenv("XAI_RUNS", str(runs))
        book = Explainer(study)
        base, *others = book.models
        first = study.texts[0].id
        tables = book.tables(METHODS)
        heads = attention.head_statistics(book)
        return tables | {
            "faithfulness": comparison.deletion_tests(book, tables["word_scores"]),
            "attention_heads": heads,
            "attention_first_head": attention.first_head(book),
            "attention_groups": attention.grouped_heads(book, heads),
            "attention_rollout": attention.drifts(book),
            "attention_change": attention.joined([attention.changes(book, base, other) for other in others]),
            "dose_response": book.cached_table(base, first, noise.dose_response, sigmas=[0.1], draws=4),
            "continuations": book.continuations(first)["continuations"],
            "sanity": evidence.sanity_of(book, others[-1], "ablation"),
        }

    return _everything


@pytest.fixture(scope="module")
def before(everything, tmp_path_factory):
    """The folder of a run of the study as it was."""
    folder = tmp_path_factory.mktemp("before")
    everything(BEFORE, folder)
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_every_table_is_that_of_a_fresh_cache(everything, before, change, tmp_path):
    shutil.copytree(before, tmp_path / "kept")
    found, fresh = (everything(CHANGES[change], tmp_path / runs) for runs in ("kept", "fresh"))
    for name, table in fresh.items():
        assert len(table) and table.notna().any(axis=None), name
        pd.testing.assert_frame_equal(found[name], table, check_exact=True, obj=name)


def test_names_cost_no_second_computation_and_stand_in_no_file(everything, tmp_path):
    texts = tuple(text.model_copy(update={"id": f"zz{text.id}"}) for text in TEXTS)
    everything(study("zzstudy", ("base", "twin"), texts), tmp_path)
    files = {path.name: path.read_bytes() for path in (tmp_path / "cache").rglob("*.json")}
    everything(CHANGES["ids swapped, a label renamed"], tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "cache").rglob("*.json")} == files
    text = b"".join(files.values()).decode()
    assert "France" in text  # words of the text are kept
    assert not any(name in text for name in ("zz", '"twin"', '"base"', '"role"'))


def test_each_name_is_the_asking_study_s(everything, before):
    tables = everything(study("copy", ("start", "changed"), SWAPPED), before)
    for name, table in tables.items():
        assert set(table["study"]) == {"copy"}, name
        for column in {"model", "base", "other"} & set(table):
            assert set(table[column]) <= {"start", "changed"}, name
    scores = tables["word_scores"]
    assert "France" in set(scores[scores["text"] == "planets"]["word"])


def test_tables_of_two_models_are_kept_by_both(everything, tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    asked = []

    def lengths(base, other, base_case, other_case, base_target, other_target, *, times: int = 1):
        asked.append((base.label, other.label, base_case.text_id, other_case.model))
        apart = (base.embedding - other.embedding).abs().max().item()
        counts = [len(base_case.tokens) * times, len(other_target.ids)]
        return {
            "swap": pd.DataFrame({"part": ["a", "b"], "score": [apart, 0.5]}),
            "bridge": pd.DataFrame({"n": counts}),
        }

    def tables(book, *asked, **settings):
        return book.compute([book.pair_job(*asked, lengths, **settings)])[0]

    book = Explainer(BEFORE)
    first = tables(book, "base", "twin", "planets")
    assert list(first["swap"].columns) == ["study", "text", "base", "other", "part", "score"]
    assert first["swap"].iloc[0].tolist()[:5] == ["before", "planets", "base", "twin", "a"]
    again = tables(Explainer(study("copy", ("start", "changed"), TEXTS)), "start", "changed", "planets")
    assert again["swap"]["base"].tolist() == ["start"] * 2 and len(asked) == 1
    assert again["swap"]["score"].equals(first["swap"]["score"]) and again["bridge"]["n"].equals(first["bridge"]["n"])
    back = tables(book, "twin", "base", "planets")
    assert back["swap"].iloc[0].tolist()[2:4] == ["twin", "base"] and len(asked) == 2
    same = tables(Explainer(CHANGES["two labels with the same weights"]), "base", "again", "planets")
    assert same["swap"]["score"].iloc[0] == 0 and len(asked) == 3
    tables(book, "base", "twin", "planets", times=2)
    tables(book, "base", "twin", "planets", times=1)
    assert len(asked) == 4


def test_a_word_that_comes_twice_is_told_apart_in_tables_and_sentences():
    words = ["Tom", "met", "Anna", "then", "Anna", "met"]
    study = Study.model_validate(
        {
            "name": "s",
            "models": [{"label": "base", "model": "m"}],
            "texts": [{"id": "t", "text": " ".join(words), "answer": " Tom"}],
            "methods": ["ablation", "lime"],
        }
    )
    keys = {"study": "s", "text": "t", "model": "base", "role": "base", "target": "logprob", "target_text": " Tom"}
    rows = [
        keys
        | {"method": method, "baseline": "mean", "sink": "kept", "unit": "nats", "is_word": True, "word": word}
        | {"start": 5 * place, "end": 5 * place + 4, "pieces": 1, "score": score, "error": 0.0, "additive": False}
        for method, scores in (("ablation", [0, 1, 2, 0, 5, 4]), ("lime", [0, 1, 5, 0, 2, 4]))
        for place, (word, score) in enumerate(zip(words, map(float, scores), strict=True))
    ]
    found = StudyTables(study, {"word_scores": pd.DataFrame(rows)})
    votes, asked = _votes(found, "t")
    assert asked == 2 and votes[0].word in ("Anna (1)", "Anna (2)") and votes[0].count == 1  # two words, a vote each
