"""Attention weights of all layers and heads, one text and one layer at a time: checked, then reduced to statistics.

`stream` runs the model once in eager mode and hands each layer's weights over as they come, so that a long text never
has all its heads in memory. The weights say where a head looks, not what it moves: beside them stand the norms of what
is moved (Kobayashi et al. 2020, arXiv 2004.10102), and every statistic also with the first position set apart, since
that position takes most attention whatever it says (Xiao et al. 2023, arXiv 2309.17453). Nothing here is an explanation
of an output; rollout.py makes attribution methods of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

LOCAL = 4  # keys that count as near: the query's own position and the three before it
WEIGHTS_LIMIT = 2**28  # bytes of weights that are kept in memory at once; above that they are streamed
STATISTICS = ("entropy", "sink", "diagonal", "previous", "distance", "local")
VIEWS = ("", "rest_", "norm_")  # raw weights, the first position set apart, weights times value norms


@dataclass(frozen=True)
class Layer:
    """One layer's attention. `norms` are those of the values that a key's position contributes through a head.

    They are None unless asked for, and where the architecture keeps its values in a place that is not known here.
    """

    index: int
    weights: Float[Tensor, "head query key"]  # rows sum to 1, zero above the diagonal
    norms: Float[Tensor, "head key"] | None = None

    @property
    def contributions(self) -> Float[Tensor, "head query key"] | None:
        """Weights times value norms, alpha_ij ||f(x_j)|| (Kobayashi et al. 2020), each row divided by its sum."""
        return None if self.norms is None else _rows_to_one(self.weights * self.norms[:, None, :])


def _rows_to_one(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


# ---- one pass through the model


@contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    """Eager attention inside, as before outside: only eager computes the weights as a tensor.

    Raises UserError where the architecture cannot be switched.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        if model.config._attn_implementation != "eager":
            raise UserError(
                f"{type(model).__name__} does not let its attention be switched to eager, and {before} returns no "
                "weights; choose another model for attention"
            )
        yield
    finally:
        model.set_attn_implementation(before)


def stream(model: LoadedModel, ids: Sequence[int], visit: Callable[[Layer], None], norms: bool = False) -> None:
    """Run the model on token ids once and call `visit` with every layer in turn, its weights checked.

    `norms` asks for the norms of the transformed values too. Raises UserError where a layer gives no weights, rows do
    not sum to 1 (within 1e-4 in float32) or a query looks at a later key.
    """
    seen: list[int] = []
    values: dict[nn.Module, Tensor] = {}
    contexts: dict[nn.Module, Tensor] = {}

    def layer_done(module: nn.Module, _: Any, output: Any) -> None:
        index = len(seen)
        weights = _checked(model, output[1] if isinstance(output, tuple) else None, index, len(ids))
        seen.append(index)
        exact = weights[0].to(torch.promote_types(weights.dtype, torch.float32))
        found = _value_norms(module, exact, values.pop(module), contexts.pop(module)) if module in contexts else None
        visit(Layer(index, exact, found))

    handles = []
    try:
        for module in _attention_modules(model.model):
            handles.append(module.register_forward_hook(layer_done))
            if norms and (parts := _value_parts(module)):
                handles += _record(module, parts, values, contexts)
        with eager(model.model), torch.no_grad():
            model.model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    layers = model.model.config.get_text_config().num_hidden_layers
    if len(seen) != layers:
        raise UserError(
            f"{model.label}: {len(seen)} of its {layers} layers gave attention weights; expected one tensor a layer; "
            "choose a model whose layers all attend"
        )


def _attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx")
    ]


def _checked(model: LoadedModel, weights: Tensor | None, layer: int, length: int) -> Tensor:
    if weights is None or weights.shape[0] != 1 or weights.shape[2:] != (length, length):
        shape = "nothing" if weights is None else f"shape {tuple(weights.shape)}"
        raise UserError(
            f"{model.label}: layer {layer} gave {shape} as attention; expected weights of shape "
            f"(1, heads, {length}, {length}); choose a model with ordinary softmax attention"
        )
    if weights.triu(1).any():
        raise UserError(f"{model.label}: layer {layer} attends to later tokens; expected causal attention")
    error = (weights.sum(-1, dtype=torch.float64) - 1).abs().max().item()
    if not error <= max(1e-4, 4 * torch.finfo(weights.dtype).eps):
        raise UserError(
            f"{model.label}: attention rows of layer {layer} miss a sum of 1 by {error:.2g}; expected at most 1e-4; "
            "use dtype: float32, or a model with ordinary softmax attention"
        )
    return weights


# ---- norms of the transformed values


def _value_parts(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The projection that holds a layer's values and the output projection: separate in most, fused in GPT-2."""
    for value, output in (("v_proj", "o_proj"), ("v_proj", "out_proj"), ("c_attn", "c_proj")):
        if hasattr(module, value) and hasattr(module, output):
            return getattr(module, value), getattr(module, output)
    return None


def _record(
    owner: nn.Module,
    parts: tuple[nn.Module, nn.Module],
    values: dict[nn.Module, Tensor],
    contexts: dict[nn.Module, Tensor],
) -> list[Any]:
    value, output = parts

    def keep_values(_: nn.Module, __: Any, result: Tensor) -> None:
        values[owner] = result[0]

    def keep_context(_: nn.Module, inputs: tuple[Tensor]) -> None:
        contexts[owner] = inputs[0][0]

    return [value.register_forward_hook(keep_values), output.register_forward_pre_hook(keep_context)]


def _value_norms(module: nn.Module, weights: Tensor, recorded: Tensor, context: Tensor) -> Tensor | None:
    """||f(x_j)|| [head, key]: the value of position j through the head's slice of the output projection.

    Weights times these values must give what entered the output projection; if not, they are not the values: None.
    """
    parts = _value_parts(module)
    heads, length = weights.shape[:2]
    size = context.shape[-1] // heads
    if parts is None or recorded.shape[-1] % size:
        return None
    width = recorded.shape[-1] // 3 if hasattr(module, "c_attn") else recorded.shape[-1]
    values = recorded[:, -width:].reshape(length, -1, size).to(weights.dtype)
    values = values.repeat_interleave(heads // values.shape[1], 1).transpose(0, 1)  # [head, key, size]
    moved = (weights @ values).transpose(0, 1).reshape(length, -1)
    tolerance = 64 * torch.finfo(recorded.dtype).eps * context.abs().max()
    if (moved - context).abs().max() > tolerance:
        return None
    stored = cast(Tensor, parts[1].weight)
    matrix = stored if isinstance(parts[1], nn.Linear) else stored.T  # GPT-2's Conv1D is stored transposed
    slices = matrix.to(weights.dtype).reshape(len(matrix), heads, size).transpose(0, 1)  # [head, hidden, size]
    return torch.stack([(value @ part.T).norm(dim=-1) for value, part in zip(values, slices, strict=True)])


# ---- from weights to numbers


def weights(model: LoadedModel, case: Case) -> Float[Tensor, "layer head query key"]:
    """All weights of a case, on the CPU. Raises UserError where they would fill more than a quarter of a GiB."""
    kept: list[Tensor] = []

    def keep(layer: Layer) -> None:
        total = layer.weights.nbytes * model.model.config.get_text_config().num_hidden_layers
        if total > WEIGHTS_LIMIT:
            raise UserError(
                f"text '{case.text_id}': its attention weights fill {total / 2**20:.0f} MiB and "
                f"{WEIGHTS_LIMIT / 2**20:.0f} are kept; use the statistics or the pooled maps, or a shorter text"
            )
        kept.append(layer.weights.cpu())

    stream(model, case.ids, keep)
    return torch.stack(kept)


def uniform(length: int) -> Float[Tensor, "query key"]:
    """Uniform causal attention: each query spreads evenly over itself and all before it.

    >>> uniform(3)
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.3333, 0.3333, 0.3333]])
    """
    return _rows_to_one(torch.ones(length, length).tril())


def without_sink(weights: Float[Tensor, "... query key"]) -> Float[Tensor, "... rest rest"]:
    """The first position set apart: its row and column left out, the rows that remain renormalised to sum 1.

    A row with no mass outside the first position becomes nan.

    >>> without_sink(torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.6, 0.1, 0.3]]))
    tensor([[1.0000, 0.0000],
            [0.2500, 0.7500]])
    """
    return _rows_to_one(weights[..., 1:, 1:])


def statistics(weights: Float[Tensor, "*head query key"]) -> dict[str, Float[Tensor, "*head"]]:
    """What each head does, in means over its queries; row 0, which can only attend to itself, is left out.

    `entropy` of a row in nats; mass on the first position (`sink`), on the query's own (`diagonal`), on the one before
    (`previous`), on the last four (`local`, own included); mean `distance` from query to key in positions. The second
    row's previous position is the first one, so it counts as both. All nan where there is one position.

    >>> found = statistics(torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.6, 0.1, 0.3]]))
    >>> {name: round(value.item(), 4) for name, value in found.items()}
    {'entropy': 0.6115, 'sink': 0.75, 'diagonal': 0.2, 'previous': 0.5, 'distance': 1.1, 'local': 1.0}
    """
    rows = weights[..., 1:, :]
    position = torch.arange(weights.shape[-1], device=weights.device)
    distance = (position[1:, None] - position).to(weights.dtype)
    found = {
        "entropy": torch.special.entr(rows).sum(-1),
        "sink": rows[..., 0],
        "diagonal": weights.diagonal(dim1=-2, dim2=-1)[..., 1:],
        "previous": weights.diagonal(-1, dim1=-2, dim2=-1),
        "distance": (rows * distance).sum(-1),
        "local": (rows * (distance < LOCAL)).sum(-1),
    }
    return {name: value.nanmean(-1) for name, value in found.items()}


def head_table(model: LoadedModel, case: Case) -> pd.DataFrame:
    """Statistics of every head, a row each (columns of `attention_heads`), from one streamed pass.

    Beside the raw weights: `rest_*` with the first position set apart, `norm_*` of weights times value norms (empty
    where the architecture keeps its values in a place that is not known here).
    """
    found: list[Tensor] = []

    def reduce(layer: Layer) -> None:
        parts = (layer.weights, without_sink(layer.weights), layer.contributions)
        unknown = layer.weights.new_full((len(STATISTICS), len(layer.weights)), torch.nan)
        numbers = [unknown if part is None else torch.stack(list(statistics(part).values())) for part in parts]
        found.append(
            torch.cat(numbers).T.double().cpu()
        )  # one small tensor a layer: more would keep freed memory apart

    stream(model, case.ids, reduce, norms=True)
    layers, heads = len(found), len(found[0])
    layer, head = np.divmod(np.arange(layers * heads), heads)
    keys = case.keys() | {"layer": layer, "head": head, "tokens": len(case.tokens)}
    names = [view + name for view in VIEWS for name in STATISTICS]
    numbers = pd.DataFrame(torch.cat(found).numpy(), columns=names).drop(columns="rest_sink")
    return pd.concat([pd.DataFrame(keys), numbers], axis=1)


def pool(
    weights: Float[Tensor, "... query key"], membership: Float[Tensor, "token group"]
) -> Float[Tensor, "... group group"]:
    """Attention between groups of tokens: queries averaged over a group, keys summed, so rows still sum to 1.

    `membership` gives each token's share in each group, rows of sum 1 (words, or blocks of neighbours).

    >>> pool(uniform(3), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    tensor([[1.0000, 0.0000],
            [0.4167, 0.5833]])
    """
    shares = membership.to(weights)
    return (shares / shares.sum(0)).T @ weights @ shares


def observations(weights: Float[Tensor, "query key"]) -> dict[str, float]:
    """The four things that were said of layer 0, head 0 in the original study, as numbers.

    `start_self`: the first position's mass on itself (1 in every causal head: it has nothing else to look at). `sink`:
    mean mass of the others on it, and `sink_majority` the share of them that give it more than half. `diagonal_min`,
    `_mean`, `_max`: their mass on themselves. `entropy` against `uniform_entropy`, that of uniform
    causal attention, and `local` (the last four positions) against `uniform_local`: whether the head gathers from afar.

    >>> found = observations(uniform(3))
    >>> round(found["sink"], 4), found["diagonal_max"], found["entropy"] == found["uniform_entropy"]
    (0.4167, 0.5, True)
    """
    if len(weights) < 2:
        raise UserError(
            "the text is one token, which can only attend to itself; expected two or more; use a longer text"
        )
    own = weights.diagonal()[1:]
    found, plain = statistics(weights), statistics(uniform(len(weights)).to(weights))
    numbers = {
        "start_self": weights[0, 0],
        "sink": found["sink"],
        "sink_majority": (weights[1:, 0] > 0.5).double().mean(),
        "diagonal_min": own.min(),
        "diagonal_mean": own.mean(),
        "diagonal_max": own.max(),
        "entropy": found["entropy"],
        "uniform_entropy": plain["entropy"],
        "local": found["local"],
        "uniform_local": plain["local"],
    }
    return {name: value.item() for name, value in numbers.items()}
