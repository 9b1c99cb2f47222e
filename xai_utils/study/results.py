"""Where results lie, and how they are written: whole or not at all, with keys and provenance that make them citable.

Tables are parquet under runs/ and CSV or JSON where people read them; attributions are cached as JSON by content. No
pickle anywhere.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from xai_utils.errors import UserError
from xai_utils.files import ROOT, write_whole
from xai_utils.study.config import Study

PACKAGES = ("torch", "transformers", "captum", "peft", "tokenizers", "numpy", "scipy", "scikit-learn", "uniseg")
DIGITS = 3  # significant, in published tables: what two machines agree on

pa.set_memory_pool(pa.system_memory_pool())  # arrow's own keeps what a table took, so memory would grow with the texts


@dataclass(frozen=True)
class Folders:
    """The folders of one study. A published study's figures and tables are committed; all others stay under runs/."""

    data: Path  # parquet that notebooks exchange
    cache: Path  # attributions by content, shared by all studies
    figs: Path
    tables: Path
    blog: Path
    notebooks: Path


def folders(study: Study) -> Folders:
    """The folders of a study; none of them is made here."""
    runs = Path(os.environ.get("XAI_RUNS", ROOT / "runs"))
    own = runs / study.name
    home = ROOT if study.published else own
    beside = study.name if study.published and not study.leads else "."  # its part of the folders that it shares
    return Folders(
        data=own / "data",
        cache=runs / "cache",
        figs=home / "figs" / beside,
        tables=home / "report" / "tables" / beside,
        blog=(ROOT if study.leads else own) / "report" / "blog",
        notebooks=home / "notebooks",
    )


def write_table(frame: pd.DataFrame, study: Study, name: str, part: str = "all") -> Path:
    """Write one part of a table as parquet: notebooks and methods write their own parts and read the whole."""
    return write_whole(folders(study).data / name / f"{part}.parquet", lambda file: frame.to_parquet(file, index=False))


def read_table(study: Study, name: str, part: str = "[!.]*") -> pd.DataFrame:
    """All parts of a table, or one. Raises UserError, which says what to run first, when there is none."""
    parts = sorted((folders(study).data / name).glob(f"{part}.parquet"))
    if not parts:
        raise UserError(
            f"study '{study.name}' has no table '{name}' yet; expected one from an earlier notebook; "
            f"run 01 to 04 first (python -m xai_utils run --study studies/{study.name}.yaml)"
        )
    frames = [frame for frame in map(pd.read_parquet, parts) if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.read_parquet(parts[0])


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """Numbers to some significant digits, all else as it is, inside lists and dictionaries too.

    >>> rounded({"a": [123456.7, 0.000123456789], "b": "x"})
    {'a': [123000.0, 0.000123], 'b': 'x'}
    """
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list | tuple) else value


def write_csv(frame: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Write a table as CSV where people read it, rounded; hand it back as it was written."""
    table = frame.map(rounded)
    write_whole(file, lambda path: table.to_csv(path, index=False, lineterminator="\n"))
    return table


def publish(frame: pd.DataFrame, study: Study, name: str) -> pd.DataFrame:
    """`write_csv` among the study's published tables."""
    return write_csv(frame, folders(study).tables / f"{name}.csv")


def score_lists(attributions: pd.DataFrame, certificates: pd.DataFrame) -> list[dict[str, Any]]:
    """Raw scores for JSON, one entry an attribution: its keys, its proof, and [token, score] pairs in reading order.

    Pairs stay a list, for a dictionary would lose a token that comes twice; a kept position has no score (null).
    """
    keys = ["text", "model", "target", "target_text", "method", "baseline", "sink", "unit"]
    columns = [*keys, "delta", "relative_delta", "bound", "converged"]
    entries = []
    for entry in certificates[columns].to_dict(orient="records"):
        rows = attributions[(attributions[keys] == [entry[key] for key in keys]).all(axis=1)]
        scores = rows["score"].astype(object).where(rows["score"].notna(), None)
        pairs = zip(rows["token"], scores, strict=True)
        entries.append({str(name): value for name, value in entry.items()} | {"scores": [list(pair) for pair in pairs]})
    return entries


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes numbers, for cache keys and provenance."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def key(parts: Any) -> str:
    """A cache key: SHA-256 of the parts as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _short(revision: str) -> str:
    """
    >>> _short("0123456789abcdef-1+adapter:fedcba9876543210")
    '0123456789ab+adapter:fedcba987654'
    """
    return re.sub(r"[0-9a-f-]{13,}", lambda part: part[0][:12], revision)


def provenance(study: Study, models: Iterable[Any]) -> pd.DataFrame:
    """What made a notebook's numbers: one row a model, then the versions. No path of a machine is in it."""
    rows = [
        {
            "what": f"model {model.label}",
            "is": f"{model.entry.model}, {_short(model.revision)}, {model.entry.dtype}, {model.device.type}",
        }
        for model in models
    ]
    rows += [{"what": name, "is": version} for name, version in versions().items()]
    return pd.DataFrame([{"what": "study", "is": study.name}, *rows])
