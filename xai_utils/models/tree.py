"""Many prompts that begin alike in one pass: a tree of positions, of which each sees itself and its ancestors alone.

A causal model computes for every node what it would compute for the prompt that ends there, so what prompts share in
front is computed once. Needs a model that takes position numbers and an explicit mask; a tree without branches is an
ordinary prompt, and is passed as one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class PromptTree:
    """Prompts as paths from the root. Nodes are numbered in the order in which they came."""

    def __init__(self) -> None:
        self._embeds: list[Tensor] = []
        self._parents: list[int] = []
        self._children: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def add(self, pieces: Iterable[tuple[Hashable, Float[Tensor, "position hidden"]]]) -> list[int]:
        """Put in a prompt, given as named pieces; behind one prefix a name stands for one piece. Returns its nodes."""
        nodes: list[int] = []
        for name, rows in pieces:
            for offset, row in enumerate(rows):
                key = (nodes[-1] if nodes else -1, name, offset)
                if key not in self._children:
                    self._children[key] = len(self)
                    self._parents.append(key[0])
                    self._embeds.append(row)
                nodes.append(self._children[key])
        return nodes

    def inputs(self) -> dict[str, Any]:
        """What a model of transformers takes: one row of embeddings, with mask and position numbers if it branches."""
        embeds = torch.stack(self._embeds)
        if self._parents == list(range(-1, len(self) - 1)):
            return {"inputs_embeds": embeds[None]}
        sees = torch.zeros(len(self), len(self), dtype=torch.bool)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                sees[node] = sees[parent]
            sees[node, node] = True
        mask = torch.zeros(sees.shape, dtype=embeds.dtype).masked_fill_(~sees, torch.finfo(embeds.dtype).min)
        return {
            "inputs_embeds": embeds[None],
            "attention_mask": mask[None, None].to(embeds.device),
            "position_ids": (sees.sum(1) - 1)[None].to(embeds.device),
        }
