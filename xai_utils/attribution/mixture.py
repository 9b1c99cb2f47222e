"""F of models that are partly the base and partly the other: what swap attribution, its bridge and the deletion of
layers ask for. Mixed prompts that begin alike share a pass (models/tree.py), and so do mixed bodies (models/blend.py).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xai_utils.attribution.parts import Pair, Part, layer_groups, same, written
from xai_utils.errors import UserError
from xai_utils.models.batching import in_passes, positions
from xai_utils.models.blend import blend
from xai_utils.models.tree import PromptTree
from xai_utils.text.splicing import segments

MOST_NODES = 2048  # nodes of a tree: its mask grows with their square


@dataclass(frozen=True)
class _Asked:
    """Tokens whose scores are asked for, behind these nodes of a tree; `text` is the row of reading and writing."""

    text: int
    nodes: list[int]
    ids: tuple[int, ...]
    sign: float
    by_other: bool


class Mixture:
    """F as a function of which parts are the other model's; `parts` are all in which the two differ.

    Layers that differ are cut into `groups` runs, attention and MLP apart.
    Raises UserError for different texts, and models whose parts cannot be exchanged.
    """

    def __init__(self, both: Pair, groups: int = 4):
        self.both = both
        self.blend = blend(both.base.model, both.other.model)
        self.packed = True  # many prompts in one tree
        spans = segments(both.base.case, both.other.case)
        self._pieces = [  # of the prompt, as either model reads them
            [
                side.embed([side.case.ids[at] for at in places])
                for side, places in zip(both.sides, one.positions, strict=True)
            ]
            for one in spans
        ]
        self._swapped = [not same(*pieces) for pieces in self._pieces]
        read = [
            Part(one.name, "reading", one.start, one.end)
            for one, swapped in zip(spans, self._swapped, strict=True)
            if swapped
        ]
        layers = both.base.model.model.config.get_text_config().num_hidden_layers
        self._texts = (*read, *written(both, self.blend.places))
        self._bodies = tuple(layer_groups(layers, self.blend.places, groups))
        self.parts: tuple[Part, ...] = (*self._texts, *self._bodies)

    def values(self, chosen: Bool[np.ndarray, "subset part"]) -> Float[np.ndarray, " subset"]:
        """F with the chosen parts the other model's and all other parts the base's."""
        cut = len(self._texts)
        texts, text = np.unique(chosen[:, :cut], axis=0, return_inverse=True)
        bodies, body = np.unique(chosen[:, cut:], axis=0, return_inverse=True)
        text, body = text.ravel(), body.ravel()
        asked = np.zeros((len(bodies), len(texts)), dtype=bool)
        asked[body, text] = True
        table = np.full(asked.shape, np.nan)
        for rows in [np.arange(len(bodies))] if asked.all() else np.arange(len(bodies))[:, None]:
            which = np.flatnonzero(asked[rows].any(0))
            table[np.ix_(rows, which)] = self._product(bodies[rows], texts[which])
        return table[body, text]

    def ends(self) -> Float[np.ndarray, " model"]:
        """F of the base and of the other model, as mixtures, checked against plain passes.

        Raises UserError where they disagree: the models then differ in more than their parts.
        """
        alone = np.array([side.value() for side in self.both.sides])
        halves = np.array([[False, False], [False, True], [True, False], [True, True]])  # texts, bodies: one tree
        corners = np.repeat(halves, [len(self._texts), len(self._bodies)], axis=1)
        for self.packed in (True, False):
            ends = self.values(corners)[[0, -1]]
            if (np.abs(ends - alone) <= self.both.tolerance() * np.maximum(np.abs(alone), 1.0)).all():
                if not self.packed:
                    name = type(self.both.base.model.model).__name__
                    warnings.warn(f"{name} does not take prompts as a tree; they are passed one by one", stacklevel=3)
                return ends
        raise UserError(
            f"'{self.both.other.model.label}' gives {alone[1]:.4g} by itself and {ends[1]:.4g} as parts in the base; "
            "expected the same: the models differ in more than their weights, such as their configuration"
        )

    def _product(
        self, bodies: Bool[np.ndarray, "body part"], texts: Bool[np.ndarray, "text part"]
    ) -> Float[np.ndarray, "body text"]:
        """F of every body with every way of reading and writing."""
        capacity = min(positions(self.both.base.model), MOST_NODES) if self.packed else 1
        values = np.zeros((len(bodies), len(texts)))
        tree, asked = PromptTree(), list[_Asked]()
        for index, text in enumerate(texts):
            asked += self._ask(tree, index, text)
            if len(tree) >= capacity or index + 1 == len(texts):
                scores = self._scores(tree, asked, bodies)
                for one, columns in zip(asked, scores, strict=True):
                    values[:, one.text] += one.sign * columns
                tree, asked = PromptTree(), []
        return values

    def _ask(self, tree: PromptTree, index: int, text: Bool[np.ndarray, " part"]) -> list[_Asked]:
        """Put a prompt and what is to be written behind it into a tree."""
        choices = iter(text.tolist())
        chosen = [swapped and next(choices) for swapped in self._swapped]
        prompt = [((at, own), self._pieces[at][own]) for at, own in enumerate(chosen)]
        by_other = next(choices, False)
        writer = self.both.sides[by_other]
        asked = []
        for continuation, (sign, ids) in enumerate(writer.continuations):
            nodes = tree.add([*prompt, (("answer", by_other, continuation), writer.embed(ids[:-1]))])
            asked.append(_Asked(index, nodes[-len(ids) :], ids, sign, by_other))
        return asked

    def _scores(
        self, tree: PromptTree, asked: list[_Asked], bodies: Bool[np.ndarray, "body part"]
    ) -> list[Float[np.ndarray, " body"]]:
        """For each continuation of a tree its score under every body."""
        model, kind = self.both.base.model, self.both.base.target.kind
        nodes = torch.tensor([node for one in asked for node in one.nodes], device=model.device)
        ids = torch.tensor([token for one in asked for token in one.ids], device=model.device)
        by_other = torch.tensor([one.by_other for one in asked for _ in one.ids], device=model.device)
        scales = self._scales(torch.from_numpy(bodies).to(model.device), by_other)
        inputs = tree.inputs()
        embeds = inputs.pop("inputs_embeds").expand(len(bodies), -1, -1)

        @torch.no_grad()
        def part(rows: slice) -> Tensor:
            with self.blend.at([scale[rows] for scale in scales]) as mixed:
                logits = mixed(inputs_embeds=embeds[rows], **inputs, use_cache=False, logits_to_keep=nodes).logits
            return token_scores(logits, ids, kind)

        scores = torch.cat(in_passes(part, embeds, max(positions(model) // len(tree), 1))).double().cpu().numpy()
        ends = np.cumsum([len(one.ids) for one in asked])[:-1]
        return [columns.sum(1) for columns in np.split(scores, ends, axis=1)]

    def _scales(self, bodies: Bool[Tensor, "body part"], by_other: Bool[Tensor, " token"]) -> list[Tensor]:
        """For each module that differs, in which bodies it is the other model's; for the head, behind which nodes."""
        column = {
            (layer, part.half): bodies[:, index]
            for index, part in enumerate(self._bodies)
            for layer in part.layers or (None,)
        }
        head = by_other.expand(len(bodies), -1)
        return [head if place.half == "head" else column[place.layer, place.half] for place in self.blend.places]


def token_scores(
    logits: Float[Tensor, "row token vocabulary"], ids: Int[Tensor, " token"], kind: str
) -> Float[Tensor, "row token"]:
    """The log-probability of each token, or for the target `logit` its logit."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    own = logits.gather(-1, ids.expand(len(logits), -1)[..., None])[..., 0]
    # Not log_softmax, which in float32 loses up to 1e-5 a token over a large vocabulary and copies the logits.
    return own if kind == "logit" else own - logits.logsumexp(-1)
