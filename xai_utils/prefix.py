"""A causal model does not look back: what stands before the first changed position is computed once and reused.

The keys and values of the unchanged prompt serve every version of it that differs only from some position on, which
halves the cost of perturbing one position after the other. Whether an architecture's cache gives the same numbers as a
whole pass is tried once on the prompt itself; where it does not, whole passes are made and a warning says so.
"""

from __future__ import annotations

import warnings
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from xai_utils.models import LoadedModel

AGREES = 1e-4  # of the largest logit: a whole pass and a continued one differ by rounding alone

_usable: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class Prefix:
    """Keys and values of one prompt's own embeddings, from which versions of it are continued."""

    def __init__(self, model: LoadedModel, inputs: Float[Tensor, "position hidden"]):
        self.model, self.inputs = model.model, inputs
        self._cache: DynamicCache | None = None

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
        middle = len(self.inputs) // 2
        try:
            continued = self.logits(self.inputs[None, middle:], middle, len(self.inputs) - middle)[0]
        except (TypeError, ValueError, AttributeError, RuntimeError):
            return False
        return bool((continued - whole[middle:]).abs().max() <= AGREES * whole.abs().max())

    def _whole(self) -> DynamicCache:
        if self._cache is None:
            self._cache = DynamicCache()
            whole = {"inputs_embeds": self.inputs[None], "past_key_values": self._cache}
            with torch.no_grad():
                self.model(**whole, use_cache=True, logits_to_keep=1)
        return self._cache

    def logits(
        self, embeds: Float[Tensor, "batch suffix hidden"], since: int, keep: int
    ) -> Float[Tensor, "batch keep vocabulary"]:
        """The last `keep` rows of logits of the prompt's first `since` positions followed by `embeds`.

        A gradient flows through `embeds` alone.
        """
        if since == 0:
            return self.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=keep).logits
        past = DynamicCache()
        for layer, kept in enumerate(self._whole().layers):
            keys, values = (part[:, :, :since].expand(len(embeds), -1, -1, -1) for part in (kept.keys, kept.values))
            past.update(keys, values, layer)
        mask = embeds.new_ones(len(embeds), since + embeds.shape[1], dtype=torch.long)
        output = self.model(
            inputs_embeds=embeds, attention_mask=mask, past_key_values=past, use_cache=True, logits_to_keep=keep
        )
        return output.logits
