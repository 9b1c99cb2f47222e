"""The attention kernel that is fastest where no weights are asked for.

transformers gives grouped heads to torch as they are. On a GPU in float32 no fused kernel takes them so, and torch
falls back to one operation after the other. Here keys and values are repeated first, so that the memory-efficient
kernel is used. Eager attention, which alone returns weights, is attention/layers.py's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

REPEATED = "sdpa_repeated"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of `query` [batch, head, position, size] over keys and values of fewer heads, which are repeated.

    Causal where no mask is given. Returns [batch, position, head, size] and no weights, as transformers expects.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    causal = attention_mask is None and query.shape[2] > 1
    found = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, is_causal=causal, scale=scaling
    )
    return found.transpose(1, 2).contiguous(), None


def causal_or_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **rest: Any,
) -> Tensor | None:
    """No mask where plain causal attention is meant; else transformers' own.

    transformers makes one while a CUDA graph is recorded, when it cannot look whether sequences are packed. Here they
    never are.
    """
    if attention_mask is None and q_length == kv_length and local_size is None and not use_vmap:
        return None
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        **rest,
    )


AttentionInterface.register(REPEATED, attend)
AttentionMaskInterface.register(REPEATED, causal_or_mask)


def choose(model: PreTrainedModel) -> None:
    """Switch a float32 model on a GPU from `sdpa` to the kernel above, where its heads are grouped."""
    config = model.config.get_text_config()
    grouped = getattr(config, "num_key_value_heads", None) not in (None, config.num_attention_heads)
    slow = model.device.type == "cuda" and model.dtype == torch.float32
    if grouped and slow and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(REPEATED)
