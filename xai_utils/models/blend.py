"""Two models of one shape as a single one, whose modules compute as the base's, as the other's, or between the two.

For every module that differs a scale says how. A boolean for each row of a batch chooses a model; a number for each row
and position interpolates: y = base(x) + scale * (other(x) - base(x)). For modules that are affine in their weights
(linear maps, norms, embeddings) that is the module with the weights base + scale * (other - base). So one pass holds
many mixtures.

Both models stay as they are and no weight is copied: the blend has copies of the containers alone. It does not blend
input embeddings (`LoadedModel.embed` of either model gives them), and adds no memory but that of a pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.models.watch import decoder_layers

MLP = re.compile(r"mlp|ffn|feed_?forward|experts|^fc\d|ln_2|final_layer_norm")  # names of what belongs to a layer's MLP

_scales: ContextVar[Sequence[Tensor]] = ContextVar("_scales")
_blends: WeakKeyDictionary[LoadedModel, WeakKeyDictionary[LoadedModel, Blend]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Place:
    """Where a module that differs stands: `layer` None outside the layers, `half` attention, mlp, head or rest."""

    name: str  # in the whole model
    layer: int | None
    module: str  # in its layer
    half: str


class Blend:
    """The blended model and the places of the modules that differ, in the order in which their scales are given."""

    def __init__(self, model: PreTrainedModel, places: tuple[Place, ...]):
        self.model, self.places = model, places

    @contextmanager
    def at(self, scales: Sequence[Tensor]) -> Iterator[PreTrainedModel]:
        """The model with a scale for each place: booleans [row], for the head [row, position], or numbers [row,
        position].
        """
        token = _scales.set(scales)
        try:
            yield self.model
        finally:
            _scales.reset(token)


class Mixed(nn.Module):
    """One module under both models; the head may be asked for the last positions alone."""

    def __init__(self, base: nn.Module, other: nn.Module, index: int, is_head: bool):
        super().__init__()
        self.base, self.other, self.index, self.is_head = base, other, index, is_head

    def forward(self, x: Tensor) -> Tensor:
        scale = _scales.get()[self.index]
        if scale.dtype != torch.bool:
            return self._between(x, scale)
        if scale.all():
            return self.other(x)
        return self._chosen(x, scale) if scale.any() else self.base(x)

    def _chosen(self, x: Tensor, scale: Bool[Tensor, " *row"]) -> Tensor:
        if len(x) == 1:  # one row for all, as of position embeddings
            x = x.expand(len(scale), *x.shape[1:])
        if x.shape[: scale.ndim] != scale.shape:
            raise _unsuited(self.base)
        mine, theirs = self.base(x[~scale]), self.other(x[scale])
        width = max(mine.shape[-1], theirs.shape[-1])  # of two heads: the larger vocabulary
        mixed = mine.new_full((*scale.shape, *mine.shape[1:-1], width), -torch.inf)
        mixed[~scale] = _widened(mine, width)
        mixed[scale] = _widened(theirs, width)
        return mixed

    def _between(self, x: Tensor, scale: Float[Tensor, "row position"]) -> Tensor:
        mine = self.base(x)
        if self.is_head:
            scale = scale[:, -mine.shape[1] :]
        if len(mine) not in (1, len(scale)) or mine.shape[1] != scale.shape[1]:
            raise _unsuited(self.base)
        return mine + scale.reshape(*scale.shape, *[1] * (mine.ndim - 2)) * (self.other(x) - mine)


def _widened(x: Tensor, width: int) -> Tensor:
    """Logits with -inf for the tokens that only the other vocabulary has."""
    return nn.functional.pad(x, (0, width - x.shape[-1]), value=-torch.inf)


def _unsuited(module: nn.Module) -> UserError:
    return UserError(
        f"a {type(module).__name__} of this architecture does not compute row by row and position by position; "
        "expected a dense model; of this pair only word scores can be compared"
    )


def blend(base: LoadedModel, other: LoadedModel) -> Blend:
    """The blend of two models, made once a pair.

    Raises UserError for bodies of different shapes, and models on different devices or of different precision.
    """
    known = _blends.setdefault(base, WeakKeyDictionary())
    if other not in known:
        check_pair(base, other)
        known[other] = _blend(base, other)
    return known[other]


def check_pair(base: LoadedModel, other: LoadedModel) -> None:
    """Raises UserError where parts of the two models cannot be exchanged."""
    pair = f"'{base.label}' and '{other.label}'"
    shapes = [_body(each.model) for each in (base, other)]
    if type(base.model) is not type(other.model) or shapes[0] != shapes[1]:
        raise UserError(
            f"{pair} have bodies of different shapes ({_shape(base.model)}; {_shape(other.model)}), so their parts "
            "cannot be exchanged; expected a model and its adapted twin; only word scores can be compared"
        )
    for each in (base, other):
        if any("_hf_hook" in vars(module) for module in each.model.modules()):
            raise UserError(f"'{each.label}' is spread over devices; expected it on one; leave device_map out")
    if (base.device, base.dtype) != (other.device, other.dtype):
        raise UserError(
            f"{pair} are on {base.device} in {base.dtype} and on {other.device} in {other.dtype}; expected one device "
            "and dtype for both"
        )


def _body(model: PreTrainedModel) -> dict[str, torch.Size]:
    """Shapes of all parameters but the rows of tokens, whose number may differ."""
    rows = {id(parameter) for module in _token_modules(model) for parameter in module.parameters()}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if id(parameter) not in rows}
    return shapes | {"embedding": cast(nn.Embedding, model.get_input_embeddings()).weight.shape[1:]}


def _token_modules(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]


def _shape(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    return f"{type(model).__name__}, {config.num_hidden_layers} layers of {config.hidden_size}"


def _blend(base: LoadedModel, other: LoadedModel) -> Blend:
    theirs = dict(other.model.named_modules())
    head, inputs = base.model.get_output_embeddings(), base.model.get_input_embeddings()
    differing = [
        (name, module)
        for name, module in base.model.named_modules()
        if module is not inputs and _differ(module, theirs[name])
    ]
    mixed = {name: Mixed(module, theirs[name], index, module is head) for index, (name, module) in enumerate(differing)}
    stack, names = (decoder_layers(base.model) or ("",))[0], list(theirs)
    places = tuple(_place(name, module is head, stack, names) for name, module in differing)
    return Blend(cast(PreTrainedModel, _with(base.model, "", mixed)), places)


def _with(module: Any, name: str, mixed: dict[str, Mixed]) -> nn.Module:
    """A module with some of those inside it replaced: containers of these are copied, all else is shared."""
    if name in mixed or not any(inner.startswith(f"{name}." if name else "") for inner in mixed):
        return mixed.get(name, module)
    copy = module.__class__.__new__(module.__class__)
    copy.__dict__ = dict(module.__dict__)  # weights, buffers and hooks are the same ones
    copy._modules = {
        child: _with(part, f"{name}.{child}" if name else child, mixed) for child, part in module._modules.items()
    }
    return copy


def _differ(base: nn.Module, other: nn.Module) -> bool:
    """Whether any parameter of their own differs."""
    mine, theirs = base._parameters, other._parameters
    return any(
        parameter is not None and not (parameter.shape == theirs[name].shape and torch.equal(parameter, theirs[name]))  # type: ignore[union-attr, arg-type]
        for name, parameter in mine.items()
    )


def _place(name: str, is_head: bool, stack: str, names: list[str]) -> Place:
    found = re.fullmatch(rf"{re.escape(stack)}\.(\d+)\.(.+)", name)
    if not found:
        return Place(name, None, name.rpartition(".")[2], "head" if is_head else "rest")
    layer, module = int(found[1]), found[2]
    return Place(name, layer, module, _half(module, f"{stack}.{layer}.", names))


def _half(module: str, layer: str, names: list[str]) -> str:
    """Whether a module of a layer belongs to its MLP or to its attention, the norm in front with each."""
    if module.startswith("post_attention_layernorm"):  # of the attention's output where the MLP has norms of its own
        own = any(name.startswith(layer) and "feedforward" in name for name in names)
        return "attention" if own else "mlp"
    return "mlp" if MLP.search(module) else "attention"
