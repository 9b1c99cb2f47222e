"""Layer-wise relevance propagation as a gradient: the rules, put on a model for as long as a `with` block lasts.

Every non-linear step y = g(x) gets the gradient of a linear one with the same value at x. The outputs f are then linear
in the embeddings e_t and the biases b, so that f = sum_t e_t . df/de_t + sum_b b . df/db. No value changes.

| step | what its gradient is taken of | source |
|---|---|---|
| RMSNorm | x * w * c, the scale c = 1 / rms(x) held fixed | LN rule, Ali et al. 2022 (arXiv 2202.07304) |
| activation | x * c, c = act(x) / x held fixed | identity rule, Jafari et al. 2025 (arXiv 2508.21258) |
| act(gate) * up | half to each factor | uniform rule, Achtibat et al. 2024 (arXiv 2402.05602) |
| attention, `cp` | A v, the weights A held fixed | AH rule, Ali et al. 2022 |
| attention, `attn` | A v, half to each factor; of A's half, q and k get half each | Achtibat et al. 2024 |

In AttnLRP the softmax between q k and A keeps its own gradient (a first-order Taylor step), which does not conserve f.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from xai_utils.errors import UserError

Rule = Literal["cp", "attn"]

LINEAR = (nn.Linear, nn.Embedding, nn.Dropout, nn.Identity)
NEAR_ZERO = 1e-4  # below it act(x) / x is taken at this x: the quotient is flat there, and 0 / 0 is none
FIT_TOLERANCE = 1e-3  # of a norm's largest output, by which a row's fitted scale may miss it in float32


def _share(tensor: Tensor, share: float) -> Tensor:
    """The same value, with `share` of its gradient."""
    return share * tensor + (1 - share) * tensor.detach()


# ---- attention, through transformers' own interface


def _cp_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
    return _SDPA(module, query.detach(), key.detach(), value, *rest, **options)


def _attn_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
    return _SDPA(module, _share(query, 1 / 4), _share(key, 1 / 4), _share(value, 1 / 2), *rest, **options)


_SDPA = AttentionInterface()["sdpa"]
ATTENTION = {"cp": "xai_cp_lrp", "attn": "xai_attn_lrp"}
AttentionInterface.register(ATTENTION["cp"], _cp_attention)
AttentionInterface.register(ATTENTION["attn"], _attn_attention)
for _name in ATTENTION.values():
    AttentionMaskInterface.register(_name, AttentionMaskInterface()["sdpa"])


# ---- modules, through hooks


def _norm(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor | None:
    """x * w * c in place of RMSNorm's output; the weight w is read off the module's answer to ones, c off the output.

    A module whose output does not depend on the prompt (rotary angles) is left alone. Raises UserError where the
    output is not of that form.
    """
    parts = output if isinstance(output, tuple) else (output,)
    if not any(isinstance(part, Tensor) and part.requires_grad for part in parts):
        return None
    with torch.no_grad():
        hidden = inputs[0].float()
        weighted = module.forward(torch.ones_like(inputs[0]), *inputs[1:])
        if not all(isinstance(part, Tensor) and part.shape == hidden.shape for part in (output, weighted)):
            raise _unknown(module)
        fitted = hidden * weighted
        size = (output * fitted).sum(-1, keepdim=True) / fitted.square().sum(-1, keepdim=True).clamp_min(1e-30)
        tolerance = max(FIT_TOLERANCE, 4 * torch.finfo(output.dtype).eps) * output.abs().amax()
        if not (size * fitted - output).abs().amax() <= tolerance:
            raise _unknown(module)
    return inputs[0] * (size * weighted).to(output.dtype)


def _activation(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """x * c in place of act(x), c = act(x) / x."""
    with torch.no_grad():
        hidden = inputs[0].float()
        hidden = torch.where(hidden.abs() < NEAR_ZERO, NEAR_ZERO, hidden)
        slope = module.forward(hidden) / hidden
    return inputs[0] * slope.to(output.dtype)


def _halved(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (_share(inputs[0], 1 / 2), *inputs[1:])


def _unknown(module: nn.Module) -> UserError:
    return UserError(
        f"one-pass relevance has no rule for the module {type(module).__name__}; expected layers of attention, RMSNorm "
        "and gated MLPs (Llama, Mistral, Qwen, Gemma and their like); use panel Shapley, ablation or another method"
    )


def _is_gated(module: nn.Module) -> bool:
    fused = hasattr(module, "gate_up_proj")
    return hasattr(module, "down_proj") and (fused or (hasattr(module, "gate_proj") and hasattr(module, "up_proj")))


def _hooks(model: PreTrainedModel) -> Iterator[RemovableHandle]:
    gated = [module for module in model.modules() if _is_gated(module)]
    activations = {child for module in gated for child in module.children() if not isinstance(child, LINEAR)}
    for module in gated:
        yield module.get_submodule("down_proj").register_forward_pre_hook(_halved)
    for module in model.modules():
        if module in activations:
            yield module.register_forward_hook(_activation)
        elif not isinstance(module, LINEAR) and not any(True for _ in module.children()):
            yield module.register_forward_hook(_norm)


@contextmanager
def rules(model: PreTrainedModel, rule: Rule) -> Iterator[list[nn.Parameter]]:
    """The model with LRP's rules for its gradient, `cp` or `attn` for attention; gives its biases, which take part.

    Hooks, the attention function and the biases' `requires_grad` are put back on leaving, after an error too.
    Raises UserError, there or in the pass inside, for an architecture without RMSNorm and gated MLPs, or capped logits.
    """
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        raise UserError(
            f"one-pass relevance has no rule for the capped logits of {type(model).__name__}; expected a linear head; "
            "use panel Shapley, ablation or another method"
        )
    biases = [value for name, value in model.named_parameters() if name.endswith("bias")]
    wanted = [bias.requires_grad for bias in biases]
    before = model.config._attn_implementation
    with ExitStack() as stack:
        for handle in _hooks(model):
            stack.callback(handle.remove)
        stack.callback(model.set_attn_implementation, before)
        model.set_attn_implementation(ATTENTION[rule])
        for bias, mark in zip(biases, wanted, strict=True):
            stack.callback(bias.requires_grad_, mark)
            bias.requires_grad_(True)
        yield biases
