"""The long studies behind report/evidence/: what a baseline costs, and the original's claims over a corpus.

Everything goes through the Explainer's cache, so a run that was killed goes on where it was; each step publishes what
is there. `make report` reads the published tables and never runs this.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from xai_utils.attribution.absence import ABSENCES
from xai_utils.attribution.methods import METHODS
from xai_utils.attribution.result import Attribution
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.evaluation.panels import candidates, cases_of, choice, confidence, rankings, subset_values
from xai_utils.evaluation.sanity import layers, randomisation
from xai_utils.files import ROOT
from xai_utils.models import adapters
from xai_utils.models.loading import LoadedModel, content_hash
from xai_utils.study import evidence_tables as tables_of
from xai_utils.study import questions
from xai_utils.study.config import Study, load_study
from xai_utils.study.explainer import Explainer
from xai_utils.study.results import provenance, write_csv
from xai_utils.study.store import named
from xai_utils.study.tables import IG, StudyTables
from xai_utils.text.cases import Case
from xai_utils.text.tokens import tokenization_table
from xai_utils.text.words import words

FOLDER = ROOT / "report" / "evidence"
LEADING, FURTHER, CORPUS, SHORT = (f"studies/{name}.yaml" for name in ("default", "evidence", "corpus", "panel"))
PARTS = ("panel", "baselines", "sanity", "corpus")

MOST_WORDS = 9  # of a text on which every subset of words is evaluated
OTHER_METHODS = (
    IG,
    "fixed_steps",
    "input_x_gradient",
    "cp_lrp",
    "attn_lrp_norm",
    "sensitivity",
    "attention",
    "rollout",
)
SEQUENCES = 4  # of random tokens, for the sampled baseline
TRIED = ("zero", "mean", "eos", "space")  # on all texts, beside the study's own
LIMIT = 200  # gradient evaluations for baselines that are only tried
MOVED_TEXTS = 4  # texts, the first of both studies by turns, on which every position is moved, or draws are averaged
SANE = (IG, "input_x_gradient", "ablation", "attention", "rollout")  # methods, some of each family
ROUGH = {"tolerance": 0.1, "budget": 500}  # of integrated gradients under such weights: enough for ranks
RANDOMISED = (0.25, 1.0)  # shares of the layers that are re-randomised, from the top


def run(only: str | None = None, pairs: int | None = None, folder: Path = FOLDER) -> Path:
    """Compute and publish all parts, or `only` one of them; `pairs` limits the corpus, a group.

    Returns the folder. Raises UserError for an unknown part and whatever the models and studies raise.
    """
    if only not in (None, *PARTS):
        raise UserError(f"--only {only}: expected {', '.join(PARTS)}; leave it out for all")
    if only in (None, "panel"):
        run_panel(Explainer(short_texts()), folder)
    if only in (None, "baselines"):
        run_baselines(Explainer(with_texts_of(load_study(LEADING), load_study(FURTHER))), folder)
    if only in (None, "sanity"):
        run_sanity(Explainer(load_study(LEADING)), folder)
    if only in (None, "corpus"):
        run_corpus(Explainer(first_texts(load_study(CORPUS), pairs)), folder)
    return folder


def short_texts() -> Study:
    """The panel's texts, and those of the other studies that are as short; the published study's are not among them."""
    short = load_study(SHORT)
    others = [entry for name in (CORPUS, FURTHER) for entry in load_study(name).texts]
    few = tuple(entry for entry in others if len(words(entry.text)) <= MOST_WORDS)
    return short.model_copy(update={"texts": short.texts + few})


def with_texts_of(published: Study, further: Study) -> Study:
    """The published study with the further texts behind its own: same models, same settings."""
    return published.model_copy(update={"texts": published.texts + further.texts, "published": False})


def first_pairs(study: Study, count: int | None) -> list[str]:
    """Texts of the first `count` translation pairs of every group, in the study's order; all without a count."""
    seen: dict[str | None, list[str]] = {}
    chosen = []
    for entry in study.texts:
        pairs = seen.setdefault(entry.group, [])
        if entry.observation not in pairs:
            pairs.append(entry.observation)
        if count is None or pairs.index(entry.observation) < count:
            chosen.append(entry.id)
    return chosen


def first_texts(study: Study, pairs: int | None) -> Study:
    """The study cut to the first pairs of every group."""
    keep = set(first_pairs(study, pairs))
    return study.model_copy(update={"texts": tuple(entry for entry in study.texts if entry.id in keep)})


def roles(study: Study) -> tuple[list[str], list[str]]:
    """Labels of the pair (base first) and of the controls."""
    by_role = {role: [m.label for m in study.models if m.role == role] for role in ("base", "adapted", "control")}
    return by_role["base"][:1] + by_role["adapted"][:1], by_role["control"]


# ---- baselines


def run_baselines(book: Explainer, folder: Path) -> None:
    """Integrated gradients at every baseline on all texts, and with every position moved on a few."""
    study = book.study
    scores, proofs = [], []
    for found in baseline_steps(book):
        scores.append(found["word_scores"])
        proofs.append(found["certificates"])
        certificates = pd.concat(proofs, ignore_index=True)
        table = tables_of.baseline_table(pd.concat(scores, ignore_index=True), certificates, study.baseline, LIMIT)
        publish(table.assign(default=study.baseline), "baselines", folder)
        publish(certificates, "baselines_cases", folder)
        publish(provenance(study, book.models.values()), "baselines_provenance", folder)


def baseline_steps(book: Explainer) -> Iterator[dict[str, pd.DataFrame]]:
    """The study's own baselines first, with their full budget; what moves every position or samples, on few texts."""
    study = book.study
    pair, texts = roles(study)[0], [entry.id for entry in study.texts]
    few = [texts[index * len(texts) // MOVED_TEXTS] for index in range(min(MOVED_TEXTS, len(texts)))]
    kept: dict[str, Any] = {"keep_sink": True}
    moved: dict[str, Any] = {"keep_sink": False}
    steps: list[tuple[list[str], dict[str, Any]]] = [
        *((texts, kept | {"baseline": name, "budget": study.budget}) for name in book.baselines),
        *((few, moved | {"baseline": name, "budget": study.budget}) for name in book.baselines),
        (few, kept | {"baseline": "sampled", "sequences": SEQUENCES, "budget": 2 * LIMIT}),
        *((texts, kept | {"baseline": name, "budget": LIMIT}) for name in TRIED if name not in book.baselines),
    ]
    for chosen, settings in steps:
        announce(f"baselines: {settings}, {len(chosen)} texts")
        found = book.tables([IG], chosen, pair, **settings)
        found["certificates"] = found["certificates"].assign(budget=settings["budget"])
        yield found


# ---- panel


def run_panel(book: Explainer, folder: Path) -> None:
    """Candidate panels of absences, and how the chosen one ranks words beside other methods and position.

    The tables are first published without the other methods, which take longer.
    """
    announce(f"panel: all subsets of {len(book.study.texts)} texts, {', '.join(ABSENCES)}")
    values = book.compute([book.job(*case, subset_values) for case in book.pairs], "subsets")
    cases = cases_of(pd.concat(values, ignore_index=True))
    table = candidates(cases)
    publish(table, "panels", folder)
    publish(rankings(cases, choice(table)), "panel_methods", folder)
    publish(confidence(cases, choice(table)), "panel_confidence", folder)
    publish(provenance(book.study, book.models.values()), "panel_provenance", folder)
    announce(f"panel: {', '.join(OTHER_METHODS)} on the same texts")
    scores = book.tables(OTHER_METHODS, list(dict.fromkeys(case.text for case in cases)))["word_scores"]
    publish(rankings(cases, choice(table), scores[scores["is_word"]]), "panel_methods", folder)


# ---- sanity


def run_sanity(book: Explainer, folder: Path) -> None:
    """Whether a ranking of words survives weights re-randomised from the top, on the published texts and pair."""
    found = []
    for label in roles(book.study)[0]:
        for name in SANE:
            announce(f"sanity: {name} under {label} with layers re-randomised")
            found.append(sanity_of(book, label, name))
            publish(pd.concat(found, ignore_index=True), "sanity", folder)
    publish(provenance(book.study, book.models.values()), "sanity_provenance", folder)


def sanity_of(book: Explainer, label: str, method: str) -> pd.DataFrame:
    """Table `sanity` of one method and model, cached; the true scores are those that the study publishes."""
    study, model, function = book.study, book.models[label], METHODS[method].function
    cases = [(book.case(label, entry.id), book.target(label, entry.id)) for entry in study.texts]
    settings = {name: ROUGH.get(name, value) for name, value in book.settings(method).items()}

    def explain(asked: LoadedModel, case: Case, target: Target) -> Attribution:
        return (
            book.attribute(label, case.text_id, method) if asked is model else function(asked, case, target, **settings)
        )

    stages = [math.ceil(share * len(layers(model.model))) for share in RANDOMISED]
    parts = [model, cases, randomisation, function, settings, book.settings(method), stages, study.seed]
    table = book.kept.remember(parts, lambda: randomisation(model, cases, explain, method, stages, study.seed))
    return named(table, {"study": study.name, "model": label, "role": model.role}).assign(method=method)


# ---- corpus


def run_corpus(book: Explainer, folder: Path) -> None:
    """The questions of questions.py, the original's claims among them, put to the corpus."""
    study = book.study
    announce(f"{', '.join(study.methods)} on {len(study.texts)} texts")
    pair = roles(study)[0]
    tokens = tokenization_table(book.case(label, entry.id) for label in pair for entry in study.texts)
    found = StudyTables(study, book.tables(study.methods, models=pair) | {"tokenization": tokens})
    publish(questions.tests(found).drop(columns="study"), "corpus_questions", folder)
    publish(provenance(study, book.models.values()), "corpus_provenance", folder)


# ---- published files


def announce(step: str) -> None:
    print(step, file=sys.stderr, flush=True)


def publish(frame: pd.DataFrame, name: str, folder: Path) -> None:
    write_csv(frame, folder / f"{name}.csv")


def read(folder: Path = FOLDER) -> dict[str, pd.DataFrame]:
    """The published tables by name; none where nothing was published."""
    tables = {file.stem: pd.read_csv(file) for file in sorted(folder.glob("[!.]*.csv"))}
    return {name: table.fillna({"claim": ""}) if "claim" in table else table for name, table in tables.items()}


def computed_with(tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """Label and revision of the models that the tables come from, once each."""
    made = [table for name, table in tables.items() if name.endswith("_provenance")]
    rows = [row for table in made for row in zip(table["what"], table["is"], strict=True)]
    models = ((what.removeprefix("model "), revision) for what, revision in rows if what.startswith("model "))
    return list(dict.fromkeys(models))


def outdated(tables: Mapping[str, pd.DataFrame], study: Study) -> list[str]:
    """Labels of the study's models whose adapter is another now than when the tables were computed."""
    former = []
    for model in study.models:
        revisions = [revision for label, revision in computed_with(tables) if label == model.label]
        if model.adapter and revisions:
            now = f"+adapter:{content_hash(adapters.folder(model))[:12]}"
            if not all(now in revision for revision in revisions):
                former.append(model.label)
    return former
