"""The methods of a study in the order of its deletion tests, from the table `faithfulness` alone."""

from __future__ import annotations

import pandas as pd

from xai_utils.study.tables import Measured

PANEL = "panel_shapley"
CEILING, RANDOM = "ceiling", "random"  # rows of the table that are no method's
CONTROLS = ("first_to_last", "last_to_first")
UNSIGNED = {"sensitivity", "attention", "rollout", "attn_lrp_norm"}  # scores without a direction


def board(found: Measured) -> pd.DataFrame:
    """Methods and orders by position under the models of the pair, best first.

    Columns: method; other and own, the mean share under absences that the method does not use itself, and under those
    that it does (nan where there is none); cases; control, true for an order by position.
    """
    table = found.table("faithfulness")
    columns = ["method", "other", "own", "cases", "control"]
    if table.empty:
        return pd.DataFrame(columns=columns)
    rows = table[table["model"].isin(found.pair) & ~table["method"].isin([CEILING, RANDOM])].dropna(subset="share")
    ranked = []
    for method, part in rows.groupby("method", sort=False):
        own = part["own"].fillna(False).astype(bool)
        shares = [part.loc[~own, "share"].mean(), part.loc[own, "share"].mean()]
        ranked.append([method, *shares, len(part[["text", "model"]].drop_duplicates()), method in CONTROLS])
    made = pd.DataFrame(ranked, columns=columns)
    order = made["other"].fillna(made["own"]).sort_values(ascending=False, kind="stable").index
    return made.loc[order].reset_index(drop=True)


def preferred(found: Measured) -> str | None:
    """The signed method that the deletion tests prefer; without tests the panel's, else the first that has scores."""
    scores = found.table("word_scores")
    there = set(scores["method"]) if len(scores) else set()
    ranked = board(found)
    order = [*ranked.loc[~ranked["control"].astype(bool), "method"], PANEL, *found.study.methods]
    return next((method for method in order if method in there and method not in UNSIGNED), None)
