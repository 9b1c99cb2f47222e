"""What a baseline costs, from tables alone. Nothing here loads a model."""

from __future__ import annotations

import pandas as pd

from xai_utils.evaluation.agreement import LEAST_WORDS
from xai_utils.evaluation.statistics import certified

RUN_KEYS = ["text", "model", "baseline", "sink"]


def rank_agreement(word_scores: pd.DataFrame, certificates: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Rank correlation of word scores at each baseline with those at `reference`, the sink kept: a row a case.

    Cases in which one of the two did not converge, or with fewer than three words, are left out.
    """
    words = certified(word_scores[word_scores["is_word"].astype(bool)], certificates).dropna(subset="score")
    key = ["text", "model", "start"]
    main = words[(words["baseline"] == reference) & (words["sink"] == "kept")].set_index(key)["score"]
    both = words.join(main.rename("reference"), on=key).dropna(subset="reference")
    rows = [
        dict(zip(RUN_KEYS, keys, strict=True)) | {"spearman": part["score"].corr(part["reference"], method="spearman")}
        for keys, part in both.groupby(RUN_KEYS)
        if len(part) >= LEAST_WORDS
    ]
    return pd.DataFrame(rows, columns=[*RUN_KEYS, "spearman"])


def baseline_table(
    word_scores: pd.DataFrame, certificates: pd.DataFrame, reference: str, limit: int = 200
) -> pd.DataFrame:
    """One row a baseline and sink: how many cases converged, at what cost, and how alike `reference` ranks the words.

    `certificates` has a column `budget`. `certified_within` counts only certificates of at most `limit` gradient
    evaluations, so that baselines run with other budgets compare; `evaluations` are those spent, converged or not.
    """
    ranks = rank_agreement(word_scores, certificates, reference)
    rows = []
    for (baseline, sink), part in certificates.groupby(["baseline", "sink"], sort=False):
        alike = ranks[(ranks["baseline"] == baseline) & (ranks["sink"] == sink)]["spearman"]
        proven = part["converged"].astype(bool)
        rows.append(
            {
                "baseline": baseline,
                "sink": sink,
                "cases": len(part),
                "tolerance": part["tolerance"].iloc[0],
                "budget": part["budget"].iloc[0],
                "certified": proven.mean(),
                "limit": limit,
                "certified_within": (proven & (part["evaluations"] <= limit)).mean(),
                "evaluations_median": part["evaluations"].median(),
                "evaluations_max": part["evaluations"].max(),
                "rank_cases": len(alike),
                "rank_mean": alike.mean(),
                "rank_least": alike.min(),
            }
        )
    return pd.DataFrame(rows)
