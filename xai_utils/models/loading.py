"""Any causal language model of a study, loaded one way: a folder of safetensors, frozen, checked before it is used.

A built-in name, a Hub id or a GGUF file first becomes such a folder (download.py, hub.py). A PEFT adapter is merged
into plain weights (adapters.py), so that everything downstream sees an ordinary transformers model. Nothing is resized,
and no code or pickle that comes with a model is run.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from xai_utils.errors import UserError, first_line, shown
from xai_utils.files import cache_folder, file_sha256
from xai_utils.models import adapters, convert, download, hub, kernels
from xai_utils.models.entry import ModelEntry
from xai_utils.models.precision import weights_dtype

Attention = Literal["sdpa", "eager"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model of a study with its tokenizer: evaluation mode, frozen, dropout off.

    `revision` names the exact weights and tokenizer, the same on every machine: a commit hash or a hash of contents,
    and the same of the adapter and the tokenizer where they are the entry's own.
    """

    entry: ModelEntry
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    revision: str
    reference: Float[Tensor, " hidden"] | None = None  # the mean embedding that all models of a study have in common

    @property
    def mean_embedding(self) -> Float[Tensor, " hidden"]:
        """The vector of the mean baseline: the study's common one, else the mean over the model's own rows."""
        if self.reference is not None:
            return self.reference.to(self.device, self.dtype)
        return self.embedding.double().mean(0).to(self.dtype)

    @property
    def label(self) -> str:
        return self.entry.label

    @property
    def role(self) -> str:
        return self.entry.role

    @property
    def device(self) -> torch.device:
        return self._input.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._input.weight.dtype

    @property
    def _input(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @cached_property
    def embedding(self) -> Float[Tensor, "vocabulary hidden"]:
        """All rows as `embed` gives them: the input embedding matrix, scaled where its module scales (Gemma)."""
        if type(self._input) is nn.Embedding:
            return self._input.weight
        return self.embed(torch.arange(self._input.weight.shape[0]))

    def embed(self, ids: Int[Tensor, "*batch position"]) -> Float[Tensor, "*batch position hidden"]:
        """The vectors that stand for `ids` in the model's `inputs_embeds`."""
        return self._input(ids.to(self.device))

    @torch.no_grad()
    def logits(self, ids: Sequence[int], keep: int = 1) -> Float[Tensor, "keep vocabulary"]:
        """The logits behind each of the last `keep` tokens of a prompt, in one pass."""
        return self.model(input_ids=torch.tensor([list(ids)], device=self.device), logits_to_keep=keep).logits[0]

    @cached_property
    def document_start(self) -> int | None:
        """The token id to put in front of a text, or None where the tokenizer puts a special token there itself.

        The entry's own, else `<|endoftext|>` (which parted documents in training), else the tokenizer's BOS, else EOS.
        """
        return _document_start(self.entry, self.tokenizer)


def load(entry: ModelEntry, attention: Attention = "sdpa") -> LoadedModel:
    """Load a study's model entry; `attention` is 'sdpa', or 'eager' where the weights of attention are asked for.

    Raises UserError, one line, for whatever is wrong with the entry, its files, the Hub, the cache or the device.
    """
    device = _device(entry.device)
    folder, revision = _source(entry, entry.model, entry.revision, hub.MODEL_FILES)
    _check_weights(folder, entry.model)
    with convert.quiet():
        tokenizer, tokenizer_revision = _tokenizer(entry, folder)
        model = _model(folder, entry, attention, device)
        if entry.adapter:
            adapter = adapters.folder(entry)
            before = adapters.embedding_matrix(model).clone() if entry.rows else None
            model = adapters.merge(model, adapter)
            revision += f"+adapter:{content_hash(adapter)}"
            if entry.rows and before is not None:
                own = _read_tokenizer(folder, entry.model)
                adapters.replace_rows(model, adapter, entry.rows, before, own, tokenizer)
                revision += f"+rows:{entry.rows}"
    if entry.quantization:
        revision += f"+{entry.quantization}"
    if not entry.device_map and not entry.quantization:
        _move(model, device, entry)
        kernels.choose(model)
    return usable(LoadedModel(entry, model.eval().requires_grad_(False), tokenizer, revision + tokenizer_revision))


def load_tokenizer(entry: ModelEntry) -> PreTrainedTokenizerFast:
    """A model entry's tokenizer alone, as `load` reads it. Raises UserError."""
    with convert.quiet():
        return _tokenizer(entry, _source(entry, entry.model, entry.revision, hub.TOKENIZER_FILES)[0])[0]


# ---- from a name to a folder


def _source(entry: ModelEntry, name: str, revision: str | None, files: list[str]) -> tuple[Path, str]:
    """The local folder that `name` means in an entry, and the revision of what is in it."""
    path = entry.path(name)
    local = path.exists()
    if revision and (name in download.BUILT_IN or local):
        raise UserError(f"{name}: revision {revision!r} is given, and only a Hub model has revisions; leave it out")
    if name in download.BUILT_IN:
        return convert.built_in(name)
    if path.is_dir():
        return path, content_hash(path)
    if local and path.suffix.lower() == ".gguf":
        return convert.converted(path, cache_folder() / "models")
    if local:
        raise UserError(f"{name} is a file of another kind; expected a folder with safetensors, or a .gguf file")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.lower().endswith(".gguf"):
        raise UserError(f"{name}: no such folder or file; expected a folder with safetensors, or a .gguf file")
    return hub.snapshot(name, revision, files)


def content_hash(folder: Path) -> str:
    """SHA-256 over names and contents of the files that make a model, the same wherever the folder lies.

    Read in full each time: half a gigabyte takes half a second, and a remembered hash could outlive its file. Raises
    UserError as `weight_files` does.
    """
    kinds = {".safetensors", ".json", ".jinja", ".model", ".txt"}
    beside = {path.name for path in folder.iterdir() if path.suffix in kinds and path.is_file()}
    names = sorted(beside | {name for name in weight_files(folder) if (folder / name).is_file()})
    lines = [f"{name} {file_sha256(folder / name)}" for name in names]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weight_files(folder: Path) -> list[str]:
    """The weight files that a folder's index names; empty without an index.

    Raises UserError for an index that cannot be read, or that names a file outside the folder.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        named = {str(Path(part)) for part in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} cannot be read ({type(error).__name__}: {first_line(error)}); "
            "expected the index that save_pretrained writes; fetch or copy it again"
        ) from None
    outside = sorted(part for part in named if Path(part).is_absolute() or ".." in Path(part).parts or "\\" in part)
    if outside:
        raise UserError(f"{index} names {shown(outside[0])}, which is not in its folder; expected weights beside it")
    return sorted(named)


def _check_weights(folder: Path, name: str) -> None:
    if (folder / adapters.CONFIG).is_file() and not (folder / "config.json").is_file():
        raise UserError(f"{name} is an adapter; name its base as the model, and this folder as `adapter:`")
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} has no config.json; expected a model's folder as save_pretrained writes it")
    if parts := weight_files(folder):
        if lost := [part for part in parts if not (folder / part).is_file()]:
            raise UserError(
                f"{name} lacks {len(lost)} of its {len(parts)} weight files, {lost[0]} first; fetch or copy it again"
            )
    elif not (folder / "model.safetensors").is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        reason = "its weights are pickled, which can run code when they are read" if pickled else "it has no weights"
        raise UserError(
            f"{name} has no model.safetensors: {reason}; save it again with save_pretrained of a current transformers"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cpu": True, "cuda": (device.index or 0) < cards, "mps": torch.backends.mps.is_available()}
    if not there[device.type]:
        have = ["cpu", *(f"cuda:{index}" for index in range(cards)), *(["mps"] if there["mps"] else [])]
        raise UserError(
            f"device {name} is not there; this machine has {', '.join(have)}; use one of them, or device: auto"
        )
    return device


def _move(model: PreTrainedModel, device: torch.device, entry: ModelEntry) -> None:
    try:
        model.to(device)  # type: ignore[arg-type]  # transformers hides torch's signature
    except torch.OutOfMemoryError:
        raise UserError(
            f"{entry.label}: {entry.model} does not fit into the memory of {device}; "
            "use device_map: auto, device: cpu, dtype: bfloat16 or quantization: 8bit"
        ) from None


def _placed(entry: ModelEntry, device: torch.device) -> dict[str, Any]:
    """What transformers needs to know while it reads weights that are spread or quantised; nothing otherwise.

    Raises UserError where bitsandbytes is asked for and missing.
    """
    if not entry.device_map and not entry.quantization:
        return {}
    placed: dict[str, Any] = {"device_map": entry.device_map or {"": device}}
    if entry.quantization:
        if find_spec("bitsandbytes") is None:
            raise UserError(
                f"{entry.label}: quantization: {entry.quantization} needs bitsandbytes, which is not installed; "
                "pip install bitsandbytes, or leave quantization out"
            )
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports its rounding at each layer and pass
        placed["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=entry.quantization == "8bit",
            load_in_4bit=entry.quantization == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=weights_dtype(entry.dtype),
        )
    return placed


# ---- from a folder to a model and a tokenizer


def _model(folder: Path, entry: ModelEntry, attention: Attention, device: torch.device) -> PreTrainedModel:
    placed = _placed(entry, device)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=weights_dtype(entry.dtype),
            attn_implementation="eager" if attention == "eager" else None,  # None: sdpa where the model has it
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **placed,
        )
    except (ValueError, OSError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{entry.model} cannot be loaded ({first_line(error)}); "
            "expected a causal language model of an architecture that transformers knows by itself"
        ) from None
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"{entry.model}: {len(missing)} weights of its architecture are not in its files, {missing[0]} first; "
            "transformers would fill them with random numbers; get the whole checkpoint"
        )
    return model


def _tokenizer(entry: ModelEntry, folder: Path) -> tuple[PreTrainedTokenizerFast, str]:
    """The entry's own tokenizer, else the adapter's, else the model's; with the end of the revision that it makes."""
    if entry.tokenizer:
        own, revision = _source(entry, entry.tokenizer, None, hub.TOKENIZER_FILES)
        return _read_tokenizer(own, entry.tokenizer), f"+tokenizer:{revision}"
    if entry.adapter and _has_tokenizer(adapters.folder(entry)):
        return _read_tokenizer(adapters.folder(entry), entry.adapter), ""
    return _read_tokenizer(folder, entry.model), ""


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))


def _read_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    if not _has_tokenizer(folder):
        raise UserError(
            f"{name} has no tokenizer that can be relied on; name the one it was trained with, `tokenizer:`"
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(
            f"the tokenizer of {name} cannot be read ({first_line(error)}); expected a tokenizer.json"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {name} does not say which characters a token covers; expected a tokenizer.json"
        )
    return tokenizer


def _document_start(entry: ModelEntry, tokenizer: PreTrainedTokenizerFast) -> int | None:
    encoded = tokenizer("a", return_special_tokens_mask=True)
    if encoded["special_tokens_mask"][0]:
        if entry.document_start:
            own = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
            raise UserError(f"{entry.label}: its tokenizer puts {own} in front by itself; leave document_start out")
        return None
    vocabulary = tokenizer.get_vocab()
    if entry.document_start:
        if entry.document_start not in vocabulary:
            raise UserError(
                f"{entry.label}: document_start {shown(entry.document_start)} is no token of its tokenizer; "
                f"expected one, such as {shown(tokenizer.eos_token)}"
            )
        return vocabulary[entry.document_start]
    if "<|endoftext|>" in vocabulary:
        return vocabulary["<|endoftext|>"]
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


# ---- what must hold before a model is used


def usable(loaded: LoadedModel) -> LoadedModel:
    """The model itself. Raises UserError where it cannot be explained: see the checks below."""
    _check_vocabulary(loaded)
    _check_numbers(loaded)
    _check_passes(loaded)
    return loaded


def _check_vocabulary(loaded: LoadedModel) -> None:
    rows = len(adapters.embedding_matrix(loaded.model))
    highest = max(loaded.document_start or 0, *loaded.tokenizer.get_vocab().values())
    if highest >= rows:
        raise UserError(
            f"{loaded.label}: its tokenizer has token ids up to {highest} and its model {rows} embedding rows; "
            "expected a tokenizer that fits; nothing is resized, which would add random rows"
        )


@torch.no_grad()
def _check_numbers(loaded: LoadedModel) -> None:
    """A row that no short pass reads may hold what is no number, and would be met in the middle of a study."""
    for name, weight in loaded.model.named_parameters():
        if not weight.is_floating_point() or weight.is_meta or not weight.numel():
            continue
        if not torch.stack(weight.aminmax()).isfinite().all():
            raise UserError(
                f"{loaded.label}: its weight {name} holds values that are not finite in {loaded.entry.dtype}; expected "
                "numbers; get the whole checkpoint, or use dtype: float32"
            )


def _check_passes(loaded: LoadedModel) -> None:
    """Two short passes: finite, the same through `inputs_embeds`, and blind to what comes later."""
    rows = len(adapters.embedding_matrix(loaded.model))
    ids = torch.linspace(0, rows - 1, 6, device=loaded.device).long()
    ids = torch.stack([ids, torch.cat([ids[:-1], ids[:1]])])
    mask = torch.ones_like(ids)
    try:
        with torch.no_grad():
            plain = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            embedded = loaded.model(inputs_embeds=loaded.embed(ids), attention_mask=mask, use_cache=False).logits
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise UserError(
            f"{loaded.label}: its architecture takes no inputs_embeds ({first_line(error)}); choose another"
        ) from None
    if not plain.isfinite().all():
        raise UserError(f"{loaded.label}: its logits are not finite in {loaded.entry.dtype}; use dtype: float32")
    tolerance = torch.finfo(plain.dtype).eps ** 0.5 * plain.abs().max()
    if (plain - embedded).abs().max() > tolerance:
        raise UserError(
            f"{loaded.label}: its output through embeddings differs from that through tokens by "
            f"{(plain - embedded).abs().max():.3g}; the model reads more than its embeddings; choose another"
        )
    if (plain[0, :-1] - plain[1, :-1]).abs().max() > tolerance:
        raise UserError(f"{loaded.label}: the last token changes earlier outputs; expected a causal language model")
