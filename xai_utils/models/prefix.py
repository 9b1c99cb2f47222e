"""A causal model does not look back: what stands before the first changed position is computed once and reused.

The keys and values of the unchanged prompt serve every version of it that differs only from some position on, which
halves the cost of perturbing one position after the other.
Whether an architecture's cache gives the same numbers as a whole pass is tried once on the prompt itself; where it does
not, whole passes are made and a warning says so.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from xai_utils.models.visibility import position_numbers

if TYPE_CHECKING:
    from xai_utils.models.loading import LoadedModel

AGREES = 1e-4  # of the largest logit: a whole pass and a continued one differ by rounding alone

_usable: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class Prefix:
    """Keys and values of a prompt, from any position of which versions of it are continued."""

    def __init__(self, model: LoadedModel, inputs: Float[Tensor, "position hidden"]):
        self.model, self.inputs = model.model, inputs
        self._layers: list[tuple[Tensor, Tensor]] = []

    @property
    def usable(self) -> bool:
        """Whether continuing from the middle of this prompt gives what a whole pass gives."""
        if self.model not in _usable:
            _usable[self.model] = self._tried()
            if not _usable[self.model]:
                name = type(self.model).__name__
                warnings.warn(
                    f"{name} cannot be continued from kept keys and values; whole passes are made", stacklevel=2
                )
        return _usable[self.model]

    @torch.no_grad()
    def _tried(self) -> bool:
        full = {"full_attention", None}
        if not set(getattr(self.model.config, "layer_types", None) or [None]) <= full:
            return False
        whole = self.model(inputs_embeds=self.inputs[None], use_cache=False).logits[0]
        middle, length = len(self.inputs) // 2, len(self.inputs)
        try:
            continued = self.logits(self.inputs[None, middle:], middle, length - middle)[0]
        except (TypeError, ValueError, AttributeError, RuntimeError):
            return False
        return bool((continued - whole[middle:]).abs().max() <= AGREES * whole.abs().max())

    @torch.no_grad()
    def prepare(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, [1, head, position, size], computed on the first call."""
        if not self._layers:
            cache = DynamicCache()
            self.model(inputs_embeds=self.inputs[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
            layers: Any = cache.layers
            self._layers = [(layer.keys, layer.values) for layer in layers]
        return self._layers

    def logits(
        self,
        embeds: Float[Tensor, "batch suffix hidden"],
        since: int,
        keep: int,
        seen: Bool[Tensor, "batch suffix"] | None = None,
    ) -> Float[Tensor, "batch keep vocabulary"]:
        """The last `keep` rows of logits of the first `since` positions of the prompt followed by `embeds`.

        `seen` is False where later positions must not attend to `embeds`. A gradient flows through `embeds` alone.
        """
        rows, length = embeds.shape[:2]
        # Positions by index: a slice would stay strided, and the head read its whole matrix once for each row.
        last = torch.arange(length - keep, length, device=embeds.device)
        if since == 0:
            masked = {} if seen is None else _masked(seen)
            return self.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=last, **masked).logits
        past = DynamicCache()
        for layer, pair in enumerate(self.prepare()):
            # Copies: rows that are only expanded take longer to be joined to what follows.
            keys, values = (one[:, :, :since].repeat(rows, 1, 1, 1) for one in pair)
            past.update(keys, values, layer)
        masked = {} if seen is None else self._continued(since, seen)
        output = self.model(inputs_embeds=embeds, past_key_values=past, use_cache=True, logits_to_keep=last, **masked)
        return output.logits

    def _continued(self, since: int, seen: Tensor) -> dict[str, Tensor]:
        """The attention mask over the whole prompt, and the numbers of the positions that follow."""
        masked = _masked(torch.cat([seen.new_ones(len(seen), since), seen], 1))
        return masked | {"position_ids": masked["position_ids"][:, since:]}


def _masked(seen: Bool[Tensor, "row position"]) -> dict[str, Tensor]:
    return {"attention_mask": seen.long(), "position_ids": position_numbers(seen)}
