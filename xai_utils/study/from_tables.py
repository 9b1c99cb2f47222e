"""What the tables of a study hold of one text, as results and trust cards: nothing is computed again."""

from __future__ import annotations

import pandas as pd

from xai_utils.attribution.result import Attribution
from xai_utils.attribution.tables import from_word_rows
from xai_utils.evaluation.trust import TrustCard, competence, completeness, controlled, faithful, stable
from xai_utils.study.tables import StudyTables
from xai_utils.text.words import normalise


def results_of(found: StudyTables, text: str, method: str) -> dict[str, Attribution]:
    """One method's scores of a text, a result a model; models without scores are left out."""
    entry = next(entry for entry in found.study.texts if entry.id == text)
    scores, proofs = (found.chosen(name, method) for name in ("word_scores", "certificates"))
    of_text = normalise(entry.text, found.study.normalisation)
    made = {}
    for label in found.labels:
        own, proof = (_of(table, text, label) for table in (scores, proofs))
        if len(own) and own["score"].notna().any():
            made[label] = from_word_rows(own, of_text, proof.iloc[0] if len(proof) else None)
    return made


def cards_of(found: StudyTables, text: str, method: str) -> dict[str, TrustCard]:
    """The trust cards of one text under the models of the pair; controls are the study's control models.

    A model whose behaviour is not in the tables has no card.
    """
    every = results_of(found, text, method)
    controls = {model.label for model in found.study.models if model.role == "control"} & every.keys()
    made = {}
    for label in found.pair:
        asked, steady, tests = (
            _of(found.table(name), text, label) for name in ("behaviour", "stability", "faithfulness")
        )
        if label not in every or asked.empty:
            continue
        steady = steady[steady["method"] == method] if len(steady) else steady
        made[label] = TrustCard(
            competence(asked.to_dict("records")[0]),
            completeness(every[label]),
            stable(steady.to_dict("records")[0] if len(steady) else None),
            faithful(every[label], tests if len(tests) else None),
            controlled(every[label], {name: every[name] for name in sorted(controls)}),
        )
    return made


def _of(table: pd.DataFrame, text: str, label: str) -> pd.DataFrame:
    return table[(table["text"] == text) & (table["model"] == label)] if len(table) else table
