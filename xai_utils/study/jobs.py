"""One case to compute: what it takes, what it is called in the cache, and the text that its result is kept as.

A job can be computed in any process that can load the same model with the same code and libraries (cluster.py). It
holds no weights, and its result is plain JSON.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from xai_utils.attribution.result import Attribution, Certificate, Piece
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel
from xai_utils.study import results
from xai_utils.text.cases import Case


@dataclass(frozen=True)
class Job:
    """`function(model, case, target, **settings)`, which gives an Attribution or a table.

    `makers` is what makes its numbers beside its inputs: a process where that differs must not compute it.
    """

    name: str
    function: Callable[..., Attribution | pd.DataFrame]
    entry: ModelEntry
    reference: Tensor | None  # the mean embedding that the study's models have in common
    case: Case
    target: Target
    file: Path
    makers: Mapping[str, Any]
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.case.model}/{self.case.text_id}/{self.name}"

    def run(self, model: LoadedModel) -> str:
        """The result as text, computed with `model`, which must be the entry's."""
        found = self.function(model, self.case, self.target, **self.settings)
        if isinstance(found, Attribution):
            return to_json(dataclasses.replace(found, method=self.name))
        return found.to_json(orient="table", index=False, double_precision=15, force_ascii=False)


def reason(error: BaseException) -> str:
    """Why a job failed, in one line."""
    told = " ".join(str(error).split())
    return told if isinstance(error, UserError) else f"{type(error).__name__}: {told}".removesuffix(": ")


def made_by(model: LoadedModel, function: Callable[..., Any]) -> dict[str, Any]:
    """The weights, where they lie, the libraries and the code that a result of `function` comes from."""
    return {
        "weights": model.revision,
        "dtype": model.entry.dtype,
        "device": model.device.type,
        "versions": results.versions(),
        "code": code_version(function.__module__),
    }


def case_key(model: LoadedModel, case: Case, target: Target, function: Callable[..., Any], settings: Any) -> str:
    """A name made of all that a result depends on, code included."""
    makers = made_by(model, function)
    reference = model.mean_embedding.float().cpu().numpy().tobytes()
    parts = {
        "model": [makers["weights"], makers["dtype"], makers["device"], hashlib.sha256(reference).hexdigest()],
        "case": [case.text, case.ids, [(word.start, word.end) for word in case.words]],
        "target": dataclasses.asdict(target),
        "method": [function.__name__, settings, typed_in(function)],
        "versions": makers["versions"],
        "code": makers["code"],
    }
    return results.key(parts)


def typed_in(function: Callable[..., Attribution]) -> str:
    """The code of a method that no file holds, such as one typed into a notebook, else nothing."""
    code = function.__code__
    has_file = getattr(sys.modules[function.__module__], "__file__", None)
    return "" if has_file else repr((code.co_code.hex(), code.co_names, code.co_consts))


@functools.cache
def code_version(module: str) -> str:
    """Hash of a module's code, comments apart, and of all modules of this package that it takes something from.

    Reading studies and loading models is left out: what they can change is in the settings and the model's revision.
    """
    found = {name: "" for name in ("xai_utils.study.config", "xai_utils.models.loading")}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        file = getattr(sys.modules[name], "__file__", None)
        found[name] = ast.dump(ast.parse(Path(file).read_text(encoding="utf-8"))) if file else ""
        taken = (
            getattr(value, "__module__", None) or getattr(value, "__name__", "")
            for value in vars(sys.modules[name]).values()
        )
        waiting += [other for other in taken if str(other).startswith("xai_utils.") and other in sys.modules]
    return results.key(found)


def to_json(found: Attribution) -> str:
    """The numbers of an attribution; its case and target stand with whoever asks for it again."""
    content = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    numbers = {name: value for name, value in content.items() if name not in ("case", "target")}
    return json.dumps(numbers, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else dataclasses.asdict(value)


def attribution(job: Job) -> Attribution:
    """The result of a job that was computed."""
    return from_json(job.file.read_text(encoding="utf-8"), job.case, job.target)


def from_json(text: str, case: Case, target: Target) -> Attribution:
    content = json.loads(text)
    arrays = ("scores", "errors", "word_scores", "word_errors", "low", "high")
    content |= {name: np.array(content[name], dtype=float) for name in arrays if content[name] is not None}
    certificate = content["certificate"]
    content["certificate"] = None if certificate is None else Certificate(**certificate)
    inner = ("alphas", "values", "scores")
    content["path"] = tuple(
        Piece(**(piece | {name: np.array(piece[name]) for name in inner})) for piece in content["path"]
    )
    return Attribution(case=case, target=target, **content)
