"""Many versions of one prompt through a model: batches of like length, beginnings that are computed once.

Every perturbed prompt of this package passes through here, so that memory is that of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xai_utils.attribution.target import Objective

Build = Callable[[Int[np.ndarray, " row"]], Float[Tensor, "row position hidden"]]


def evaluate(
    objective: Objective,
    since: Int[np.ndarray, " row"],
    build: Build,
    seen: Bool[Tensor, "row position"] | None = None,
) -> tuple[Float[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """F and the model's own next token for perturbed prompts, which `build` makes for a chunk of row numbers at a time.

    `since` is the first position at which each of them may differ from the prompt; what stands before it is computed
    once. `seen` is False where later positions must not attend.
    """
    if len(since) <= objective.batch_size() or not objective.reuses_prefix:  # one whole pass is as cheap as can be
        since = np.zeros_like(since)
    waiting, done = np.argsort(since, kind="stable"), Outcomes()
    while len(waiting):
        first = int(since[waiting[0]])
        rows, waiting = np.split(waiting, [objective.batch_size(first)])
        visible = None if seen is None else seen[rows][:, first:]
        done.add(rows, objective.outcomes(build(rows)[:, first:], first, visible))
    return done.arrays()


def evaluate_shortened(objective: Objective, removed: Bool[np.ndarray, "row position"]) -> Float[np.ndarray, " row"]:
    """F of prompts without their removed positions, [row], those of one length together; later positions move up."""
    size = removed.sum(1)
    order = np.argsort(removed, axis=1, kind="stable")  # what stays comes first, in reading order
    waiting, done = np.argsort(size, kind="stable"), Outcomes()
    while len(waiting):
        gone = int(size[waiting[0]])
        alike = int((size[waiting] == gone).sum())
        rows, waiting = np.split(waiting, [min(objective.batch_size(gone), alike)])
        kept = torch.from_numpy(order[rows, : removed.shape[1] - gone]).to(objective.inputs.device)
        done.add(rows, objective.outcomes(objective.inputs[kept]))
    return done.arrays()[0]


class Outcomes:
    """Values and next tokens of rows in any order, brought to the host once."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._found: list[tuple[Tensor, Tensor]] = []

    def add(self, rows: Int[np.ndarray, " row"], found: tuple[Tensor, Tensor]) -> None:
        self._rows.append(rows)
        self._found.append(found)

    def arrays(self) -> tuple[Float[np.ndarray, " row"], Int[np.ndarray, " row"]]:
        place = np.argsort(np.concatenate(self._rows))
        value, token = (torch.cat(column).cpu().numpy()[place] for column in zip(*self._found, strict=True))
        return value.astype(np.float64), token


def first_changed(changed: Bool[np.ndarray, "row position"]) -> Int[np.ndarray, " row"]:
    """The first marked position of each row; the last position where none is marked, since something must be passed.

    >>> first_changed(np.array([[False, True, True], [False, False, False]])).tolist()
    [1, 2]
    """
    return np.where(changed.any(1), changed.argmax(1), changed.shape[1] - 1)
