"""A model that is already in memory, as one that was loaded; the caller's model stays as it is.

The copy shares the caller's weights and nothing else: modes, gradients and hooks are its own. Only the layers that a
PEFT adapter changes get weights of their own, into which the active adapters are merged.
"""

from __future__ import annotations

import copy
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from xai_utils.errors import UserError
from xai_utils.fields import checked
from xai_utils.models import adapters, kernels
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel, usable


def wrap(model: Any, tokenizer: Any, label: str = "in-memory", role: str = "base") -> LoadedModel:
    """A transformers causal language model, or a PeftModel over one, with its tokenizer, ready to be explained.

    The weights are shared, so nothing is read again, and a later training step of the caller's changes what is
    explained; layers under an adapter are copied and merged. Raises UserError: not such a model, a tokenizer without
    character offsets, an adapter that cannot be merged, a model that does not read embeddings.
    """
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise UserError(
            f"a {type(model).__name__} cannot be wrapped; expected a transformers causal language model or a PeftModel"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"the tokenizer is a {type(tokenizer).__name__}, which does not say which characters a token covers; "
            "expected AutoTokenizer.from_pretrained(...) with a tokenizer.json"
        )
    own: Any = _sharing(model).eval()
    if isinstance(own, PeftModel):
        own = adapters.merged(own, label)
    kernels.choose(own)
    entry = checked(ModelEntry, label=label, role=role, model="in memory", dtype=str(own.dtype).removeprefix("torch."))
    return usable(LoadedModel(entry, own.requires_grad_(False), tokenizer, f"in memory {id(own)}"))


def _sharing(model: nn.Module) -> nn.Module:
    """A copy whose parameters are frozen views of the model's, but for those of layers that an adapter changes."""
    adapted = [part for part in model.modules() if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    changed = {id(parameter) for part in adapted for parameter in part.parameters()}
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        if id(parameter) not in changed:
            frozen = nn.Parameter(parameter.detach(), requires_grad=False) if parameter.requires_grad else parameter
            memo[id(parameter)] = frozen
    return copy.deepcopy(model, memo)
