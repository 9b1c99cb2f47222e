"""What notebook 05 computes for a whole study: behaviour, highest words, deletion tests, every model beside the base.

The measures are those of the room `evaluation`; here they are put to all cases of a study.
"""

from __future__ import annotations

import pandas as pd

from xai_utils.attribution.methods import method_name
from xai_utils.attribution.target import Target
from xai_utils.evaluation.agreement import leaderboard, one_setting
from xai_utils.evaluation.behaviour import behaviour
from xai_utils.evaluation.faithfulness import faithfulness
from xai_utils.evaluation.stability import STABILITY, stability_row
from xai_utils.evaluation.statistics import differences
from xai_utils.models.loading import LoadedModel
from xai_utils.study.explainer import Explainer
from xai_utils.study.jobs import Job
from xai_utils.study.progress import progress
from xai_utils.study.tables import IG, Measured
from xai_utils.text.cases import Case
from xai_utils.text.words import told_apart

TOP = 3
PANEL_METHOD = "panel_shapley"
DIFFERENCE = (
    *("study", "text", "base", "other", "target", "target_text", "method", "baseline", "sink", "unit", "word", "start"),
    *("end", "pieces_base", "pieces_other", "score_base", "score_other", "difference", "floor", "beyond_floor"),
    *("sign_stable", "difference_low", "difference_high"),
)


def highest(measured: Measured, text: str, k: int = TOP) -> pd.DataFrame:
    """The `k` highest words of one text, a row a method, a column a model; certified scores alone."""
    rows = []
    for method in measured.study.methods:
        found = measured.certified("word_scores", method)
        found = found[(found["text"] == text) & found["is_word"].astype(bool)]
        for label, rows_of in found.groupby("model", sort=False):
            part = rows_of.assign(word=told_apart(rows_of["word"].tolist())).dropna(subset="score")
            top = part.sort_values("score", ascending=False, kind="stable")["word"].head(k)
            rows.append({"method": method_name(method), "model": label, "words": " · ".join(top)})
    if not rows:
        return pd.DataFrame(columns=["method", *measured.labels])
    wide = pd.DataFrame(rows).pivot(index="method", columns="model", values="words")
    order = [method_name(method) for method in measured.study.methods]
    return wide.reindex([name for name in order if name in wide.index])[
        [label for label in measured.labels if label in wide]
    ].reset_index()


def behaviours(book: Explainer) -> pd.DataFrame:
    """Table `behaviour` of a study: how sure every model is of every answer, and how it would go on by itself."""
    wanted = _cases(book)
    book.fill(book.job(*case, _behaviour) for case in wanted)
    return pd.concat([book.cached_table(*case, _behaviour) for case in wanted], ignore_index=True)


def _behaviour(model: LoadedModel, case: Case, target: Target) -> pd.DataFrame:
    return behaviour(model, case)


def stabilities(book: Explainer) -> pd.DataFrame:
    """Table `stability` of a study: how far the absences of the panel agree on the words of each case.

    Empty where the study does not ask for panel Shapley values.
    """
    wanted = _cases(book) if PANEL_METHOD in book.study.methods else []
    rows = [stability_row(book.attribute(*case, PANEL_METHOD)) for case in progress(wanted, "comparing absences")]
    return pd.DataFrame(rows, columns=list(STABILITY))


def deletion_tests(book: Explainer, word_scores: pd.DataFrame) -> pd.DataFrame:
    """Table `faithfulness` of a study: every case under every absence, methods in their main setting, from the store.

    Each case keeps to the study's budget, and what is finished outlives a run that was stopped.
    """
    scores = one_setting(word_scores[word_scores["method"].isin(book.study.methods)], book.study.baseline)
    wanted = _cases(book)
    book.fill(_deletion_test(book, scores, *case) for case in progress(wanted, "deleting"))
    return pd.concat([_deletion_test(book, scores, *case).result() for case in wanted], ignore_index=True)


def _cases(book: Explainer) -> list[tuple[str, str]]:
    return [(label, entry.id) for label in book.models for entry in book.study.texts]


def _deletion_test(book: Explainer, scores: pd.DataFrame, label: str, text: str) -> Job:
    target, study = book.target(label, text), book.study
    wanted = (scores["model"] == label) & (scores["text"] == text) & (scores["target"] == target.kind)
    rows = scores[wanted & (scores["target_text"] == target.text)]
    needed = rows[["method", "baseline", "sink", "unit", "word", "score"]]
    settings = {"absences": study.absences, "budget": study.budget, "seed": study.seed}
    return book.job(label, text, faithfulness, word_scores=needed, **settings)


def leaderboards(measured: Measured) -> pd.DataFrame:
    """Table `leaderboard`: methods by faithfulness, one list a model."""
    table = measured.table("faithfulness")
    found = []
    for label in measured.labels:
        board = leaderboard(table[table["model"] == label], measured.study.seed)
        role = next(model.role for model in measured.study.models if model.label == label)
        keys = {"study": measured.study.name, "model": label, "role": role}
        found.append(pd.concat([pd.DataFrame([keys] * len(board)), board], axis=1))
    return pd.concat(found, ignore_index=True)


def beside_base(measured: Measured) -> pd.DataFrame:
    """Table `difference`: every other model beside the base, on texts that have an answer; empty for one model.

    Without an answer each model is asked about its own next token, and two events cannot be subtracted. Of a text that
    is cut off two models may have read different parts.
    """
    scores = measured.explained("word_scores")
    scores = scores[scores["text"].isin(measured.answered - measured.cut.keys())]
    others = [label for label in measured.labels if label != measured.base] if len(scores) else []
    found = [
        differences(scores, measured.table("certificates"), measured.base, other, measured.study.baseline)
        for other in others
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(DIFFERENCE))


def not_comparable(measured: Measured) -> pd.DataFrame:
    """Texts, a row each, that no difference can be taken on, and why."""
    rows: list[dict[str, object]] = [
        {"text": text.id, "why": "no answer: each model's own next token is another event"}
        for text in measured.study.texts
        if text.id not in measured.answered
    ]
    rows += [{"text": text, "why": f"cut off under {label}"} for text, label in measured.cut.items()]
    own = measured.chosen("certificates", IG)
    for row in own[~own["converged"].astype(bool)].itertuples() if len(own) else []:
        rows.append({"text": row.text, "why": f"not converged under {row.model} at the {row.baseline} baseline"})
    return pd.DataFrame(rows, columns=["text", "why"])
