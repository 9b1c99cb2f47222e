"""The original study's claims, each put to the tables: `claim(measured) -> Verdict`.

The claims are those of its "What the Numbers Tell Us", "Key Observations", "Takeaways" and "Discussion". A claim of
every case is counted over texts and models; a claim that compares two models is a paired test over texts
(questions.py). What cannot be decided is said to be undecided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from report import original
from report.sentences import Sentence
from xai_utils.attention.layers import statistics, uniform
from xai_utils.evaluation.statistics import NONE, UNDECIDED
from xai_utils.study.tables import IG, ORIGINAL, Measured

HOLDS, PART, FAILS = "holds", "holds in part", "does not hold"
OPPOSITE = "the opposite holds"
ORIGINAL_WORD = "Сколько"
DIAGONAL = (0.05, 0.15)  # the range that the original gives
HALF = 0.5


@dataclass(frozen=True)
class Verdict:
    """One claim of the original, what became of it here, and why."""

    claim: Sentence
    outcome: str
    because: Sentence


Claim = Callable[[Measured], Verdict]


def counted(claim: Sentence, true: pd.Series, because: str, **facts: Any) -> Verdict:
    """The verdict on a claim about every case: all of them, at least half, fewer; undecided where there are none."""
    n, k = len(true), int(true.sum())
    if not n:
        return Verdict(claim, UNDECIDED, Sentence("nothing in this study's tables puts it to the test"))
    outcome = HOLDS if k == n else PART if k >= HALF * n else FAILS
    return Verdict(claim, outcome, Sentence(because, {"k": k, "n": n} | facts))


def of_pair(measured: Measured, question: str, sign: int, claim: Sentence) -> Verdict:
    """The verdict on a claim that compares the twin with the base: a paired test over texts, and the claimed sign."""
    if measured.adapted is None:
        return Verdict(claim, UNDECIDED, Sentence("it takes two models, and this study has one"))
    table = measured.table("questions")
    rows = table[(table["question"] == question) & (table["other"] == measured.adapted)] if len(table) else table
    if rows.empty or rows.iloc[0][["difference", "low", "high"]].isna().any():
        return Verdict(claim, UNDECIDED, Sentence("too few texts were measured under both models"))
    row = rows.iloc[0]
    missing = row["verdict"] in (NONE, UNDECIDED)
    outcome = row["verdict"] if missing else HOLDS if np.sign(row["difference"]) == sign else OPPOSITE
    test = "{changed} of them changed, too few for a test" if outcome == UNDECIDED else "corrected p {p:.2g}"
    return Verdict(
        claim,
        outcome,
        Sentence(
            "{asked}: {base:.3g} under {label}, {other:.3g} under {twin}; change {difference:+.2g}, interval "
            "{low:+.2g} to {high:+.2g}, over {n:#text or pair/texts or pairs}, " + test,
            {
                "asked": row["asked"],
                "label": measured.base,
                "twin": measured.adapted,
                "base": row["mean_base"],
                "other": row["mean_other"],
                "difference": row["difference"],
                "low": row["low"],
                "high": row["high"],
                "n": int(row["n"]),
                **({"changed": int(row["changed"])} if outcome == UNDECIDED else {"p": row["p_adjusted"]}),
            },
        ),
    )


def _of(measured: Measured, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the pair alone: controls are no models that the original spoke of."""
    return rows[rows["model"].isin(measured.pair)].dropna(subset="score") if len(rows) else rows


# ---- integrated gradients


def first_position(measured: Measured) -> Verdict:
    claim = Sentence(original.FIRST)
    undecided = counted(claim, pd.Series(dtype=bool), "")
    for method in (IG, ORIGINAL):
        every = _of(measured, measured.chosen("attributions", method, "moved"))
        proven = _of(measured, measured.certified("attributions", method, "moved"))
        if len(proven):
            cases = [part for _, part in proven.groupby(["text", "model", "baseline"])]
            shares = pd.Series([_first_share(part) for part in cases])
            equal = pd.Series([1 / len(part) for part in cases])
            return counted(
                claim,
                shares < -equal,
                "in {k} of {n} certified runs that move every position its score is negative and above an equal share "
                "of all absolute scores; its median share is {median:+.0%}",
                median=float(shares.median()),
            )
        if len(every):
            cases = [part for _, part in every.groupby(["text", "model", "baseline"])]
            facts = {"k": sum(_first_share(part) < 0 for part in cases), "n": len(cases)}
            because = Sentence("negative in {k} of {n} runs, none of which converged", facts)
            undecided = Verdict(claim, UNDECIDED, because)
    return undecided


def _first_share(scores: pd.DataFrame) -> float:
    """The first position's signed share of all absolute scores; 0 where they are all zero."""
    first = scores.sort_values("position")["score"].iloc[0]
    return float(first / scores["score"].abs().sum()) if scores["score"].any() else 0.0


def original_delta(measured: Measured) -> Verdict:
    claim = Sentence("A high convergence delta says that the estimate can vary widely")
    rows = measured.explained("certificates")
    rows = rows[(rows["method"] == ORIGINAL) & rows["model"].isin(measured.pair)] if len(rows) else rows
    if rows.empty:
        return counted(claim, pd.Series(dtype=bool), "")
    facts = {
        "k": int((~rows["converged"].astype(bool)).sum()),
        "n": len(rows),
        "error": rows["relative_delta"].median(),
    }
    form = (
        "in {k} of {n} runs of the original's rule the scores miss what they should sum to by more than the tolerance, "
        "in the median by {error:.0%}; how far a single score is off, a delta does not say"
    )
    return Verdict(claim, UNDECIDED, Sentence(form, facts))


def smaller_negatives(measured: Measured) -> Verdict:
    claim = Sentence(original.LESS)
    return of_pair(measured, "negative", -1, claim)


def more_even(measured: Measured) -> Verdict:
    return of_pair(measured, "entropy", 1, Sentence(original.EVEN))


# ---- words


def question_mark(measured: Measured) -> Verdict:
    return _inhibits(measured, "?", Sentence(original.MARK))


def punctuation(measured: Measured) -> Verdict:
    return _inhibits(measured, None, Sentence(original.MARKS))


def _inhibits(measured: Measured, mark: str | None, claim: Sentence) -> Verdict:
    rows = _of(measured, measured.words("ablation"))
    if rows.empty:
        return counted(claim, pd.Series(dtype=bool), "")
    marks = (
        ~rows["word"].str.contains(r"\w", regex=True) & (rows["word"] != "?") if mark is None else rows["word"] == mark
    )
    scores = rows.loc[marks, "score"]
    because = "taking it away raises the target in {k} of {n} cases"
    if scores.empty:
        return counted(claim, pd.Series(dtype=bool), "")
    return counted(
        claim,
        scores < 0,
        because + "; its median ablation score is {median:+.2g} {unit}",
        median=scores.median(),
        unit=str(rows["unit"].iloc[0]),
    )


def first_word(measured: Measured) -> Verdict:
    claim = Sentence("“{word}” supports the answer", {"word": ORIGINAL_WORD})
    rows = _of(measured, measured.words("ablation"))
    rows = rows[rows["word"] == ORIGINAL_WORD] if len(rows) else rows
    if rows.empty:
        return counted(claim, pd.Series(dtype=bool), "")
    return counted(
        claim,
        rows["score"] > 0,
        "taking the word away lowers the target in {k} of {n} cases, by {mean:.2g} {unit} on average",
        mean=rows["score"].mean(),
        unit=str(rows["unit"].iloc[0]),
    )


def unstable_mark(measured: Measured) -> Verdict:
    claim = Sentence("Under noise “?” causes the biggest swings of all words in the adapted model")
    if measured.adapted is None:
        return of_pair(measured, "", 0, claim)
    rows = _of(measured, measured.words("sensitivity"))
    rows = rows[rows["model"] == measured.adapted] if len(rows) else rows
    cases = [part for _, part in rows.groupby("text") if (part["word"] == "?").any()] if len(rows) else []
    top = pd.Series([part.sort_values("score")["word"].iloc[-1] == "?" for part in cases], dtype=bool)
    return counted(claim, top, "it has the highest standard deviation in {k} of {n} texts that hold one")


def methods_agree(measured: Measured) -> Verdict:
    claim = Sentence(original.AGREE)
    table = measured.table("agreement")
    if table.empty:
        return counted(claim, pd.Series(dtype=bool), "")
    both = table[["method_a", "method_b"]].isin([IG, "ablation"]).all(axis=1) & (table["method_a"] != table["method_b"])
    rows = table[both & table["model"].isin(measured.pair)].dropna(subset="spearman")
    if rows.empty:
        return counted(claim, pd.Series(dtype=bool), "")
    return counted(
        claim,
        rows["spearman"] > HALF,
        "their ranks correlate above {half} in {k} of {n} cases, by {mean:.2f} on average and {low:.2f} at worst",
        half=HALF,
        mean=rows["spearman"].mean(),
        low=rows["spearman"].min(),
    )


# ---- attention


def _first_head(measured: Measured) -> pd.DataFrame:
    heads = measured.table("attention_heads")
    if heads.empty:
        return heads
    return heads[(heads["layer"] == 0) & (heads["head"] == 0) & heads["model"].isin(measured.pair)]


def _head_claim(
    measured: Measured, claim: Sentence, column: str, true: Callable[[pd.DataFrame], Any], say: str, **facts: Any
) -> Verdict:
    rows = _first_head(measured)
    if rows.empty or column not in rows:
        return counted(claim, pd.Series(dtype=bool), "")
    return counted(claim, true(rows), say, mean=rows[column].mean(), **facts)


def start_of_text(measured: Measured) -> Verdict:
    return Verdict(
        Sentence("The first token attends strongly to itself"),
        HOLDS,
        Sentence("in every causal head, whatever it does: the first position has nothing else to look at"),
    )


def bulk_to_start(measured: Measured) -> Verdict:
    return _head_claim(
        measured,
        Sentence("In the first head of the first layer most tokens send the bulk of their attention to the first"),
        "sink",
        lambda rows: rows["sink"] > HALF,
        "its mean mass on the first position is above {half} in {k} of {n} cases, {mean:.2f} on average",
        half=HALF,
    )


def low_diagonal(measured: Measured) -> Verdict:
    low, high = DIAGONAL
    return _head_claim(
        measured,
        Sentence("There, attention to the own position is low ({low} to {high})", {"low": low, "high": high}),
        "diagonal",
        lambda rows: rows["diagonal"].between(low, high),
        "its mean lies in that range in {k} of {n} cases and is {mean:.2f} on average",
    )


def global_head(measured: Measured) -> Verdict:
    return _head_claim(
        measured,
        Sentence("That head gathers from the whole text rather than from neighbours"),
        "local",
        lambda rows: rows["local"] < rows["tokens"].map(uniform_local),
        "it gives the nearest positions less than attention that does not choose would in {k} of {n} cases",
    )


def uniform_local(length: int) -> float:
    """Mass on the nearest positions of attention that does not choose, as attention.py counts them."""
    return float(statistics(uniform(length))["local"])


def flatter_attention(measured: Measured) -> Verdict:
    claim = Sentence("The base has sharper peaks in attention than the adapted model")
    return of_pair(measured, "attention_entropy", 1, claim)


CLAIMS: tuple[Claim, ...] = (
    more_even,
    methods_agree,
    question_mark,
    punctuation,
    first_word,
    first_position,
    smaller_negatives,
    original_delta,
    unstable_mark,
    start_of_text,
    bulk_to_start,
    low_diagonal,
    global_head,
    flatter_attention,
)


def verdicts(measured: Measured) -> list[Verdict]:
    return [claim(measured) for claim in CLAIMS]
