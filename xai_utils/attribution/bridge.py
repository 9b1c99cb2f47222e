"""The bridge from a base to its adapted twin: the difference in steps, each a model of its own.

tokenizer     the other tokenizer with untrained rows, in both of their roles
input_rows    the other's rows where the prompt is read
output_rows   the other's rows where the answer is written, and where its own tokens are read again
body          all other weights

The steps are taken in this order and sum to F_other - F_base. A pair without an untrained control has no step of its
own for the tokenizer: its spelling then belongs to the rows. What does not differ has no step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from xai_utils.attribution.mixture import Mixture
from xai_utils.attribution.parts import Pair, make_pair
from xai_utils.errors import UserError
from xai_utils.models.blend import blend
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

VERSION = 1  # raise it when the method would give other numbers
STEPS = {"input_rows": "reading", "output_rows": "writing", "body": "layers"}  # and the parts that each exchanges


@dataclass(frozen=True)
class Bridge:
    """What each step adds to F, in the unit of the target."""

    keys: dict[str, str]  # study, text, base, other, target, target_text, unit
    steps: tuple[str, ...]
    scores: np.ndarray  # [step]
    f_base: float
    f_other: float

    def rows(self) -> list[dict[str, Any]]:
        """One row a step, of the table `bridge`."""
        ends = {"f_base": self.f_base, "f_other": self.f_other}
        return [
            self.keys | {"step": step, "score": score} | ends
            for step, score in zip(self.steps, self.scores.tolist(), strict=True)
        ]


def bridge(
    base: LoadedModel,
    other: LoadedModel,
    base_case: Case,
    other_case: Case,
    kind: str = "logprob",
    *,
    untrained: LoadedModel | None = None,
) -> Bridge:
    """F_other - F_base in steps. `untrained` is the other model with its rows as they were before training.

    Raises UserError as `swap` does, and for an untrained control whose tokenizer or body is not as described.
    """
    both = make_pair(base, other, base_case, other_case, kind)
    if untrained is None:
        steps, values = _steps(both)
        return Bridge(both.keys(), tuple(steps), np.diff(values), values[0], values[-1])
    _check(base, other, untrained)
    own = dataclasses.replace(other_case, model=untrained.label, role=untrained.role)
    f_base = float(Mixture(both).ends()[0])
    steps, values = _steps(make_pair(untrained, other, own, other_case, kind))
    values = [f_base, *values]
    return Bridge(both.keys(), ("tokenizer", *steps), np.diff(values), values[0], values[-1])


def _steps(both: Pair) -> tuple[list[str], list[float]]:
    """The steps in which two models differ, and F before, between and after them."""
    mixture = Mixture(both)
    mixture.ends()
    kinds = np.array([part.kind for part in mixture.parts])
    steps = [step for step, kind in STEPS.items() if (kinds == kind).any()]
    taken = [np.isin(kinds, [STEPS[step] for step in steps[:count]]) for count in range(len(steps) + 1)]
    return steps, mixture.values(np.array(taken).reshape(len(steps) + 1, -1)).tolist()


def _check(base: LoadedModel, other: LoadedModel, untrained: LoadedModel) -> None:
    if untrained.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise UserError(f"'{untrained.label}' has another vocabulary than '{other.label}'; expected the same tokenizer")
    if any(place.half != "head" for place in blend(base, untrained).places):
        raise UserError(
            f"'{untrained.label}' differs from '{base.label}' in more than its rows, so the bridge would count its "
            "body twice; expected an adapter of token rows alone; leave the untrained control out"
        )
