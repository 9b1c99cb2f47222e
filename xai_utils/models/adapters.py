"""A PEFT adapter folder merged into its base: afterwards the model is an ordinary one with other weights.

Tied embeddings stay one matrix: for an adapter of token rows, peft stores the rows once for the embedding and once for
the output head, and merging must leave both names on the same numbers. Whether it did is checked, not assumed.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import TrainableTokensWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from xai_utils.errors import UserError, first_line
from xai_utils.models.entry import ModelEntry

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def folder(entry: ModelEntry) -> Path:
    """The folder of an entry's adapter. Raises UserError: no such folder, no adapter in it, or a pickled one."""
    name = entry.adapter or ""
    path = entry.path(name)
    if not path.is_dir():
        raise UserError(f"adapter {name}: there is no folder {path}; expected a PEFT adapter's folder")
    inside = sorted(config.parent.name for config in path.glob(f"*/{CONFIG}"))
    for file in (CONFIG, WEIGHTS):
        if not (path / file).is_file():
            raise UserError(
                f"adapter {name} has no {file}; expected a folder that PEFT's save_pretrained wrote, with safetensors"
                + (f"; it holds adapters in {', '.join(inside)}: name one of these folders" if inside else "")
            )
    return path


def token_rows(path: Path) -> list[int]:
    """The ids of the embedding rows that an adapter of trainable tokens replaces; empty for any other adapter.

    Raises UserError: a configuration that PEFT cannot read.
    """
    try:
        config = PeftConfig.from_pretrained(str(path))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"adapter {path.name}: {CONFIG} cannot be read ({first_line(error)}); expected PEFT's own"
        ) from None
    indices = getattr(config, "token_indices", None) or getattr(config, "trainable_token_indices", None) or []
    return list(next(iter(indices.values())) if isinstance(indices, dict) else indices)


def merge(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """`model` with the adapter of folder `path` in its weights, checked to compute what base and adapter computed.

    Raises UserError: an adapter that does not fit the model, cannot be merged, or merges into another function.
    """
    rows = len(embedding_matrix(model))
    replaced = token_rows(path)
    if replaced and max(replaced) >= rows:
        raise UserError(
            f"adapter {path.name} replaces token rows up to {max(replaced)} and its base has {rows}; "
            "expected the base it was trained on; nothing is resized"
        )
    try:
        with warnings.catch_warnings():
            # Of tied rows and of weights that are missing, both of which are checked below.
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")
            # peft asks transformers by a name that it has since changed: users cannot act on this warning.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            adapted: Any = PeftModel.from_pretrained(model, path, is_trainable=False).eval()
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError, SafetensorError) as error:
        raise UserError(
            f"adapter {path.name} does not fit its base ({first_line(error)}); expected the base it was trained on"
        ) from None
    _check_file(adapted, path)
    return merged(adapted, path.name, replaced)


def merged(adapted: PeftModel, name: str, replaced: Sequence[int] = ()) -> PreTrainedModel:
    """A PeftModel's base with its active adapters in the weights, checked to compute what they computed.

    `replaced` are token ids to check beside others. Changes `adapted`. Raises UserError: an adapter that cannot be
    merged, or merges into another function.
    """
    if adapted.active_peft_config.is_prompt_learning:
        raise UserError(
            f"adapter {name} adds virtual tokens, which no weights can hold; expected LoRA or trainable tokens"
        )
    base = cast(PreTrainedModel, adapted.get_base_model())
    _part_roles(base)
    rows, tied = len(embedding_matrix(base)), _tied(base)
    ids = torch.tensor([[*replaced[:3], *range(0, rows, max(1, rows // 5))]], device=base.device)
    with torch.no_grad():
        expected = adapted(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        whole = cast(PreTrainedModel, adapted.merge_and_unload())
        got = whole(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    # Adding LoRA's product to the weights rounds otherwise than adding its output does.
    tolerance = torch.finfo(got.dtype).eps ** 0.5 * expected.abs().max()
    if not (got - expected).abs().max() <= tolerance or _tied(whole) != tied:
        raise UserError(
            f"adapter {name}: merged into the weights it computes something else (outputs differ by "
            f"{(got - expected).abs().max():.3g}); use dtype: float32, or save the merged model and name its folder"
        )
    return whole


def _part_roles(base: PreTrainedModel) -> None:
    """Untie rows that a LoRA adapts in one of their roles: merged, the input and the output rows are different ones."""
    head = base.get_output_embeddings()
    if _tied(base) and any(isinstance(part, LoraLayer) for part in (base.get_input_embeddings(), head)):
        own: Any = getattr(head, "base_layer", head)
        own.weight = nn.Parameter(own.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False


def _check_file(adapted: PeftModel, path: Path) -> None:
    """Each weight of the adapter must stand in its file, and the same where it stands there twice, as tied rows do."""
    stored = load_file(path / WEIGHTS)
    names: dict[int, list[str]] = {}
    for name, tensor in get_peft_model_state_dict(adapted, save_embedding_layers=False).items():
        names.setdefault(tensor.data_ptr(), []).append(name)
    for shared in names.values():
        copies = [stored[name] for name in shared if name in stored]
        if not copies:
            raise UserError(
                f"adapter {path.name} lacks the weight {shared[0]}; expected all of them; get the whole adapter"
            )
        if not all(torch.equal(copies[0], copy) for copy in copies[1:]):
            raise UserError(
                f"adapter {path.name} stores two different tensors for one tied weight ({' and '.join(shared)}); "
                "expected the same twice, or one; save it again with PEFT"
            )


def embedding_matrix(model: PreTrainedModel) -> Tensor:
    """The rows of the input embedding as they are stored, [vocabulary, hidden]."""
    return cast(nn.Embedding, model.get_input_embeddings()).weight.data


def _tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and _stored(head).data_ptr() == _stored(model.get_input_embeddings()).data_ptr()


def _stored(layer: Any) -> nn.Parameter:
    """A layer's own weight. What peft wraps around it for token rows adds them to a new tensor at every call."""
    if isinstance(layer, TrainableTokensWrapper):
        layer = layer.token_adapter
    return cast(nn.Parameter, getattr(layer, "base_layer", layer).weight)


def replace_rows(
    model: PreTrainedModel,
    path: Path,
    kind: str,
    base: Tensor,
    base_tokenizer: PreTrainedTokenizerFast,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Make a control of a merged model: the adapter's token rows as before training ('initial'), or permuted.

    `base` is the input embedding matrix before merging. Raises UserError where the adapter trains no token rows.
    """
    ids = token_rows(path)
    if not ids:
        raise UserError(
            f"rows: {kind} is for an adapter of trainable tokens, and {path.name} trains none; leave it out"
        )
    from recipes.token_substitution import initialise  # how rows begin belongs to training; only controls need it here

    table = embedding_matrix(model)
    if kind == "initial":
        table[ids] = initialise.initial_rows(base, base_tokenizer, tokenizer, ids).to(table)
    else:
        table[ids] = initialise.shuffled_rows(table[ids]).to(table)
