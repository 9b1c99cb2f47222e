"""Questions put to a study's models over all its texts: one number a text and model, then one test each.

The unit is the text (or the translation pair, where texts are paired), not the word. A paired question asks whether
the adapted model differs from the base; any other asks whether the mean over the two models is beyond a mark. p values
are corrected for the number of questions asked (Benjamini and Hochberg 1995). A claim of the original study holds where
its test finds the direction that it says, does not hold where the test finds the other one, and cannot be decided else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from xai_utils.evaluation.statistics import FOUND, RESOLUTION, UNDECIDED, corrected, paired_test
from xai_utils.study import measures
from xai_utils.study.measures import INDEX, Measure
from xai_utils.study.tables import IG, ORIGINAL, StudyTables, preferred

HOLDS, FAILS = "holds", "does not hold"
HALF = 0.5
DIAGONAL = 0.15  # of attention, the most to the own position that the original saw
COLUMNS = (
    *("study", "question", "claim", "method", "base", "other", "paired", "against", "mean_base", "mean_other"),
    *("n", "changed", "difference", "low", "high", "p", "dz", "p_adjusted", "verdict"),
)


@dataclass(frozen=True)
class Question:
    """One measure put to the test. `claim` is the original's, by name; `sign` the direction that it says.

    `methods` are those that a question about scores is put to: the method that the tests prefer and the original's.
    """

    name: str
    ask: Measure
    paired: bool
    claim: str = ""
    sign: int = 0
    against: float = 0.0
    methods: tuple[str, ...] = ("",)


PREFERRED = "preferred"  # stands for the method that the deletion tests prefer
QUESTIONS = (
    Question("answer", measures.answer, True),
    Question("pieces", measures.pieces, True),
    Question("stand", measures.stand, True, methods=(PREFERRED,)),
    Question("evenness", measures.evenness, True, "even", 1, methods=(PREFERRED, ORIGINAL)),
    Question("negative", measures.negative, True, "less", -1, methods=(PREFERRED, ORIGINAL)),
    Question("ranks", measures.ranks, False, "agree", 1, HALF, (IG, ORIGINAL)),
    Question("question_mark", measures.question_mark, False, "mark", -1, methods=(PREFERRED, "ablation")),
    Question("other_marks", measures.other_marks, False, "marks", -1, methods=(PREFERRED, "ablation")),
    Question("original_word", measures.original_word, False, "word", 1, methods=(PREFERRED, "ablation")),
    Question("first_position", measures.first_position, False, "first", -1, -1.0, (ORIGINAL,)),
    Question("swings", measures.swings, False, "swings", 1, methods=("sensitivity",)),
    Question("first_head_sink", measures.of_first_head("sink"), False, "bulk", 1, HALF),
    Question("first_head_own", measures.of_first_head("diagonal"), False, "own", -1, DIAGONAL),
    Question("first_head_local", measures.local, False, "whole", -1),
    Question("attention_evenness", measures.attention_evenness, True, "peaks", 1),
    Question("sink", measures.sink, True),
)


def verdict(sign: int, difference: float, found: str) -> str:
    """What became of a claim, by the direction that it says and the outcome of its test.

    >>> verdict(1, 0.2, FOUND), verdict(-1, 0.2, FOUND), verdict(1, 0.2, "no difference found")
    ('holds', 'does not hold', 'cannot be decided')
    """
    if not sign:
        return found
    return UNDECIDED if found != FOUND else HOLDS if np.sign(difference) == sign else FAILS


def tests(found: StudyTables) -> pd.DataFrame:
    """Table `questions`: one row a question, method and other model, corrected over all that one pair is asked.

    With one model the paired questions are left out, and the original's claims in a study that does not name them. A
    question whose table is missing has no rows.
    """
    best = preferred(found)
    others: list[str | None] = [label for label in found.labels if label != found.base] or [None]
    tables = [corrected(table) for other in others if len(table := _asked(found, best, other))]
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.concat(tables, ignore_index=True)
    columns = (table[name].tolist() for name in ("sign", "difference", "verdict"))
    judged = [verdict(sign, difference, outcome) for sign, difference, outcome in zip(*columns, strict=True)]
    return table.assign(verdict=judged)[list(COLUMNS)]


def _asked(found: StudyTables, best: str | None, other: str | None) -> pd.DataFrame:
    rows = []
    for question in QUESTIONS:
        for method in dict.fromkeys(best if name == PREFERRED else name for name in question.methods):
            if method is None or (question.claim and found.study.claims is None):
                continue
            if other is None if question.paired else other != found.adapted:
                continue
            wide = _measured(found, question, method, other)
            if len(wide):
                keys: dict[str, object] = {
                    "study": found.study.name,
                    "question": question.name,
                    "claim": question.claim,
                }
                keys |= {"method": method, "base": found.base, "other": other or "", "sign": question.sign}
                rows.append(keys | _tested(question, wide, found.study.seed))
    return pd.DataFrame(rows)


def _measured(found: StudyTables, question: Question, method: str, other: str | None) -> pd.DataFrame:
    """One row a unit, one column a model, of the models that the question is about."""
    try:
        values = question.ask(found, method).dropna()
    except KeyError:  # the table is not there, or has no such column
        return pd.DataFrame()
    if values.empty:
        return pd.DataFrame()
    wide = values.rename_axis(INDEX).unstack("model")
    labels = [label for label in (found.base, other) if label in wide]
    if question.paired and len(labels) < 2:
        return pd.DataFrame()
    wide = wide[labels].dropna()
    return wide.groupby(wide.index.map({text.id: text.observation for text in found.study.texts})).mean()


def _tested(question: Question, wide: pd.DataFrame, seed: int) -> dict[str, object]:
    if question.paired:
        first, second = (wide[label].to_numpy(float) for label in wide)
    else:
        second = wide.mean(axis=1).to_numpy(float)
        first = np.full(len(second), question.against)
    about: dict[str, object] = {"paired": question.paired, "against": question.against}
    about |= {"mean_base": first.mean() if question.paired else np.nan, "mean_other": second.mean()}
    return about | paired_test(first, second, seed, RESOLUTION)
