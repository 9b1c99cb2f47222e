"""Tiny models for tests: real architectures with random weights, and a byte-level BPE trained in-process."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from xai_utils.attribution.target import Target, make_target
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case, prepare
from xai_utils.text.entry import Reading, TextEntry

VOCABULARY = 512
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The capital of France is Paris, and the capital of Russia is Moscow.",
    "How many planets are there in the Solar System? There are eight planets.",
    "Сколько планет в Солнечной системе? В Солнечной системе восемь планет.",
    "Столица Франции - Париж, а столица России - Москва. Вода кипит при ста градусах.",
    "The cat sat on the mat, and the dog ran after the cat in the garden.",
    "Water boils at one hundred degrees, and ice melts at zero.",
    "Кошка сидела на коврике, а собака бегала за кошкой по саду.",
    "Token substitution replaces rare pieces of a vocabulary with frequent ones.",
]

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": None,  # a padding row would be all zero
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _SIZES),
    "llama-tied": (LlamaConfig, _SIZES | {"tie_word_embeddings": True}),
    "llama-28": (
        LlamaConfig,
        _SIZES | {"num_hidden_layers": 28, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    ),
    "gpt2": (GPT2Config, _GPT2),
    "mistral": (MistralConfig, _SIZES | {"sliding_window": None}),
    "qwen2": (Qwen2Config, {key: value for key, value in _SIZES.items() if key != "head_dim"}),
    "qwen3": (Qwen3Config, _SIZES),
    "gemma": (GemmaConfig, _SIZES),
    "gemma2": (Gemma2Config, _SIZES | {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "gemma3": (Gemma3TextConfig, _SIZES | {"sliding_window": 16, "query_pre_attn_scalar": 8}),
}


def tiny_model(architecture: str = "llama", seed: int = 0, attention: str = "sdpa", **config: Any) -> PreTrainedModel:
    """A random model, the same for the same arguments; `config` overrides its sizes."""
    kind, sizes = ARCHITECTURES[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            kind(**(sizes | config)), attn_implementation="eager" if attention == "eager" else None, dtype=torch.float32
        )
    return model.eval()


@cache
def _trained(size: int) -> str:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, normalized=False, special=True) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(bos: bool = False, size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` tokens with SmolLM2's special tokens; `bos` puts `<|im_start|>` in front."""
    tokenizer = Tokenizer.from_str(_trained(size))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT,
        model_max_length=256,
    )


def save_tiny(folder: Path, architecture: str = "llama", seed: int = 0, bos: bool = False, **config: Any) -> Path:
    """Write model and tokenizer as a local folder that `load` takes."""
    tiny_model(architecture, seed, **config).save_pretrained(folder)
    tiny_tokenizer(bos).save_pretrained(folder)
    return folder


def tiny_loaded(
    architecture: str = "llama",
    seed: int = 0,
    label: str = "tiny",
    role: str = "base",
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    bos: bool = False,
    **config: Any,
) -> LoadedModel:
    """A `LoadedModel` without files, as `load` would give it from `save_tiny`'s folder."""
    model = tiny_model(architecture, seed, attention, **config).to(dtype).requires_grad_(False)
    entry = ModelEntry.model_validate(
        {"label": label, "role": role, "model": f"tiny/{architecture}", "dtype": str(dtype).removeprefix("torch.")}
    )
    return LoadedModel(entry, model, tiny_tokenizer(bos), f"{architecture}-{seed}")


def tiny_case(
    model: LoadedModel,
    text: str,
    kind: str = "logprob",
    answer: str | None = " Paris.",
    contrast: str | None = None,
    prefix: str = "document_start",
) -> tuple[Case, Target]:
    """A case of one text under a model, and its target."""
    entry = TextEntry(id="t", text=text, answer=answer, contrast=contrast)
    case = prepare(model, entry, Reading.model_validate({"prefix": prefix}), "s")
    return case, make_target(model, case, kind)
