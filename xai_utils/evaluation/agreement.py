"""How far methods agree with one another, and absences of one method; and which methods are faithful.

Nothing here loads a model: faithfulness.py makes the deletion tests, sanity.py the randomised models. Scores that did
not converge stay out of agreement. Over a study the unit is the text, not the word.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from xai_utils.attribution.result import Attribution
from xai_utils.evaluation.statistics import certified, interval
from xai_utils.text.cases import units

CASE_KEYS = ["study", "text", "model", "role", "target", "target_text"]
METHOD_KEYS = ["method", "baseline", "sink"]
STABILITY = ("study", "text", "model", "role", "method", "rank_correlation", "one_sign", "same_top")
LEAST_WORDS = 3  # words below which a rank correlation says nothing
TOP_WORDS = 3  # highest words that are compared


def one_setting(word_scores: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The rows of each method's main setting: at `baseline` with the sink kept where it has that, else its first."""
    settings = word_scores[METHOD_KEYS].drop_duplicates()
    other = (settings["baseline"] != baseline) * 2 + (settings["sink"] != "kept")
    first = settings.assign(_other=other).sort_values("_other", kind="stable").drop_duplicates("method")
    return word_scores.merge(first[METHOD_KEYS], on=METHOD_KEYS)


def agreement(word_scores: pd.DataFrame, certificates: pd.DataFrame, baseline: str = "mean") -> pd.DataFrame:
    """Table `agreement`: a row a case and pair of methods, over the words that both of them score.

    `spearman` is the rank correlation of signed scores (missing below three words), `top_k_overlap` the share that the
    three highest words of both have in common (of half the words in a text of fewer than six).
    """
    rows = []
    for keys, wide in _by_case(_comparable(word_scores, certificates, baseline)):
        correlation = wide.corr(method="spearman", min_periods=LEAST_WORDS)
        scores, there = wide.to_numpy(), wide.notna().to_numpy()
        for a, b in combinations(range(len(wide.columns)), 2):
            both = scores[there[:, a] & there[:, b]]
            size = min(TOP_WORDS, max(len(both) // 2, 1))
            rows.append(
                keys
                | {"method_a": wide.columns[a], "method_b": wide.columns[b], "words": len(both)}
                | {"spearman": correlation.iloc[a, b], "k": size}
                | {"top_k_overlap": top_overlap(both[:, a], both[:, b], size) if len(both) else np.nan}
            )
    return pd.DataFrame(rows, columns=[*CASE_KEYS, "method_a", "method_b", "words", "spearman", "k", "top_k_overlap"])


def top_overlap(a: ArrayLike, b: ArrayLike, k: int) -> float:
    """Share of the k highest entries of one that are among the k highest of the other; ties in reading order.

    >>> top_overlap([3.0, 2.0, 1.0], [3.0, 0.0, 1.0], 2)
    0.5
    """
    top_a, top_b = (set(np.argsort(-np.asarray(scores), kind="stable")[:k].tolist()) for scores in (a, b))
    return len(top_a & top_b) / k


def agreement_matrix(word_scores: pd.DataFrame, certificates: pd.DataFrame, baseline: str = "mean") -> pd.DataFrame:
    """Mean rank correlation over texts between all (model, method) pairs, square; words are the same for all models."""
    table = _comparable(word_scores, certificates, baseline)
    order = pd.MultiIndex.from_frame(table[["model", "method"]].drop_duplicates()).sort_values()
    parts = []
    for _, part in table.groupby("text", sort=False):
        wide = part.pivot_table("score", ["start", "end"], ["model", "method"])
        parts.append(wide.corr(method="spearman", min_periods=LEAST_WORDS).reindex(index=order, columns=order))
    return pd.concat(parts).groupby(level=["model", "method"]).mean().reindex(order)


def stability(scores: Float[np.ndarray, "absence word"]) -> dict[str, float]:
    """How far word scores under several absences agree.

    `rank_correlation` is the mean Spearman correlation over pairs of absences (nan below three words), `one_sign` the
    share of words with one sign under all, `same_top` 1 where all have one highest word.

    >>> stability(np.array([[3.0, 1.0, -1.0], [2.0, 1.0, 1.0]]))["same_top"]
    1.0
    """
    pairs = list(combinations(scores, 2))
    ranks = [float(stats.spearmanr(a, b).statistic) for a, b in pairs if len(a) > 2 and np.ptp(a) and np.ptp(b)]
    return {
        "rank_correlation": float(np.mean(ranks)) if ranks else np.nan,
        "one_sign": float((np.abs(np.sign(scores).sum(0)) == len(scores)).mean()),
        "same_top": float(len(set(scores.argmax(1).tolist())) == 1),
    }


def stability_of(found: Attribution) -> dict[str, float] | None:
    """How far the absences agree on the words; None for a method without a panel, or of one absence."""
    if found.by_absence is None or len(found.by_absence) < 2:
        return None
    words = [unit.is_word for unit in units(found.case)] & np.isfinite(found.word_scores)
    return stability(found.by_absence[:, words]) if words.any() else None


def stability_row(found: Attribution) -> dict[str, object]:
    """A row of the table `stability`."""
    nothing = {"rank_correlation": np.nan, "one_sign": np.nan, "same_top": np.nan}
    keys: dict[str, object] = {**found.case.keys(), "method": found.method}
    return keys | (stability_of(found) or nothing)


def leaderboard(faithfulness: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Table `leaderboard`: a row a method and setting, best mean share under absences that no method uses first.

    Shares are means over texts: `share` under all absences; `share_other` under those that no method of the table uses
    itself, so that all are judged by the same tests, with its bootstrap 95 % interval over texts; `share_own` under
    those that the method uses; then one column an absence.
    `beats_random` counts the tests of `tests` in which a method beats 95 % of random orders. Rankings by position alone
    and the ceiling, the best single order over all absences, take part. Texts of one word are left out.
    """
    table = faithfulness.dropna(subset="share")
    table = table.assign(own=table["own"].fillna(False).astype(bool), neutral=neutral(table))
    rows = []
    for values, part in table.groupby(METHOD_KEYS, sort=False, dropna=False):
        other = _mean_over_texts(part[part["neutral"]])
        low, high = interval(other, seed=seed)
        rows.append(
            dict(zip(METHOD_KEYS, values, strict=True))
            | {"texts": part["text"].nunique(), "tests": len(part)}
            | {"share": _mean_over_texts(part).mean(), "share_other": other.mean(), "low": low, "high": high}
            | {"share_own": _mean_over_texts(part[part["own"]]).mean(), "beats_random": int(part["beats_random"].sum())}
            | {absence: _mean_over_texts(tests).mean() for absence, tests in part.groupby("absence", sort=False)}
        )
    board = pd.DataFrame(rows)
    return board.sort_values("share_other", ascending=False, kind="stable", ignore_index=True) if rows else board


def neutral(tests: pd.DataFrame) -> pd.Series:
    """Which rows of the table `faithfulness` test an absence that no method of the table uses itself.

    >>> neutral(pd.DataFrame({"absence": ["zero", "zero", "hidden"], "own": [True, False, None]})).tolist()
    [False, False, True]
    """
    used = set(tests.loc[tests["own"].fillna(False).astype(bool), "absence"])
    return ~tests["absence"].isin(used)


def _mean_over_texts(tests: pd.DataFrame) -> pd.Series:
    """A text's mean share, over models and absences."""
    return tests.groupby("text")["share"].mean()


def _comparable(word_scores: pd.DataFrame, certificates: pd.DataFrame, baseline: str) -> pd.DataFrame:
    return certified(one_setting(word_scores[word_scores["is_word"]], baseline), certificates)


def _by_case(table: pd.DataFrame) -> list[tuple[dict[str, object], pd.DataFrame]]:
    """For each case its keys and a frame of words by methods, in the table's order of methods."""
    found = []
    for values, part in table.groupby(CASE_KEYS, sort=False, dropna=False):
        wide = part.pivot_table("score", ["start", "end"], "method")
        found.append(
            (dict(zip(CASE_KEYS, values, strict=True)), wide[[m for m in part["method"].unique() if m in wide]])
        )
    return found
