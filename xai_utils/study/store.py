"""One store for all that is computed: each result under the content that it depends on, without names.

What is kept holds no study, text id, label, role or method's name: `Job.result` takes these from the cases that ask.
So no renamed text, copied study or second label for the same weights is shown a result under another's name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from xai_utils.attribution.result import Attribution, Certificate, Piece
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.files import write_text
from xai_utils.models.loading import LoadedModel
from xai_utils.study.results import versions
from xai_utils.text.cases import Case

VERSION = 1  # raise it when what all functions share (tokens, words, targets, absences) would give other numbers
KEY_COLUMNS = ("study", "text", "model", "role", "base", "other")  # columns that are never kept

Table = pd.DataFrame
Result = Attribution | Table | dict[str, Table]


class Store:
    """Results under one folder, a file each, written whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, parts: Any) -> Path:
        """Where the result is kept that depends on `parts`: models, cases, targets, functions, tables, plain values."""
        text = json.dumps([VERSION, versions(), content(parts)], sort_keys=True, default=_number)
        name = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def remember(self, parts: Any, compute: Callable[[], Table]) -> Table:
        """The table that `compute` gives, without names; computed where it is not kept yet."""
        file = self.file(parts)
        if not file.exists():
            write_text(file, packed(compute()))
        return unpacked(file)[1]


# ---- what a result depends on


def content(value: Any) -> Any:
    """A value as JSON that is equal exactly where results are: without the names of cases and models."""
    if isinstance(value, LoadedModel):
        return made_by(value) | {"mean": content(value.mean_embedding)}
    if isinstance(value, Case):
        kept = ("text", "tokens", "words", "answer", "contrast", "answer_ids", "contrast_ids")
        return {name: content(getattr(value, name)) for name in kept}
    if isinstance(value, Table):
        return _columns(value)
    if isinstance(value, Tensor):
        return hashlib.sha256(value.detach().float().cpu().numpy().tobytes()).hexdigest()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, FunctionType):
        return code(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: content(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): content(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [content(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a result cannot depend on a {type(value).__name__}; expected models, cases, tables, plain values")


def made_by(model: LoadedModel) -> dict[str, str]:
    """What makes a model's numbers: its weights, their precision, and the kind of device."""
    return {"weights": model.revision, "dtype": model.entry.dtype, "device": model.device.type}


def code(function: FunctionType) -> list[Any]:
    """What a function is: its name and its module's `VERSION`; without one, as in a notebook, its compiled code."""
    version = getattr(sys.modules.get(function.__module__), "VERSION", None)
    return [function.__module__, function.__name__, compiled(function, set()) if version is None else version]


def compiled(function: FunctionType, seen: set[str]) -> list[Any]:
    """A function's instructions and constants, and those of what it takes from its own module."""
    seen.add(function.__name__)
    taken: list[Any] = [repr(function.__defaults__)]
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) and value.__module__ == function.__module__ and name not in seen:
            taken.append(compiled(value, seen))
        elif isinstance(value, str | int | float | tuple):
            taken.append([name, repr(value)])
    return [_instructions(function.__code__), taken]


def _instructions(block: CodeType) -> list[Any]:
    inner = [_instructions(part) if isinstance(part, CodeType) else _constant(part) for part in block.co_consts]
    return [block.co_code.hex(), list(block.co_names), inner]


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)  # a set has no order of its own


# ---- a result as text


def packed(result: Result) -> str:
    """A result as JSON, without names. Numbers come back as they were, to the last bit."""
    if isinstance(result, Attribution):
        held: Any = {"attribution": {name: _plain(value) for name, value in _fields(result).items()}}
    elif isinstance(result, Table):
        held = {"table": _columns(result)}
    else:
        held = {"tables": {name: _columns(table) for name, table in result.items()}}
    return json.dumps(held, default=_number, ensure_ascii=False)


def unpacked(file: Path) -> tuple[str, Any]:
    """What `packed` wrote: `attribution` and its fields, `table` and it, or `tables` and these by name.

    Raises UserError for a file that was not written by it.
    """
    try:
        ((kind, held),) = json.loads(file.read_text(encoding="utf-8")).items()
        if kind == "attribution":
            return kind, {name: _restored(value) for name, value in held.items()}
        return kind, _table(held) if kind == "table" else {name: _table(table) for name, table in held.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = type(error).__name__
        raise UserError(f"{file}: not a result of this kit ({reason}); delete it, and it is computed again") from None


def attribution(fields: dict[str, Any], method: str, case: Case, target: Target) -> Attribution:
    """An attribution under the names of who asks."""
    return Attribution(case, target, method, **fields)


def named(table: Table, names: Mapping[str, str]) -> Table:
    """A table behind its key columns."""
    found = table.copy()
    for place, (name, value) in enumerate(names.items()):
        found.insert(place, name, value)
    return found


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _fields(value: Any) -> dict[str, Any]:
    return {
        name: getattr(value, name) for name in _names(type(value)) if name not in ("method", "case", "target", "trust")
    }


KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Certificate, Piece)}  # what an attribution may hold


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": value.tolist()}
    if type(value).__name__ in KINDS:
        return {type(value).__name__: {name: _plain(item) for name, item in _fields(value).items()}}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(item) for item in value)
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    return np.array(held) if kind == "array" else KINDS[kind](**{n: _restored(item) for n, item in held.items()})


def _columns(table: Table) -> dict[str, Any]:
    """Each column's type and values, null where there is none; keys left out."""
    kept = [column for column in table.columns if column not in KEY_COLUMNS]
    values = {name: table[name].astype(object).where(table[name].notna(), None).tolist() for name in kept}
    return {str(name): [str(table[name].dtype), values[name]] for name in kept}


def _table(columns: dict[str, Any]) -> Table:
    return pd.DataFrame({name: pd.Series(values, dtype=kind) for name, (kind, values) in columns.items()})


def _number(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a result cannot hold a {type(value).__name__}; expected numbers, text and lists of them")
