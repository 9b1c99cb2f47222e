"""What notebook 05 computes for a whole study: behaviour, stability, deletion tests, every model beside the base.

The measures are those of the package `evaluation`; here they are applied to all cases of a study.
"""

from __future__ import annotations

import pandas as pd

from xai_utils.attribution.target import Target
from xai_utils.evaluation.agreement import STABILITY, leaderboard, one_setting, stability_row
from xai_utils.evaluation.behaviour import behaviour
from xai_utils.evaluation.faithfulness import faithfulness
from xai_utils.evaluation.statistics import differences
from xai_utils.models.loading import LoadedModel
from xai_utils.study.explainer import Explainer
from xai_utils.study.jobs import Job
from xai_utils.study.progress import progress
from xai_utils.study.tables import IG, PANEL_METHOD, StudyTables
from xai_utils.text.cases import Case

DIFFERENCE = (
    *("study", "text", "base", "other", "target", "target_text", "method", "baseline", "sink", "unit", "word", "start"),
    *("end", "pieces_base", "pieces_other", "score_base", "score_other", "difference", "floor", "beyond_floor"),
    *("sign_stable", "difference_low", "difference_high"),
)


def behaviours(book: Explainer, label: str | None = None) -> pd.DataFrame:
    """Table `behaviour` of a study: how sure every model, or one, is of every answer, and how it would go on."""
    wanted = [case for case in book.pairs if label in (None, case[0])]
    return pd.concat(book.compute([book.job(*case, _behaviour) for case in wanted]), ignore_index=True)


def _behaviour(model: LoadedModel, case: Case, target: Target) -> pd.DataFrame:
    return behaviour(model, case)


def stabilities(book: Explainer) -> pd.DataFrame:
    """Table `stability` of a study: how far the absences of the panel agree on the words of each case.

    Empty where the study does not ask for panel Shapley values.
    """
    wanted = book.pairs if PANEL_METHOD in book.study.methods else []
    rows = [stability_row(book.attribute(*case, PANEL_METHOD)) for case in progress(wanted, "comparing absences")]
    return pd.DataFrame(rows, columns=list(STABILITY))


def deletion_tests(book: Explainer, word_scores: pd.DataFrame) -> pd.DataFrame:
    """Table `faithfulness` of a study: every case under every absence, methods in their main setting, from the store.

    Each case keeps to the study's budget, and what is finished outlives a run that was stopped.
    """
    scores = one_setting(word_scores[word_scores["method"].isin(book.study.methods)], book.study.baseline)
    jobs = [_deletion_test(book, scores, *case) for case in book.pairs]
    return pd.concat(book.compute(jobs, "deleting"), ignore_index=True)


def _deletion_test(book: Explainer, scores: pd.DataFrame, label: str, text: str) -> Job:
    target, study = book.target(label, text), book.study
    wanted = (scores["model"] == label) & (scores["text"] == text) & (scores["target"] == target.kind)
    rows = scores[wanted & (scores["target_text"] == target.text)]
    needed = rows[["method", "baseline", "sink", "unit", "word", "score"]]
    settings = {"absences": study.absences, "budget": study.budget, "seed": study.seed}
    return book.job(label, text, faithfulness, word_scores=needed, **settings)


def leaderboards(tables: StudyTables) -> pd.DataFrame:
    """Table `leaderboard`: methods by faithfulness, one list a model."""
    table = tables.table("faithfulness")
    found = []
    for label in tables.labels:
        board = leaderboard(table[table["model"] == label], tables.study.seed)
        role = next(model.role for model in tables.study.models if model.label == label)
        keys = {"study": tables.study.name, "model": label, "role": role}
        found.append(pd.concat([pd.DataFrame([keys] * len(board)), board], axis=1))
    return pd.concat(found, ignore_index=True)


def beside_base(tables: StudyTables) -> pd.DataFrame:
    """Table `difference`: every other model beside the base, on texts that have an answer; empty for one model.

    Without an answer each model is asked about its own next token, and two events cannot be subtracted. Of a text that
    is cut off two models may have read different parts.
    """
    scores = tables.explained("word_scores")
    scores = scores[scores["text"].isin(tables.answered - tables.cut.keys())]
    others = [label for label in tables.labels if label != tables.base] if len(scores) else []
    found = [
        differences(scores, tables.table("certificates"), tables.base, other, tables.study.baseline) for other in others
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(DIFFERENCE))


def not_comparable(tables: StudyTables) -> pd.DataFrame:
    """Texts, a row each, that no difference can be taken on, and why."""
    rows: list[dict[str, object]] = [
        {"text": text.id, "why": "no answer: each model's own next token is another event"}
        for text in tables.study.texts
        if text.id not in tables.answered
    ]
    rows += [{"text": text, "why": f"cut off under {label}"} for text, label in tables.cut.items()]
    own = tables.chosen("certificates", IG)
    for row in own[~own["converged"].astype(bool)].itertuples() if len(own) else []:
        rows.append({"text": row.text, "why": f"not converged under {row.model} at the {row.baseline} baseline"})
    return pd.DataFrame(rows, columns=["text", "why"])
