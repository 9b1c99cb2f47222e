"""One result to compute: what it takes, where it is kept, and how it is read under the names of the cases that ask.

A job can be computed in any process that can load the same models with the same libraries (cluster.py). It holds no
weights, and what it computes is text (store.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel
from xai_utils.study import store
from xai_utils.study.results import versions
from xai_utils.text.cases import Case


@dataclass(frozen=True)
class Job:
    """`function(*models, *cases, *targets, **settings)` of one model, or of two that read the same text.

    It gives an Attribution, a table, or a dictionary of tables. `makers` is what makes its numbers beside its inputs: a
    process where that differs must not compute it.
    """

    name: str
    function: Callable[..., store.Result]
    entries: tuple[ModelEntry, ...]
    references: tuple[Tensor | None, ...]  # the mean embeddings that the study's models have in common
    cases: tuple[Case, ...]
    targets: tuple[Target, ...]
    file: Path
    makers: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]

    @property
    def case(self) -> Case:
        return self.cases[0]

    @property
    def target(self) -> Target:
        return self.targets[0]

    @property
    def names(self) -> dict[str, str]:
        """The key columns of its tables."""
        if len(self.cases) == 1:
            return self.case.keys()
        base, other = self.cases
        return {"study": base.study, "text": base.text_id, "base": base.model, "other": other.model}

    def __str__(self) -> str:
        return f"{'-'.join(case.model for case in self.cases)}/{self.case.text_id}/{self.name}"

    def run(self, *models: LoadedModel) -> str:
        """The result as text, computed with `models`, which must be those of the entries."""
        return store.packed(self.function(*models, *self.cases, *self.targets, **self.settings))

    def result(self) -> Any:
        """The result that was kept, under the names of this job's cases. Raises UserError for a broken file."""
        kind, found = store.unpacked(self.file)
        if kind == "attribution":
            return store.attribution(found, self.name, self.case, self.target)
        if kind == "table":
            return store.named(found, self.names)
        return {name: store.named(table, self.names) for name, table in found.items()}


def makers(model: LoadedModel, function: Callable[..., Any]) -> dict[str, Any]:
    """The weights, precision, device, libraries and code that a result of `function` comes from."""
    return store.made_by(model) | {"versions": versions(), "code": store.content(function)}


def reason(error: BaseException) -> str:
    """Why a job failed, in one line."""
    message = " ".join(str(error).split())
    return message if isinstance(error, UserError) else f"{type(error).__name__}: {message}".removesuffix(": ")
