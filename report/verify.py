"""Whether a rerun gives the numbers that are committed: table by table, number by number, to one percent."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from xai_utils.errors import UserError
from xai_utils.files import ROOT

CLOSE = 0.01  # of the larger of the two numbers, or of the median size in the column where both are small
NAMED = 40  # differences that are listed


@dataclass(frozen=True)
class Comparison:
    """How many numbers agree, and a line for everything that does not."""

    agree: int
    differ: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.agree} numbers agree to {CLOSE:.0%}, {len(self.differ)} differ", *self.differ[:NAMED]]
        rest = len(self.differ) - NAMED
        return "\n".join(lines + ([f"and {rest} more"] if rest > 0 else []))


def verify(rerun: Path, committed: Path) -> Comparison:
    """Compare the CSV tables in two folders. Raises UserError where the committed folder holds none."""
    names = sorted(path.name for path in committed.glob("*.csv"))
    if not names:
        raise UserError(f"{committed}: holds no tables; expected CSV files to compare with")
    agree, differ = 0, []
    for name in names:
        if not (rerun / name).exists():
            differ.append(f"{name}: was not written again")
            continue
        found = compared(pd.read_csv(committed / name), pd.read_csv(rerun / name))
        agree += found.agree
        differ += [f"{name}: {line}" for line in found.differ]
    return Comparison(agree, tuple(differ))


def compared(before: pd.DataFrame, after: pd.DataFrame) -> Comparison:
    """Two versions of one table, row by row; text and truth values must be equal, numbers within `CLOSE`.

    >>> old = pd.DataFrame({"word": ["a", "b"], "score": [1.0, 2.0]})
    >>> compared(old, old.assign(score=[1.005, 2.1])).differ
    ('row 2 (b): score is 2.1, was 2',)
    """
    if list(before.columns) != list(after.columns):
        changed = sorted(set(before.columns) ^ set(after.columns)) or ["their order"]
        return Comparison(0, (f"other columns: {', '.join(changed)}",))
    if len(before) != len(after):
        return Comparison(0, (f"{len(after)} rows, were {len(before)}",))
    agree, differ = 0, []
    for column in before.columns:
        same = _same(before[column], after[column])
        agree += int((same & before[column].notna()).sum()) if _numeric(before[column]) else 0
        for row in np.flatnonzero(~same):
            values = [_shown(table[column].iloc[row]) for table in (after, before)]
            differ.append(f"row {row + 1} ({_keys(before, int(row))}): {column} is {values[0]}, was {values[1]}")
    return Comparison(agree, tuple(differ))


def _numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _same(before: pd.Series, after: pd.Series) -> np.ndarray:
    if not (_numeric(before) and _numeric(after)):
        return ((before == after) | (before.isna() & after.isna())).to_numpy(bool)
    a, b = before.to_numpy(float), after.to_numpy(float)
    small = np.nanmedian(np.abs(a)) if np.isfinite(a).any() else 0.0
    size = np.maximum(np.maximum(np.abs(a), np.abs(b)), small)
    return (np.abs(a - b) <= CLOSE * size) | (np.isnan(a) & np.isnan(b)) | (a == b)


def _keys(table: pd.DataFrame, row: int) -> str:
    texts = [str(value) for name, value in table.iloc[row].items() if not _numeric(table[name]) and pd.notna(value)]
    return " ".join(texts[:6])


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def committed(folder: Path, revision: str = "HEAD") -> Iterator[Path]:
    """The files of a folder of this repository as a commit holds them. Raises UserError without git or the folder."""
    name = folder.relative_to(ROOT).as_posix()
    try:
        done = subprocess.run(["git", "-C", str(ROOT), "archive", revision, name], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{name}: not found in the commit {revision}; expected a git checkout, or name a folder with --against"
        ) from None
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(place, filter="data")
        yield Path(place) / name
