"""Two models and one text, and the parts in which they differ.

A part is something that can be exchanged by itself: how some words are read (their tokens and input rows), how the
answer is written (its tokens, their input rows, all output rows), the attention or the MLP of some layers. A tied head
is untied: the input rows belong to the readings, the output rows to the writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xai_utils.attribution.target import Objective, Target, make_target
from xai_utils.errors import UserError
from xai_utils.models.blend import Place
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case


@dataclass(frozen=True)
class Part:
    """Something in which two models differ.

    `start` and `end` are characters of the words that a reading holds; `layers` and their `half` (attention, mlp, or
    rest for what stands outside all layers) are those of a group of layers.
    """

    name: str
    kind: str  # reading | writing | layers
    start: int | None = None
    end: int | None = None
    layers: tuple[int, ...] = ()
    half: str = ""


@dataclass(frozen=True)
class Side:
    """One of the two models with what it reads and has to write."""

    model: LoadedModel
    case: Case
    target: Target

    @property
    def continuations(self) -> list[tuple[float, tuple[int, ...]]]:
        """The continuations whose scores make up F, with their signs."""
        contrast = [(-1.0, self.target.contrast_ids)] if self.target.kind == "contrast" else []
        return [(1.0, self.target.ids), *contrast]

    def embed(self, ids: Sequence[int]) -> Float[Tensor, "position hidden"]:
        return self.model.embed(torch.tensor(ids, dtype=torch.long, device=self.model.device))

    def value(self) -> float:
        """F of this model alone, by a plain pass."""
        objective = Objective(self.model, self.case, self.target)
        return float(objective.values(objective.inputs[None])[0])


@dataclass(frozen=True)
class Pair:
    """The base and the other model on one text."""

    base: Side
    other: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.base, self.other

    def keys(self) -> dict[str, str]:
        """The key columns of a table about two models."""
        case, target = self.base.case, self.base.target
        named = {"study": case.study, "text": case.text_id, "base": self.base.model.label}
        return named | {"other": self.other.model.label} | target.keys() | {"unit": target.unit}

    def tolerance(self) -> float:
        """How far two ways to compute F may lie apart by rounding, for each of max(|F|, 1)."""
        return float(torch.finfo(self.base.model.dtype).eps ** 0.5)


def make_pair(base: LoadedModel, other: LoadedModel, base_case: Case, other_case: Case, kind: str) -> Pair:
    """Two models on one text with a target of this kind.

    Raises UserError for a target that is not about an answer, and for models that are asked for different ones.
    """
    if kind == "sum_logits":
        raise UserError("target sum_logits is not about an answer; expected logprob, logit or contrast for two models")
    targets = make_target(base, base_case, kind), make_target(other, other_case, kind)
    if targets[0].keys() != targets[1].keys():
        raise UserError(
            f"text '{base_case.text_id}': the models are asked for different answers ({targets[0].text!r}, "
            f"{targets[1].text!r}); expected one for both; give the text an answer"
        )
    return Pair(Side(base, base_case, targets[0]), Side(other, other_case, targets[1]))


def same(mine: Tensor, theirs: Tensor) -> bool:
    """Whether two spans of embeddings are the same, in number and values."""
    return mine.shape == theirs.shape and torch.equal(mine, theirs)


def written(both: Pair, places: tuple[Place, ...]) -> list[Part]:
    """The answer's writing, where its tokens, their input rows or the output rows differ."""
    spelt = any(
        mine != theirs or not same(both.base.embed(mine[:-1]), both.other.embed(theirs[:-1]))
        for (_, mine), (_, theirs) in zip(both.base.continuations, both.other.continuations, strict=True)
    )
    heads = any(place.half == "head" for place in places)
    return [Part("answer", "writing")] if heads or spelt else []


def layer_groups(count: int, places: tuple[Place, ...], groups: int) -> list[Part]:
    """The modules that differ in a model of `count` layers: `groups` runs of layers, attention and MLP apart."""
    runs = [tuple(run.tolist()) for run in np.array_split(np.arange(count), min(groups, count))]
    differing = {(place.layer, place.half) for place in places}
    parts = [
        Part(_layers_name(run, half), "layers", layers=run, half=half)
        for run in runs
        for half in ("attention", "mlp")
        if any((layer, half) in differing for layer in run)
    ]
    return [*parts, *([Part("outside the layers", "layers", half="rest")] if (None, "rest") in differing else [])]


def _layers_name(layers: tuple[int, ...], half: str) -> str:
    named = f"layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
    return f"{'MLP' if half == 'mlp' else half}, {named}"
