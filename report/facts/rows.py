"""Rows of a table as dictionaries, and values that may be missing: what all facts are read with."""

from __future__ import annotations

from typing import Any

import pandas as pd

Row = dict[str, Any]


def rows(table: pd.DataFrame) -> list[Row]:
    """The rows of a table, each by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def known(value: Any) -> float | None:
    """A number, or None where there is none.

    >>> known(1), known(float("nan")), known(pd.NA)
    (1.0, None, None)
    """
    return None if pd.isna(value) else float(value)
