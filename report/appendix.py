"""The appendix of a report: every prompt, the raw scores, the settings and the big tables, as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from report.formats import to_markdown
from report.page import BIDI
from xai_utils.attribution.methods import method_name
from xai_utils.study.results import DIGITS, rounded, score_lists
from xai_utils.study.tables import IG, ORIGINAL, StudyTables

HIDDEN = {"name", "published", "models", "texts"}  # keys of a study that have tables of their own
SAME = ["study", "base", "other", "target_text", "half", "layers"]  # columns of a swap that tell no reader anything
_CODES = str.maketrans({character: f"\\u{ord(character):04x}" for character in ("`", *BIDI)})
LARGEST = 20  # rows of a table of differences
PER_METHOD = ["share", "comprehensiveness", "sufficiency"]


def tables(found: StudyTables, long: Mapping[str, pd.DataFrame]) -> dict[str, Markup]:
    """The tables of the appendix as Markdown, by name; without those that there is nothing for."""
    every = {
        "models": models(found),
        "quality": found.table("evaluation"),
        "samples": samples(found),
        "settings": settings(found),
        "behaviour": found.table("behaviour").drop(columns=["study", "role", "target", "target_text"], errors="ignore"),
        "swap": found.table("swap").drop(columns=SAME, errors="ignore"),
        "bridge": bridge(found),
        "shares": shares(found),
        "agreement": agreement(found),
        "questions": found.table("questions").drop(columns=["study", "claim", "base"], errors="ignore"),
    }
    every |= {f"evidence_{name}": table for name, table in long.items() if len(table) <= 2 * LARGEST}
    return {name: Markup(to_markdown(named(table))) for name, table in every.items() if len(table)}


def named(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its methods' names as prose has them."""
    columns = [name for name in ("method", "method_a", "method_b") if name in table]
    return table.assign(**{name: table[name].map(lambda method: method_name(str(method))) for name in columns})


def models(found: StudyTables) -> pd.DataFrame:
    columns = ("label", "role", "model", "revision", "adapter", "rows", "dtype")
    rows = [{name: getattr(entry, name, None) for name in columns} for entry in found.study.models]
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def samples(found: StudyTables) -> pd.DataFrame:
    """What the base and its adaptation write behind the same prompts."""
    table = found.table("samples")
    if table.empty:
        return table
    rows = table[(table["label"] == found.adapted) & table["model"].isin(["base", "trained"])]
    return rows[["prompt", "model", "continuation"]]


def settings(found: StudyTables) -> pd.DataFrame:
    values = found.study.model_dump(exclude=HIDDEN)
    shown = {name: ", ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
    return pd.DataFrame([{"setting": name, "value": str(value)} for name, value in shown.items()])


def bridge(found: StudyTables) -> pd.DataFrame:
    table = found.table("bridge")
    return table.pivot_table("score", "text", "step", sort=False).reset_index() if len(table) else table


def shares(found: StudyTables) -> pd.DataFrame:
    """The leaderboard: mean share of each method under each absence, over the models of the pair."""
    table = found.table("faithfulness")
    if table.empty:
        return table
    rows = table[table["model"].isin(found.pair)]
    return rows.pivot_table("share", "method", "absence", sort=False).reset_index()


def agreement(found: StudyTables) -> pd.DataFrame:
    """Mean rank correlation of every two methods, by model."""
    table = found.table("agreement")
    if table.empty:
        return table
    means = table.pivot_table("spearman", ["method_a", "method_b"], "model", sort=False)
    return means.reset_index()


def raw_scores(found: StudyTables, label: str) -> Markup:
    """Token scores and completeness errors of one model on the first text: the study's setting, the original's.

    Empty where integrated gradients were not asked for.
    """
    here = {"model": label, "text": found.headline}
    entries: list[dict[str, Any]] = []
    for method in (IG, ORIGINAL):
        parts = [found.chosen(name, method) for name in ("attributions", "certificates")]
        if all(len(part) for part in parts):
            entries += score_lists(*(part[(part[list(here)] == here).all(axis=1)] for part in parts))
    return Markup(fenced(list(rounded(entries, DIGITS))) if entries else "")


def fenced(entries: list[dict[str, Any]]) -> str:
    """JSON in a code block that neither backticks nor two braces inside it can leave; a score pair a line.

    >>> print(fenced([{"method": "x", "converged": True, "scores": [["```{{", 1.5]]}]))
    ```json
    [
     {
      "method": "x",
      "converged": true,
      "scores": [
       ["\\u0060\\u0060\\u0060{\\u007b", 1.5]
      ]
     }
    ]
    ```
    """
    text = json.dumps(entries, ensure_ascii=False, indent=1)
    for pair in (pair for entry in entries for pair in entry["scores"]):
        long = json.dumps(pair, ensure_ascii=False, indent=1).replace("\n", "\n   ")
        text = text.replace(long, json.dumps(pair, ensure_ascii=False), 1)
    return "```json\n" + text.translate(_CODES).replace("{{", "{\\u007b") + "\n```"


def parts(found: StudyTables, long: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """What the appendix's template names beside the facts."""
    raw = {label: raw_scores(found, label) for label in found.pair}
    return {"tables": tables(found, long), "raw": {label: entries for label, entries in raw.items() if entries}}
