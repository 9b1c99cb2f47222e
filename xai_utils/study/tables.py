"""The tables of a study as the report reads them: the study's own setting picked out, the certified told apart.

Nothing here computes a score. A table that a study has not got is empty, and what needs it is not said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from xai_utils.evaluation.agreement import neutral
from xai_utils.evaluation.statistics import certified
from xai_utils.study.config import Study
from xai_utils.study.results import folders, read_table

BESIDE_ADAPTERS = {  # what the makers of an adapter may leave beside it, and the columns that are read
    "evaluation": ("model", "language", "kind", "tokens_per_word", "tokens_of_base", "bits_per_character")
    + ("bits_per_character_of_base",),
    "samples": ("model", "prompt", "continuation"),
}
NEEDED = ("tokenization", "word_scores", "attributions", "certificates")
IG, ORIGINAL = "integrated_gradients", "fixed_steps"
PANEL_METHOD = "panel_shapley"
CEILING = "ceiling"  # rows of the table that are no method's
CONTROLS = ("first_to_last", "last_to_first")
UNSIGNED = {"sensitivity", "attention", "rollout", "attn_lrp_norm"}  # scores without a direction


@dataclass(frozen=True)
class StudyTables:
    """A study with its tables. `base` and `adapted` are labels; `adapted` is None where there is nothing to compare."""

    study: Study
    tables: Mapping[str, pd.DataFrame]

    def table(self, name: str) -> pd.DataFrame:
        return self.tables.get(name, pd.DataFrame())

    @cached_property
    def labels(self) -> list[str]:
        return [model.label for model in self.study.models]

    @cached_property
    def base(self) -> str:
        bases = [model.label for model in self.study.models if model.role == "base"]
        return (bases or self.labels)[0]

    @cached_property
    def adapted(self) -> str | None:
        others = [model for model in self.study.models if model.label != self.base]
        wanted = [model for model in others if model.role == "adapted"] or others
        return wanted[0].label if wanted else None

    @property
    def pair(self) -> list[str]:
        return [self.base] if self.adapted is None else [self.base, self.adapted]

    @cached_property
    def answered(self) -> set[str]:
        """Texts with an answer: on the others each model is asked about its own next token."""
        return {text.id for text in self.study.texts if text.answer is not None}

    @cached_property
    def cut(self) -> dict[str, str]:
        """Texts that lose tokens, and the first model under which they do: models may read different parts of them."""
        table = self.table("tokenization")
        rows = table[table["truncated"] > 0] if len(table) else table
        return dict(zip(rows["text"][::-1], rows["model"][::-1], strict=True)) if len(rows) else {}

    @property
    def headline(self) -> str:
        """The text that stands first in the study: the one whose figures the report shows."""
        return self.study.texts[0].id

    def words(self, method: str) -> pd.DataFrame:
        """Word scores of one method in the study's own setting, words alone."""
        found = self.chosen("word_scores", method)
        return found[found["is_word"]] if len(found) else found

    def explained(self, name: str) -> pd.DataFrame:
        """A table's rows at the target that the study names for each text, without views of other targets."""
        table = self.table(name)
        goals = {text.id: text.target or self.study.target for text in self.study.texts}
        return table[table["target"] == table["text"].map(goals)] if len(table) else table

    def chosen(self, name: str, method: str, sink: str | None = None) -> pd.DataFrame:
        """A table's rows of one method at the study's target, baseline and sink, where the method has such a choice.

        `sink` (kept, moved) takes the rows of that one instead, which may be none.
        """
        table = self.explained(name)
        if table.empty or method not in set(table["method"]):
            return pd.DataFrame(columns=table.columns)
        rows = table[table["method"] == method]
        if sink is not None:
            rows = rows[rows["sink"] == sink]
        for column, own in (("baseline", self.study.baseline), ("sink", "kept" if self.study.keep_sink else "moved")):
            if rows[column].nunique() > 1 and own in set(rows[column]):
                rows = rows[rows[column] == own]
        return rows

    def certified(self, name: str, method: str) -> pd.DataFrame:
        """`chosen`, without what has a certificate that did not converge."""
        rows = self.chosen(name, method)
        return rows if rows.empty else certified(rows, self.table("certificates"))

    @cached_property
    def failed(self) -> pd.DataFrame:
        """Certificates that did not converge."""
        table = self.table("certificates")
        return table[~table["converged"].astype(bool)] if len(table) else table


def read_tables(study: Study) -> StudyTables:
    """Read what the notebooks of a study have written. Raises UserError where some have not run yet."""
    needed = {name: read_table(study, name) for name in NEEDED}
    others = {path.name for path in folders(study).data.iterdir() if any(path.glob("[!.]*.parquet"))} - set(NEEDED)
    tables = needed | {name: read_table(study, name) for name in sorted(others)}
    return StudyTables(study, tables | {name: beside_adapters(study, name) for name in BESIDE_ADAPTERS})


def beside_adapters(study: Study, name: str) -> pd.DataFrame:
    """A table that the makers of the study's adapters left beside them (`tables/<name>.csv`), by label; else empty.

    An adapter's folder may hold a table of that name and of another kind: one that lacks a column is left alone.
    """
    found = []
    for entry in study.models:
        if entry.adapter and entry.role == "adapted":
            table = _read_csv(entry.path(entry.adapter) / "tables" / f"{name}.csv")
            if set(BESIDE_ADAPTERS[name]) <= set(table.columns):
                found.append(table.assign(label=entry.label))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _read_csv(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file)
    except (OSError, ValueError):  # pandas' own errors are ValueErrors, and so is text that is not UTF-8
        return pd.DataFrame()


# ---- methods in the order of the deletion tests


def board(found: StudyTables) -> pd.DataFrame:
    """Methods and orders by position under the models of the pair, best first.

    Columns: method; other and own, the mean share under absences that no method of the study uses itself, and under
    those that this one does (nan where there is none); cases; control, true for an order by position.
    """
    table = found.table("faithfulness")
    columns = ["method", "other", "own", "cases", "control"]
    if table.empty:
        return pd.DataFrame(columns=columns)
    rows = table.assign(neutral=neutral(table))
    rows = rows[rows["model"].isin(found.pair) & (rows["method"] != CEILING)].dropna(subset="share")
    ranked = []
    for method, part in rows.groupby("method", sort=False):
        own = part["own"].fillna(False).astype(bool)
        shares = [part.loc[part["neutral"], "share"].mean(), part.loc[own, "share"].mean()]
        ranked.append([method, *shares, len(part[["text", "model"]].drop_duplicates()), method in CONTROLS])
    made = pd.DataFrame(ranked, columns=columns)
    order = made["other"].fillna(made["own"]).sort_values(ascending=False, kind="stable").index
    return made.loc[order].reset_index(drop=True)


def preferred(found: StudyTables) -> str | None:
    """The signed method that the deletion tests prefer; without tests the panel's, else the first that has scores."""
    scores = found.table("word_scores")
    there = set(scores["method"]) if len(scores) else set()
    ranked = board(found)
    order = [*ranked.loc[~ranked["control"].astype(bool), "method"], PANEL_METHOD, *found.study.methods]
    return next((method for method in order if method in there and method not in UNSIGNED), None)
