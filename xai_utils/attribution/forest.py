"""F on many versions of one prompt as trees: what versions begin with alike goes through the model once.

A version is a sequence of ids of embedding rows, so that two versions share a node where they have had the same rows so
far, wherever these stood in the prompt. Sorted, versions that begin alike are neighbours; runs of them make trees of
like size, which fill a pass and the cores.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xai_utils.attribution.target import Objective
from xai_utils.models.batching import LEAST_PER_CORE, in_passes, positions
from xai_utils.models.precision import products
from xai_utils.models.tree import PromptTree, together

NODES = 384  # of a tree: what a node sees costs with their number
COSTS = 1.25  # times a position of a plain prompt, measured with trees of so many nodes

Version = tuple[int, ...]


class Forest:
    """Versions of a prompt: ids of `rows`, of which those in `hidden` are not seen by what stands behind them."""

    def __init__(
        self,
        objective: Objective,
        versions: Sequence[Version],
        rows: Float[Tensor, "id hidden"],
        hidden: Collection[int] = frozenset(),
    ):
        self.objective, self.versions, self.rows, self.hidden = objective, versions, rows, hidden
        self._order = sorted(range(len(versions)), key=versions.__getitem__)

    @cached_property
    def _new(self) -> np.ndarray:
        """How many nodes each version adds, in order, with what is asked for behind it."""
        ordered = [self.versions[row] for row in self._order]
        behind = sum(len(ids) - 1 for ids, _ in self.objective.answers)
        new = [len(ordered[0])] + [len(own) - alike(before, own) for before, own in pairwise(ordered)]
        return np.array(new) + behind

    @property
    def cost(self) -> float:
        """In positions of plain prompts."""
        return COSTS * float(self._new.sum())

    def values(self) -> Float[np.ndarray, " version"]:
        values = np.zeros(len(self.versions))
        at_once = max(positions(self.objective.model) // NODES, 1) * self._cores
        runs = self._runs()
        for start in range(0, len(runs), at_once):
            trees = [_Tree(self, run) for run in runs[start : start + at_once]]
            for tree, scores in zip(trees, self._scores(trees), strict=True):
                np.add.at(values, tree.version, tree.sign * scores[: len(tree.sign)])
        self.objective.forwards += len(self.versions)
        return values

    @property
    def _cores(self) -> int:
        return torch.get_num_threads() if self.rows.device.type == "cpu" else 1

    def _runs(self) -> list[list[int]]:
        """Neighbours, cut into as many trees as are needed or as there are cores with enough to do."""
        total = int(self._new.sum())
        number = max(-(-total // NODES), min(self._cores, total // LEAST_PER_CORE), 1)
        which = (np.cumsum(self._new) - self._new) * number // total
        return [np.array(self._order)[which == tree].tolist() for tree in np.unique(which)]

    def _scores(self, trees: Sequence[_Tree]) -> list[np.ndarray]:
        """Of each tree, for what is asked of it, the log-probability of a token, or its logit."""
        model, kind = self.objective.model, self.objective.target.kind
        inputs = together([tree.tree for tree in trees], [tree.last for tree in trees])
        width = max(len(tree.last) for tree in trees)
        most = max(len(tree.ids) for tree in trees)
        asked = [([width - len(tree.last) + slot for slot in tree.slots], tree.ids) for tree in trees]
        slots, ids = (
            torch.tensor([column + [0] * (most - len(column)) for column in columns], device=model.device)
            for columns in zip(*asked, strict=True)
        )
        length = inputs["inputs_embeds"].shape[1]
        kept = torch.arange(length - width, length, device=model.device)

        def part(which: slice) -> Tensor:
            given = {name: tensor[which] for name, tensor in inputs.items()}
            with torch.no_grad():  # here: a pass may run in a thread of its own
                logits = model.model(**given, use_cache=False, logits_to_keep=kept).logits
            logits = logits if logits.dtype == torch.float64 else logits.float()
            place = torch.arange(len(logits), device=model.device)[:, None]
            own = logits[place, slots[which], ids[which]]
            return own if kind == "logit" else own - logits.logsumexp(-1).gather(1, slots[which])

        with products(model.entry.dtype):
            found = in_passes(part, inputs["inputs_embeds"], max(positions(model) // length, 1))
        return list(torch.cat(found).double().cpu().numpy())


class _Tree:
    """A run of versions with their answers, and what is asked: for each token of an answer the node in front of it."""

    def __init__(self, forest: Forest, run: Sequence[int]):
        self.tree, nodes = PromptTree(), list[int]()
        self.ids, self.version, self.sign = list[int](), list[int](), np.array([])
        signs = list[float]()
        for row in run:
            prompt = [(name, forest.rows[name][None]) for name in forest.versions[row]]
            for number, (ids, before_last) in enumerate(forest.objective.answers):
                path = self.tree.add([*prompt, (("answer", number), before_last)], forest.hidden)
                nodes += path[-len(ids) :]
                self.ids += ids.tolist()
                self.version += [row] * len(ids)
                signs += [-1.0 if number else 1.0] * len(ids)
        last, slots = np.unique(nodes, return_inverse=True)
        self.last, self.slots, self.sign = last.tolist(), slots.tolist(), np.array(signs)


def alike(one: Version, other: Version) -> int:
    """With how many ids both begin.

    >>> alike((1, 2, 3), (1, 2, 4)), alike((1, 2), (1, 2, 4)), alike((), (1,))
    (2, 2, 0)
    """
    return next(
        (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )
