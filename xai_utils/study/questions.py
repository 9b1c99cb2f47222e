"""Questions put to a pair of models over all texts of a study: one number a text and model, then one paired test each.

The unit is the text (or the translation pair, where texts are paired), not the word; p values are corrected for the
number of questions asked. Scores without a converged certificate take no part.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from xai_utils.evaluation.statistics import RESOLUTION, corrected, paired_test, spread
from xai_utils.study.tables import IG, Measured

PLACE = ["text", "model"]
COLUMNS = (
    *("study", "question", "base", "other", "asked", "mean_base", "mean_other", "n", "changed", "difference"),
    *("low", "high", "p", "dz", "p_adjusted", "verdict"),
)


def answer(measured: Measured) -> pd.Series:
    """Log-probability of the answer in nats a character of it (whole, so that two vocabularies can be compared)."""
    rows = measured.chosen("certificates", IG)
    rows = rows[(rows["target"] == "logprob") & rows["text"].isin(measured.answered)]
    return (rows["f_input"] / rows["target_text"].str.len().clip(lower=1)).groupby([rows[c] for c in PLACE]).first()


def _spread(measured: Measured, kind: str) -> pd.Series:
    rows = measured.certified("word_scores", IG)
    return rows[rows["is_word"]].groupby(PLACE)["score"].agg(lambda scores: spread(scores.dropna())[kind])


def entropy(measured: Measured) -> pd.Series:
    """Entropy of the words' shares of absolute importance, over its maximum: 1 is perfectly even."""
    return _spread(measured, "entropy")


def gini(measured: Measured) -> pd.Series:
    """Gini coefficient of the words' absolute importance: 0 is perfectly even."""
    return _spread(measured, "gini")


def negative(measured: Measured) -> pd.Series:
    """Share of negative scores in the words' absolute importance."""
    rows = measured.certified("word_scores", IG)
    rows = rows[rows["is_word"]].dropna(subset="score")
    return rows.groupby(PLACE)["score"].agg(lambda scores: -scores.clip(upper=0).sum() / scores.abs().sum())


def uniform_entropy(length: int) -> float:
    """Mean entropy in nats of causal attention that does not choose, over queries 2 to `length`.

    >>> round(uniform_entropy(3), 4)  # (ln 2 + ln 3) / 2
    0.8959
    """
    return float(np.log(np.arange(2, length + 1)).mean())


def attention_entropy(measured: Measured) -> pd.Series:
    """Mean entropy of attention over all heads, over that of attention that does not choose at the same length."""
    heads = measured.table("attention_heads")
    even = heads["tokens"].map(uniform_entropy)
    return (heads["entropy"] / even).groupby([heads[c] for c in PLACE]).mean()


def sink(measured: Measured) -> pd.Series:
    """Mean attention mass on the first position, over all heads."""
    return measured.table("attention_heads").groupby(PLACE)["sink"].mean()


def agreement(measured: Measured) -> pd.Series:
    """Rank correlation of integrated gradients with ablation, over the words of a text."""
    table = measured.table("agreement")
    both = table[["method_a", "method_b"]].isin([IG, "ablation"]).all(axis=1) & (table["method_a"] != table["method_b"])
    return table[both].groupby(PLACE)["spearman"].mean()


QUESTIONS: dict[str, tuple[str, Callable[[Measured], pd.Series]]] = {
    "answer": ("log-probability of the answer, nats a character", answer),
    "entropy": ("evenness of importance over words (entropy, 1 is even)", entropy),
    "gini": ("concentration of importance on few words (Gini, 0 is even)", gini),
    "negative": ("share of negative importance", negative),
    "attention_entropy": ("evenness of attention (entropy over that of uniform attention)", attention_entropy),
    "sink": ("attention on the first position", sink),
    "agreement": ("rank correlation of integrated gradients and ablation", agreement),
}


def measures(measured: Measured) -> pd.DataFrame:
    """One number a question, text and model, long; a question whose table is missing has no rows."""
    found = []
    for name, (_, ask) in QUESTIONS.items():
        try:
            values = ask(measured)
        except KeyError:  # the table is not there, or has no such column
            continue
        found.append(values.rename("value").reset_index().assign(question=name))
    frame = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*PLACE, "value", "question"])
    return frame[["question", *PLACE, "value"]].dropna(subset="value")


def units(measured: Measured) -> dict[str, str]:
    """What counts as one observation: a text, or the two texts of a translation pair together."""
    return {text.id: min(text.id, text.pair or text.id) for text in measured.study.texts}


def tests(measured: Measured) -> pd.DataFrame:
    """One row a question and other model, paired over units, corrected over all questions put to one pair.

    Without rows for one model.
    """
    others = [label for label in measured.labels if label != measured.base]
    asked = measures(measured)
    found = [corrected(table) for table in (_paired(measured, asked, other) for other in others) if len(table)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(COLUMNS))


def _paired(measured: Measured, asked: pd.DataFrame, other: str) -> pd.DataFrame:
    rows = []
    unit = units(measured)
    for name, part in asked[asked["model"].isin([measured.base, other])].groupby("question", sort=False):
        both = part.pivot_table(index="text", columns="model", values="value").dropna()
        if len(both.columns) < 2 or both.empty:
            continue
        paired = both.groupby(both.index.map(unit)).mean()
        keys = {"study": measured.study.name, "question": name, "base": measured.base, "other": other}
        means = {"mean_base": paired[measured.base].mean(), "mean_other": paired[other].mean()}
        test = paired_test(paired[measured.base].tolist(), paired[other].tolist(), measured.study.seed, RESOLUTION)
        rows.append(keys | {"asked": QUESTIONS[str(name)][0]} | means | test)
    return pd.DataFrame(rows)
