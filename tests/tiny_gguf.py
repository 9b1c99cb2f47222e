"""A tiny Llama as a GGUF file, written as llama.cpp's own converter writes it."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from tests.tiny import SPECIAL, tiny_tokenizer

HEADS = {"attn_q": 4, "attn_k": 2}
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    parts = name.split(".")
    own = NAMES[parts[-2]]
    return f"blk.{parts[2]}.{own}.weight" if parts[1] == "layers" else f"{own}.weight"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns rotary pairs (i, i + half) of each head into neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, pre: str, kind: Kind, model: torch.nn.Module) -> None:
    """Write a tied tiny Llama as llama.cpp's converter would; `model` gets the weights that the file can hold."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(512)
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.named_parameters():
        own = gguf_name(name)
        array = weight.detach().numpy()
        heads = HEADS.get(own.split(".")[-2])
        array = permuted(array, heads) if heads else array
        stored = kind if array.ndim > 1 else Kind.F32
        data = gguf.quantize(array, stored)
        writer.add_tensor(own, data, raw_dtype=stored)
        held = gguf.dequantize(data, stored)
        held = held.reshape(heads, -1, 2, 32).swapaxes(1, 2).reshape(held.shape) if heads else held
        weight.data = torch.from_numpy(np.array(held, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
