"""An attribution as rows of the tables `attributions`, `word_scores` and `certificates`, each under its keys."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pandas as pd

from xai_utils.attribution.result import Attribution, Certificate
from xai_utils.attribution.target import Target
from xai_utils.text.cases import Case, units

TABLES = ("attributions", "word_scores", "certificates")


def tables_of(case: Case, goal: Target, found: Attribution) -> dict[str, pd.DataFrame]:
    """The three tables of one attribution; that of certificates is empty where the method has none."""
    keys = case.keys() | goal.keys() | found.keys()
    proofs = [keys | certificate_row(found.certificate)] if found.certificate is not None else []
    return dict(
        zip(TABLES, map(frame, [token_rows(keys, case, found), word_rows(keys, case, found), proofs]), strict=True)
    )


def joined(parts: list[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Several sets of tables as one, table by table."""
    tables = {}
    for name in parts[0] if parts else TABLES:
        some = [part[name] for part in parts if len(part[name])]
        tables[name] = pd.concat(some, ignore_index=True) if some else pd.DataFrame()
    return tables


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table whose character positions are whole numbers or nothing."""
    table = pd.DataFrame(rows)
    return table.astype({name: "Int64" for name in ("start", "end") if name in table})


def certificate_row(certificate: Certificate) -> dict[str, Any]:
    return dataclasses.asdict(certificate) | {
        "relative_delta": certificate.relative_delta,
        "converged": certificate.converged,
    }


def token_rows(keys: dict[str, str], case: Case, found: Attribution) -> list[dict[str, Any]]:
    return [
        keys
        | {
            "position": position,
            "token": token.label,
            "start": token.start,
            "end": token.end,
            "kind": "kept" if found.sink == "kept" and math.isnan(score) and token.kind == "special" else token.kind,
            "score": score,
            "error": error,
        }
        for position, (token, score, error) in enumerate(
            zip(case.tokens, found.scores.tolist(), found.errors.tolist(), strict=True)
        )
    ]


def word_rows(keys: dict[str, str], case: Case, found: Attribution) -> list[dict[str, Any]]:
    return [
        keys
        | {
            "word": unit.text,
            "start": unit.start,
            "end": unit.end,
            "is_word": unit.is_word,
            "pieces": len(unit.tokens),
            "score": score,
            "error": error,
            "additive": found.additive,
        }
        for unit, score, error in zip(units(case), found.word_scores.tolist(), found.word_errors.tolist(), strict=True)
    ]
