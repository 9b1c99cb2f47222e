"""Many prompts that begin alike in one pass: a tree of positions, of which each sees itself and its ancestors alone.

A causal model computes for every node what it would compute for the prompt that ends there, so what prompts share in
front is computed once. Needs a model that takes position numbers and an explicit mask; a tree without branches is an
ordinary prompt, and is passed as one.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Inputs = dict[str, Any]  # what a model of transformers takes


class PromptTree:
    """Prompts as paths from the root. Nodes are numbered in the order in which they came."""

    def __init__(self) -> None:
        self._embeds: list[Tensor] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._hidden: set[int] = set()
        self._children: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def add(
        self, pieces: Iterable[tuple[Hashable, Float[Tensor, "position hidden"]]], hidden: Container[Hashable] = ()
    ) -> list[int]:
        """Put in a prompt, given as named pieces; behind one prefix a name stands for one piece. Returns its nodes.

        Pieces whose names are in `hidden`, never the first, are seen by no node, themselves included.
        """
        nodes: list[int] = []
        for name, rows in pieces:
            for offset, row in enumerate(rows):
                key = (nodes[-1] if nodes else -1, name, offset)
                if key not in self._children:
                    self._children[key] = len(self)
                    if name in hidden:
                        self._hidden.add(len(self))
                    self._depths.append(len(nodes))
                    self._parents.append(key[0])
                    self._embeds.append(row)
                nodes.append(self._children[key])
        return nodes

    def inputs(self) -> Inputs:
        """One row of embeddings, with mask and position numbers if the tree branches."""
        if self._parents == list(range(-1, len(self) - 1)) and not self._hidden:
            return {"inputs_embeds": torch.stack(self._embeds)[None]}
        return together([self], [[]])

    def _sees(self) -> Bool[np.ndarray, "node node"]:
        sees = np.zeros((len(self), len(self)), dtype=bool)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                sees[node] = sees[parent]
            sees[node, node] = node not in self._hidden
        return sees

    def _placed(self, places: np.ndarray, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings, position numbers, and who sees whom, each node at its place among `width`."""
        embeds = self._embeds[0].new_zeros(width, len(self._embeds[0]))
        numbers, sees = np.zeros(width, dtype=int), np.eye(width, dtype=bool)  # a place without a node sees itself
        embeds[torch.from_numpy(places).to(embeds.device)] = torch.stack(self._embeds)
        numbers[places] = self._depths
        sees[np.ix_(places, places)] = self._sees()
        return embeds, torch.from_numpy(numbers), torch.from_numpy(sees)


def together(trees: Sequence[PromptTree], last: Sequence[Sequence[int]]) -> Inputs:
    """Several trees as one batch; of each the nodes named by `last` stand at the end, in this order."""
    width, parts = max(map(len, trees)), []
    for tree, ends in zip(trees, last, strict=True):
        places = np.empty(len(tree), dtype=int)
        places[np.setdiff1d(np.arange(len(tree)), ends)] = np.arange(len(tree) - len(ends))
        places[list(ends)] = width - len(ends) + np.arange(len(ends))
        parts.append(tree._placed(places, width))
    embeds, numbers, sees = (torch.stack(column) for column in zip(*parts, strict=True))
    mask = torch.zeros(sees.shape, dtype=embeds.dtype).masked_fill_(~sees, torch.finfo(embeds.dtype).min)
    return {
        "inputs_embeds": embeds,
        "attention_mask": mask[:, None].to(embeds.device),
        "position_ids": numbers.to(embeds.device),
    }
