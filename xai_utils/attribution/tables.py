"""An attribution as rows of the tables `attributions`, `word_scores` and `certificates`, each under its keys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from xai_utils.attribution.result import Attribution, Certificate
from xai_utils.attribution.target import Target
from xai_utils.text.cases import Case, Token, units
from xai_utils.text.words import words as words_of

TABLES = ("attributions", "word_scores", "certificates")


def tables_of(results: Iterable[Attribution]) -> dict[str, pd.DataFrame]:
    """The three tables of attributions; that of certificates has no row for a method without one."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for found in results:
        rows["attributions"] += position_rows(found)
        rows["word_scores"] += word_rows(found)
        if found.certificate is not None:
            rows["certificates"].append(found.keys() | certificate_row(found.certificate))
    return {name: frame(some) for name, some in rows.items()}


def joined(parts: list[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Several sets of tables as one, table by table."""
    tables = {}
    for name in parts[0] if parts else TABLES:
        some = [part[name] for part in parts if len(part[name])]
        tables[name] = pd.concat(some, ignore_index=True) if some else pd.DataFrame()
    return tables


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table whose character positions are whole numbers or nothing, and `stands` true, false or nothing."""
    table = pd.DataFrame(rows)
    kinds = {"start": "Int64", "end": "Int64", "stands": "boolean"}
    return table.astype({name: kind for name, kind in kinds.items() if name in table})


def certificate_row(certificate: Certificate) -> dict[str, Any]:
    return dataclasses.asdict(certificate) | {
        "relative_delta": certificate.relative_delta,
        "converged": certificate.converged,
    }


def position_rows(found: Attribution) -> list[dict[str, Any]]:
    """One row a position."""
    keys, kept = found.keys(), found.sink == "kept"
    return [
        keys
        | {
            "position": position,
            "token": token.label,
            "start": token.start,
            "end": token.end,
            "kind": "kept" if kept and math.isnan(score) and token.kind == "special" else token.kind,
            "score": score,
            "error": error,
        }
        for position, (token, score, error) in enumerate(
            zip(found.case.tokens, found.scores.tolist(), found.errors.tolist(), strict=True)
        )
    ]


def word_rows(found: Attribution) -> list[dict[str, Any]]:
    """One row a unit of the word view: a word, or a token that belongs to none."""
    keys = found.keys()
    return [
        keys
        | {
            "word": unit.text,
            "start": unit.start,
            "end": unit.end,
            "is_word": unit.is_word,
            "pieces": len(unit.tokens),
            "score": found.word_scores[row],
            "error": found.word_errors[row],
            "low": math.nan if found.low is None else found.low[row],
            "high": math.nan if found.high is None else found.high[row],
            "stands": None if found.stands is None or math.isnan(found.word_scores[row]) else bool(found.stands[row]),
            "additive": found.additive,
        }
        for row, unit in enumerate(units(found.case))
    ]


def from_word_rows(rows: pd.DataFrame, text: str, proof: pd.Series | None = None) -> Attribution:
    """The result that one case's rows of `word_scores` hold, for what shows sentences in colour.

    `text` is the case's normalised text, `proof` the result's row of `certificates`. Every word gets one token of its
    own, since the table holds no others.
    """
    first = rows.iloc[0]
    own = rows[rows["is_word"].astype(bool)].sort_values("start").set_index("start")
    words = words_of(text)
    known = own.reindex([word.start for word in words])
    scores, errors, low, high = (known[name].to_numpy(float) for name in ("score", "error", "low", "high"))
    case = Case(
        study=str(first["study"]),
        text_id=str(first["text"]),
        model=str(first["model"]),
        role=str(first["role"]),
        text=text,
        tokens=tuple(Token(0, word.text, word.start, word.end, "text") for word in words),
        words=tuple(words),
    )
    return Attribution(
        case,
        Target(str(first["target"]), str(first["target_text"]), ()),
        method=str(first["method"]),
        baseline=str(first["baseline"]),
        sink=str(first["sink"]),
        unit=str(first["unit"]),
        additive=bool(first["additive"]),
        scores=scores,
        errors=errors,
        word_scores=scores,
        word_errors=errors,
        low=None if np.isnan(low).all() else low,
        high=None if np.isnan(high).all() else high,
        certificate=None if proof is None else _certificate(proof),
    )


def _certificate(row: pd.Series) -> Certificate:
    return Certificate(
        tolerance=float(row["tolerance"]),
        evaluations=int(row["evaluations"]),
        forwards=int(row["forwards"]),
        f_input=float(row["f_input"]),
        f_baseline=float(row["f_baseline"]),
        delta=float(row["delta"]),
        bound=float(row["bound"]),
        token_error=float(row["token_error"]),
        exact=bool(row["exact"]),
    )
