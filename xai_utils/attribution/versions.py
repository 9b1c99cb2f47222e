"""Many versions of one prompt through a model: batches of like length, beginnings that are computed once.

Every perturbed prompt of this package passes through here, so that memory is that of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xai_utils.attribution.target import KEPT_POSITIONS, Objective
from xai_utils.models.batching import ENOUGH
from xai_utils.models.prefix import Prefix

Build = Callable[[Int[np.ndarray, " row"]], Float[Tensor, "row position hidden"]]


def evaluate(
    objective: Objective,
    since: Int[np.ndarray, " row"],
    build: Build,
    stems: tuple[Prefix, Int[np.ndarray, " row"]] | None = None,
    seen: Bool[Tensor, "row position"] | None = None,
) -> tuple[Float[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """F and the model's own next token for perturbed prompts, which `build` makes for a chunk of row numbers at a time.

    `since` is the first position at which each of them may differ from the prompt, or from the stem that it shares with
    other rows; what stands before it is computed once. `seen` is False where later positions must not attend.
    """
    if len(since) <= objective.batch_size() or not objective.reuses_prefix:  # one whole pass is as cheap as can be
        since, stems = np.zeros_like(since), None
    waiting, done = np.argsort(since, kind="stable"), Outcomes()
    while len(waiting):
        first = int(since[waiting[0]])
        rows, waiting = np.split(waiting, [objective.batch_size(first)])
        shared = (stems[0], torch.from_numpy(stems[1][rows])) if stems else None
        visible = None if seen is None else seen[rows][:, first:]
        done.add(rows, objective.outcomes(build(rows)[:, first:], first, shared, visible))
    return done.arrays()


def evaluate_shortened(
    objective: Objective, removed: Bool[np.ndarray, "row position"], padded: bool
) -> Float[np.ndarray, " row"]:
    """F of prompts without their removed positions, [row]; later positions move up.

    Rows of one batch are padded on the left to the longest, or, where the model does not take that, have one length.
    """
    size = removed.sum(1)
    order = np.argsort(removed, axis=1, kind="stable")  # what stays comes first, in reading order
    waiting, done = np.argsort(size, kind="stable"), Outcomes()
    while len(waiting):
        short = int(size[waiting[0]])  # of the longest row
        alike = len(waiting) if padded else int((size[waiting] == short).sum())
        rows, waiting = np.split(waiting, [min(objective.batch_size(short), alike)])
        length = removed.shape[1] - short
        padding = (size[rows] - short)[:, None]
        column = np.arange(length)[None] - padding  # of the row's own positions; negative where it is padded
        kept = torch.from_numpy(np.take_along_axis(order[rows], np.maximum(column, 0), axis=1))
        seen = torch.from_numpy(column >= 0).to(objective.inputs.device) if padding.any() else None
        done.add(rows, objective.outcomes(objective.inputs[kept.to(objective.inputs.device)], seen=seen))
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


def branching(kinds: Int[np.ndarray, "row position"], length: int) -> int:
    """Up to which position beginnings should be shared, so that the fewest positions are passed in all.

    With `length` positions to a row, d different beginnings of n positions cost d * n, and each row the rest of it.

    >>> branching(np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 1]]), 4)
    2
    """
    ordered = kinds[np.lexsort(kinds.T[::-1])]
    apart = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)  # from which position on neighbours differ
    ends = np.arange(1, kinds.shape[1])  # something must be left to pass
    beginnings = 1 + apart[:, ends - 1].sum(0)
    costs = np.where(
        beginnings * ends <= KEPT_POSITIONS * ENOUGH, beginnings * ends + len(kinds) * (length - ends), np.inf
    )
    return int(ends[np.argmin(costs)]) if len(ends) else 0


def first_changed(changed: Bool[np.ndarray, "row position"]) -> Int[np.ndarray, " row"]:
    """The first marked position of each row; the last position where none is marked, since something must be passed.

    >>> first_changed(np.array([[False, True, True], [False, False, False]])).tolist()
    [1, 2]
    """
    return np.where(changed.any(1), changed.argmax(1), changed.shape[1] - 1)
