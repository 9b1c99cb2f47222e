"""A two-layer Llama with weights set by hand that copies one token, wherever it stands: what it uses is known.

Every embedding holds a constant, a flag (set for the planted token alone) and a code of the token. Layer 1 writes a
large constant to every position, after which RMSNorm is close to linear in the embedding (it would otherwise hide an
embedding's length from gradients). In layer 2 every position looks for the flag and copies the code that it finds
there; the head reads that copy. No other word has any say, but for the attention that leaks to it.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import VOCABULARY, tiny_tokenizer
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel

HIDDEN, CONSTANT, FLAG, CODE, COPY, CARRIER = 64, 0, 1, slice(2, 18), slice(18, 34), 40
SLOW = HIDDEN // 2 - 1  # the rotary pair of the lowest frequency: it does not turn over a short text


def planted_model(token: int, seed: int = 0) -> LoadedModel:
    """A model whose next token is `token` if that stands in the prompt, because it stands there."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=HIDDEN,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if "norm" in name else 0.0)
    codes = torch.randint(0, 2, (VOCABULARY, 16), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    embedding = model.get_input_embeddings().weight
    embedding[:, CONSTANT] = 1
    embedding[token, FLAG] = 1
    embedding[:, CODE] = 0.5 * codes
    first, second = model.model.layers
    first.self_attn.v_proj.weight[0, CONSTANT] = 1
    first.self_attn.o_proj.weight[CARRIER, 0] = 5
    second.self_attn.q_proj.weight[SLOW, CONSTANT] = 14
    second.self_attn.k_proj.weight[SLOW, FLAG] = 14
    second.self_attn.v_proj.weight[range(16), range(2, 18)] = 1
    second.self_attn.o_proj.weight[range(18, 34), range(16)] = 8
    model.lm_head.weight[:, COPY] = 0.75 * codes
    entry = ModelEntry(label="planted", model="tiny/planted")
    return LoadedModel(entry, model, tiny_tokenizer(), f"planted-{token}-{seed}")
