import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, TrainableTokensConfig, get_peft_model
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from xai_utils.errors import UserError
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel, content_hash, load
from xai_utils.models.wrapping import wrap

IDS = torch.tensor([[0, 70, 300, 5, 411, 2, 70]])
ROWS = [70, 411, 509]
EMBEDDING = {"gpt2": "wte"}


def loaded(base: Path, adapter: Path, **keys: object) -> LoadedModel:
    return load(ModelEntry.model_validate({"label": "m", "model": str(base), "adapter": str(adapter), **keys}))


def refused(said: str, base: Path, adapter: Path, **keys: object) -> None:
    with pytest.raises(UserError, match=said) as caught:
        loaded(base, adapter, **keys)
    assert "\n" not in str(caught.value)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def token_adapter(
    folder: Path, architecture: str, rows: list[int] = ROWS, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Write an adapter of random token rows; the rows."""
    target = EMBEDDING.get(architecture, "embed_tokens")
    adapted = get_peft_model(
        tiny_model(architecture), TrainableTokensConfig(target_modules=[target], token_indices=rows)
    )
    values = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    for name, parameter in adapted.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data = values.clone()
    adapted.save_pretrained(folder)
    return values


def lora(folder: Path, base: PreTrainedModel, **keys: object) -> Path:
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **keys)
    get_peft_model(base, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["llama-tied", "llama", "gpt2", "gemma", "qwen3"])
def test_token_rows_equal_rows_put_in_by_hand(tmp_path: Path, architecture: str) -> None:
    base = save_tiny(tmp_path / "base", architecture)
    rows = token_adapter(tmp_path / "adapter", architecture)
    model = loaded(base, tmp_path / "adapter").model
    by_hand = tiny_model(architecture)
    by_hand.get_input_embeddings().weight.data[ROWS] = rows  # of a tied model, the head's as well
    torch.testing.assert_close(logits(model), logits(by_hand), rtol=1e-5, atol=1e-6)
    assert (logits(model) - logits(tiny_model(architecture))).abs().max() > 0.1
    tied = by_hand.get_output_embeddings().weight is by_hand.get_input_embeddings().weight
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_merged_is_an_ordinary_model(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama-tied")
    token_adapter(tmp_path / "adapter", "llama-tied")
    model = loaded(base, tmp_path / "adapter").model
    assert type(model) is type(tiny_model("llama-tied"))
    assert {name for name, _ in model.named_parameters()} == {n for n, _ in tiny_model("llama-tied").named_parameters()}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path / "again")
    tiny_tokenizer().save_pretrained(tmp_path / "again")
    again = load(ModelEntry(label="m", model=str(tmp_path / "again")))
    torch.testing.assert_close(logits(again.model), logits(model))


def test_rows_in_half_precision_are_read_into_the_model_s(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama-tied")
    rows = token_adapter(tmp_path / "adapter", "llama-tied", dtype=torch.float16)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    model = loaded(base, tmp_path / "adapter")
    assert model.dtype == torch.float32
    torch.testing.assert_close(model.embedding[ROWS], rows.float(), rtol=0, atol=0)


def test_lora_equals_its_product_added_by_hand(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    lora(tmp_path / "adapter", tiny_model())
    by_hand = tiny_model()
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, a in tensors.items():
        if "lora_A" in name:
            weight = by_hand.get_submodule(name.removeprefix("base_model.model.").split(".lora_A")[0]).weight
            weight.data += tensors[name.replace("lora_A", "lora_B")] @ a * (6 / 4)
    model = loaded(base, tmp_path / "adapter").model
    torch.testing.assert_close(logits(model), logits(by_hand), rtol=1e-5, atol=1e-5)
    assert (logits(model) - logits(tiny_model())).abs().max() > 0.1


def trained(architecture: str, config: PeftConfig, seed: int = 3) -> PeftModel:
    """A tiny model under an adapter every trainable weight of which has moved, as after training."""
    torch.manual_seed(seed)
    adapted = get_peft_model(tiny_model(architecture), config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return adapted.eval()


KINDS = {
    "dora": ("llama", {"use_dora": True}),
    "rslora": ("llama", {"use_rslora": True}),
    "every bias": ("qwen2", {"bias": "all"}),
    "biases of its layers": ("qwen2", {"bias": "lora_only"}),
    "a trained head": ("llama", {"modules_to_save": ["lm_head"]}),
    "a trained head over tied rows": ("llama-tied", {"modules_to_save": ["lm_head"]}),
    "trained tied rows": ("llama-tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "a trained norm": ("llama", {"modules_to_save": ["norm"]}),
    "rows under LoRA": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied rows under LoRA": ("llama-tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "a tied head under LoRA": ("llama-tied", {"target_modules": ["lm_head", "q_proj"]}),
    "some layers": (
        "llama",
        {"layers_to_transform": [1], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}},
    ),
    "convolutions": ("gpt2", {"target_modules": "all-linear", "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_kinds_of_lora_compute_what_peft_computes(tmp_path: Path, kind: str) -> None:
    """From a folder and from memory: an ordinary model with the logits of base and adapter together."""
    architecture, keys = KINDS[kind]
    base = save_tiny(tmp_path / "base", architecture)
    adapted = trained(
        architecture, LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]} | keys))
    )
    wanted = logits(adapted)
    assert (wanted - logits(tiny_model(architecture))).abs().max() > 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    for model in (loaded(base, tmp_path / "adapter"), wrap(adapted, tiny_tokenizer())):
        torch.testing.assert_close(logits(model.model), wanted, rtol=1e-4, atol=1e-4)
        assert not any("lora" in name for name, _ in model.model.named_parameters())
    torch.testing.assert_close(logits(adapted), wanted, rtol=0, atol=0)  # the caller's own is as it was


@pytest.mark.parametrize("active", [["default", "second"], ["second"], ["default"]])
@pytest.mark.parametrize("dora", [False, True])
def test_active_adapters_are_merged_together(active: list[str], dora: bool) -> None:
    settings = {"r": 4, "lora_alpha": 8, "use_dora": dora}
    adapted = trained("llama", LoraConfig(target_modules=["q_proj"], **settings))
    adapted.add_adapter("second", LoraConfig(target_modules=["q_proj", "up_proj"], **settings))
    for name, parameter in adapted.named_parameters():
        if ".second." in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    adapted.base_model.set_adapter(active)
    torch.testing.assert_close(logits(wrap(adapted, tiny_tokenizer()).model), logits(adapted), rtol=1e-4, atol=1e-4)


def test_a_folder_of_several_adapters_names_them(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapted = trained("llama", LoraConfig(target_modules=["q_proj"]))
    adapted.add_adapter("second", LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "both", selected_adapters=["second"])
    refused("holds adapters in second: name one of these folders", base, tmp_path / "both")
    assert loaded(base, tmp_path / "both" / "second").model is not None


def test_lora_with_token_rows_over_tied_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held here, peft's new tensor of rows never lies where the last one lay, so that two look like one by chance."""
    held, add = [], TrainableTokensLayer.get_merged_weights
    monkeypatch.setattr(TrainableTokensLayer, "get_merged_weights", lambda *given: held.append(add(*given)) or held[-1])
    base = save_tiny(tmp_path / "base", "llama-tied")
    lora(tmp_path / "adapter", tiny_model("llama-tied"), trainable_token_indices={"embed_tokens": ROWS})
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    new = torch.randn(3, 32, generator=torch.Generator().manual_seed(5))
    tensors |= {name: new.clone() for name in tensors if "lora" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    model = loaded(base, tmp_path / "adapter")
    torch.testing.assert_close(model.embedding[ROWS], new, rtol=0, atol=0)
    assert model.model.lm_head.weight is model.model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_merge(tmp_path: Path, dtype: str) -> None:
    base = save_tiny(tmp_path / "base")
    lora(tmp_path / "adapter", tiny_model())
    assert loaded(base, tmp_path / "adapter", dtype=dtype).dtype == getattr(torch, dtype)


def test_the_adapter_s_tokenizer_is_taken_unless_the_entry_names_one(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = lora(tmp_path / "adapter", tiny_model())
    assert loaded(base, adapter).document_start == 0
    tiny_tokenizer(bos=True).save_pretrained(adapter)
    model = loaded(base, adapter)
    assert model.document_start is None
    assert model.revision == f"{content_hash(base)}+adapter:{content_hash(adapter)}"
    assert loaded(base, adapter, tokenizer=str(base)).document_start == 0


def test_what_is_no_adapter(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    refused("there is no folder .*nowhere", base, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("has no adapter_config.json", base, tmp_path / "empty")
    adapter = lora(tmp_path / "adapter", tiny_model())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused("has no adapter_model.safetensors", base, adapter)


def test_an_adapter_named_as_a_model(tmp_path: Path) -> None:
    adapter = lora(tmp_path / "adapter", tiny_model())
    with pytest.raises(UserError, match="is an adapter; name its base as the model"):
        load(ModelEntry(label="m", model=str(adapter)))


def test_a_configuration_that_is_not_peft_s(tmp_path: Path) -> None:
    base, adapter = save_tiny(tmp_path / "base"), lora(tmp_path / "adapter", tiny_model())
    for content in ("{", '{"peft_type": "NOTHING"}', "[]"):
        (adapter / "adapter_config.json").write_text(content)
        refused("adapter_config.json cannot be read", base, adapter)


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    adapter = lora(tmp_path / "adapter", tiny_model())
    wide = save_tiny(tmp_path / "wide", hidden_size=64, head_dim=16)
    refused(r"does not fit its base \(.*: size mismatch for base_model.*\)", wide, adapter)
    refused("does not fit its base", save_tiny(tmp_path / "gpt2", "gpt2"), adapter)
    token_adapter(tmp_path / "rows", "llama")
    small = save_tiny(tmp_path / "small", vocab_size=500)
    refused("replaces token rows up to 509 and its base has 500; .* nothing is resized", small, tmp_path / "rows")


def test_an_adapter_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = lora(tmp_path / "adapter", tiny_model())
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[2:]), file, metadata={"format": "pt"})
    refused("lacks", base, adapter)


def test_virtual_tokens_cannot_be_merged(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    prefix = get_peft_model(tiny_model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    prefix.save_pretrained(tmp_path / "prefix")
    refused("adds virtual tokens", base, tmp_path / "prefix")


def test_tied_rows_stored_apart_are_refused(tmp_path: Path) -> None:
    """An adapter file whose two copies of the rows disagree says two things; neither may win in silence."""
    base = save_tiny(tmp_path / "base", "llama-tied")
    token_adapter(tmp_path / "adapter", "llama-tied")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    assert len(tensors) == 2
    head = next(name for name in tensors if "lm_head" in name)
    tensors[head] = tensors[head] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    refused("stores two different", base, tmp_path / "adapter")


def test_controls_of_token_rows(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama-tied")
    rows = token_adapter(tmp_path / "adapter", "llama-tied")
    tokenizer = tiny_tokenizer()
    vocabulary = tokenizer.get_vocab() | {"ĠMoscowParis": 411}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    old = next(token for token, index in state["model"]["vocab"].items() if index == 411)
    state["model"]["vocab"] = {token: index for token, index in vocabulary.items() if token != old}
    state["model"]["merges"] = [pair for pair in state["model"]["merges"] if old not in ("".join(pair), *pair)]
    type(tokenizer)(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(state))).save_pretrained(
        tmp_path / "adapter"
    )
    matrix = tiny_model("llama-tied").get_input_embeddings().weight.detach()
    initial = loaded(base, tmp_path / "adapter", rows="initial")
    by_hand = matrix.clone()
    by_hand[411] = matrix[tokenizer(" MoscowParis")["input_ids"]].mean(0)  # the other two rows carry their old tokens
    torch.testing.assert_close(initial.embedding, by_hand)
    assert initial.model.get_output_embeddings().weight is initial.model.get_input_embeddings().weight
    shuffled = loaded(base, tmp_path / "adapter", rows="shuffled")
    moved = shuffled.embedding[ROWS]
    assert sorted(moved.tolist()) == sorted(rows.tolist()) and not (moved == rows).all(1).any()
    revisions = {loaded(base, tmp_path / "adapter").revision, initial.revision, shuffled.revision}
    assert len(revisions) == 3


def test_controls_need_token_rows(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    refused("trains none", base, lora(tmp_path / "adapter", tiny_model()), rows="shuffled")
