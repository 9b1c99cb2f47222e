"""The tables of a study as the report reads them: the study's own setting picked out, the certified told apart.

Nothing here computes a score. A table that a study has not got is empty, and what needs it is not said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from xai_utils.attribution.target import UNITS
from xai_utils.evaluation.statistics import CASE
from xai_utils.study.config import Study
from xai_utils.study.results import folders, read_table

BESIDE = {  # what the makers of an adapter may leave beside it, and the columns that are read
    "evaluation": ("model", "language", "kind", "tokens_per_word", "tokens_of_base", "bits_per_character")
    + ("bits_per_character_of_base",),
    "samples": ("model", "prompt", "continuation"),
}
NEEDED = ("tokenization", "word_scores", "attributions", "certificates")
IG, ORIGINAL = "integrated_gradients", "fixed_steps"


@dataclass(frozen=True)
class Measured:
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
    def target_unit(self) -> str:
        """The unit of what the first text's scores explain."""
        return UNITS[self.study.texts[0].target or self.study.target]

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

    def certified(self, name: str, method: str, sink: str | None = None) -> pd.DataFrame:
        """`chosen`, without what has a certificate that did not converge."""
        rows, failed = self.chosen(name, method, sink), self.failed
        if rows.empty or failed.empty:
            return rows
        marked = rows.merge(failed[CASE], on=CASE, how="left", indicator="_found")
        return marked[marked["_found"] == "left_only"].drop(columns="_found")

    @cached_property
    def failed(self) -> pd.DataFrame:
        """Certificates that did not converge."""
        table = self.table("certificates")
        return table[~table["converged"].astype(bool)] if len(table) else table


def measured(study: Study) -> Measured:
    """Read what the notebooks of a study have written. Raises UserError where some have not run yet."""
    needed = {name: read_table(study, name) for name in NEEDED}
    others = {path.name for path in folders(study).data.iterdir() if any(path.glob("[!.]*.parquet"))} - set(NEEDED)
    tables = needed | {name: read_table(study, name) for name in sorted(others)}
    return Measured(study, tables | {name: beside_adapters(study, name) for name in BESIDE})


def beside_adapters(study: Study, name: str) -> pd.DataFrame:
    """A table that the makers of the study's adapters left beside them (`tables/<name>.csv`), by label; else empty.

    An adapter's folder may hold a table of that name and of another kind: one that lacks a column is left alone.
    """
    found = []
    for entry in study.models:
        if entry.adapter and entry.role == "adapted":
            table = _read_csv(entry.path(entry.adapter) / "tables" / f"{name}.csv")
            if set(BESIDE[name]) <= set(table.columns):
                found.append(table.assign(label=entry.label))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _read_csv(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file)
    except (OSError, ValueError):  # pandas' own errors are ValueErrors, and so is text that is not UTF-8
        return pd.DataFrame()
