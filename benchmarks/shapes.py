"""Two models by their shapes alone: published configurations with random weights, for time and memory.

What a pass costs does not depend on the numbers in it. Scores of these models mean nothing.
"""

from __future__ import annotations

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from xai_utils.files import ROOT
from xai_utils.models import kernels
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel

TOKENIZER = ROOT / "models" / "smollm2-135m-ru-ts"  # any that fits
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "Llama-3.2-1B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_parameters=ROPE,
        tie_word_embeddings=True,
        bos_token_id=128_000,
        eos_token_id=128_009,
    ),
}


def shaped(shape: str, device: str, dtype: str = "float32", seed: int = 0) -> LoadedModel:
    """A frozen model of a published shape with random weights, the same for the same seed and device."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(SHAPES[shape], dtype=getattr(torch, dtype))
    model = model.eval().requires_grad_(False)
    kernels.choose(model)
    entry = ModelEntry.model_validate({"label": shape, "model": f"random/{shape}", "dtype": dtype})
    return LoadedModel(entry, model, AutoTokenizer.from_pretrained(TOKENIZER, local_files_only=True), f"random-{seed}")
