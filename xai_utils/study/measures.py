"""One number a text and model, from a study's tables: what questions over texts are put to.

Each measure is `measure(tables, method) -> Series` over text and model; one that is not about a method ignores it.
Scores without a converged certificate take no part, but for the original's own rule, whose scores hardly ever have one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np
import pandas as pd

from xai_utils.attention.layers import statistics, uniform
from xai_utils.evaluation.statistics import normalised_entropy
from xai_utils.study.tables import ORIGINAL, StudyTables

INDEX = ["text", "model"]
ORIGINAL_WORD = "Сколько"

Measure = Callable[[StudyTables, str], pd.Series]


def is_punctuation(word: str) -> bool:
    """
    >>> is_punctuation("?"), is_punctuation("—"), is_punctuation("don't"), is_punctuation("8")
    (True, True, False, False)
    """
    return all(unicodedata.category(character)[0] in "PS" for character in word)


def _words(found: StudyTables, method: str) -> pd.DataFrame:
    pick = found.chosen if method == ORIGINAL else found.certified
    rows = pick("word_scores", method)
    return rows[rows["is_word"].astype(bool)].dropna(subset="score") if len(rows) else rows


def _shares(found: StudyTables, method: str) -> pd.DataFrame:
    """Signed share of each word in the absolute importance of its text."""
    rows = _words(found, method)
    total = rows.groupby(INDEX)["score"].transform(lambda scores: scores.abs().sum())
    return rows.assign(share=rows["score"] / total.where(total > 0))


def evenness(found: StudyTables, method: str) -> pd.Series:
    """Entropy of the words' shares of absolute importance, over its maximum: 1 is perfectly even."""
    return _words(found, method).groupby(INDEX)["score"].agg(normalised_entropy)


def negative(found: StudyTables, method: str) -> pd.Series:
    """Share of negative scores in the words' absolute importance."""
    return _shares(found, method).groupby(INDEX)["share"].agg(lambda shares: -shares.clip(upper=0).sum())


def question_mark(found: StudyTables, method: str) -> pd.Series:
    """Signed share of “?” in the importance of its text."""
    rows = _shares(found, method)
    return rows[rows["word"] == "?"].groupby(INDEX)["share"].mean()


def other_marks(found: StudyTables, method: str) -> pd.Series:
    """Signed share of the other punctuation marks in the importance of their text, mean over the marks."""
    rows = _shares(found, method)
    marks = rows["word"].map(is_punctuation).astype(bool) & (rows["word"] != "?")
    return rows[marks].groupby(INDEX)["share"].mean()


def original_word(found: StudyTables, method: str) -> pd.Series:
    """Signed share of the original's first word in the importance of its text."""
    rows = _shares(found, method)
    return rows[rows["word"] == ORIGINAL_WORD].groupby(INDEX)["share"].mean()


def first_position(found: StudyTables, method: str) -> pd.Series:
    """Score of the first position over the mean absolute score of all, in runs that move it."""
    rows = found.chosen("attributions", method, "moved").dropna(subset="score")
    size = rows.groupby(INDEX)["score"].agg(lambda scores: scores.abs().mean())
    return rows[rows["position"] == 0].groupby(INDEX)["score"].first() / size.where(size > 0)


def swings(found: StudyTables, method: str) -> pd.Series:
    """Deviation of “?” under noise over the largest of the other words, less one; of the adapted model alone."""
    rows = _words(found, method)
    rows = rows[rows["model"] == found.adapted] if len(rows) else rows
    mark = rows[rows["word"] == "?"].groupby(INDEX)["score"].max()
    rest = rows[rows["word"] != "?"].groupby(INDEX)["score"].max()
    return (mark / rest - 1).dropna()


def ranks(found: StudyTables, method: str) -> pd.Series:
    """Rank correlation of a gradient method with ablation, over the words of a text."""
    wide = pd.concat([_words(found, name).assign(by=name) for name in (method, "ablation")])
    wide = wide.pivot_table("score", [*INDEX, "start"], "by").dropna()
    if not {method, "ablation"} <= set(wide.columns):
        return pd.Series(dtype=float)
    return wide.groupby(INDEX)[[method, "ablation"]].apply(
        lambda part: part[method].corr(part["ablation"], method="spearman") if len(part) > 2 else np.nan
    )


def answer(found: StudyTables, method: str) -> pd.Series:
    """Log-probability of the answer in nats a character of it (whole, so that two vocabularies can be compared)."""
    rows = found.table("behaviour")
    rows = rows[rows["text"].isin(found.answered) & (rows["probability"] > 0)]
    return (np.log(rows["probability"]) / rows["answer"].str.len()).groupby([rows[name] for name in INDEX]).first()


def stand(found: StudyTables, method: str) -> pd.Series:
    """Share of a text's words whose score has one sign over the panel."""
    rows = _words(found, method).dropna(subset="stands")
    return rows["stands"].astype(bool).groupby([rows[name] for name in INDEX]).mean()


def pieces(found: StudyTables, method: str) -> pd.Series:
    """Tokens a word."""
    return found.table("tokenization").groupby(INDEX)["tokens_per_word"].first()


def _uniform_entropy(length: int) -> float:
    """Mean entropy in nats of uniform causal attention, over queries 2 to `length`.

    >>> round(_uniform_entropy(3), 4)  # (ln 2 + ln 3) / 2
    0.8959
    """
    return float(np.log(np.arange(2, length + 1)).mean())


def attention_evenness(found: StudyTables, method: str) -> pd.Series:
    """Mean entropy of attention over all heads, over that of uniform attention at the same length."""
    heads = found.table("attention_heads")
    return (heads["entropy"] / heads["tokens"].map(_uniform_entropy)).groupby([heads[name] for name in INDEX]).mean()


def sink(found: StudyTables, method: str) -> pd.Series:
    """Mean attention mass on the first position, over all heads."""
    return found.table("attention_heads").groupby(INDEX)["sink"].mean()


def of_first_head(column: str) -> Measure:
    def of(found: StudyTables, method: str) -> pd.Series:
        heads = found.table("attention_heads")
        return heads[(heads["layer"] == 0) & (heads["head"] == 0)].groupby(INDEX)[column].mean()

    return of


def local(found: StudyTables, method: str) -> pd.Series:
    """Mass of the first head on the nearest positions, beyond that of uniform causal attention."""
    heads = found.table("attention_heads")
    first = heads[(heads["layer"] == 0) & (heads["head"] == 0)]
    even = first["tokens"].map(lambda length: float(statistics(uniform(length))["local"]))
    return (first["local"] - even).groupby([first[name] for name in INDEX]).mean()
