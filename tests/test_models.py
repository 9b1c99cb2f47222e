import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from tests.tiny import ARCHITECTURES, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer
from xai_utils.errors import UserError
from xai_utils.files import ROOT
from xai_utils.models import loading
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel, content_hash, load, load_tokenizer
from xai_utils.study.config import load_study

IDS = torch.tensor([[0, 70, 300, 5, 411, 2, 70]])


def entry(model: object, **keys: object) -> ModelEntry:
    return ModelEntry.model_validate({"label": "m", "model": str(model), **keys})


def refused(said: str, model: object, **keys: object) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(entry(model, **keys))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), "llama-tied")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_of_any_architecture_computes_what_was_saved(
    tmp_path: Path, architecture: str, attention: str
) -> None:
    loaded = load(entry(save_tiny(tmp_path, architecture)), attention)
    original = tiny_model(architecture)
    with torch.no_grad():
        expected = original(IDS).logits
        torch.testing.assert_close(loaded.model(IDS).logits, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loaded.model(inputs_embeds=loaded.embed(IDS)).logits, expected, rtol=1e-4, atol=1e-5)
    assert not loaded.model.training and not any(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == ("eager" if architecture == "gemma2" else attention)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma", "gemma3"])
def test_embedding_holds_the_vectors_that_the_model_is_fed(tmp_path: Path, architecture: str) -> None:
    loaded = load(entry(save_tiny(tmp_path, architecture)))
    fed = []
    layers = loaded.model.model.layers if architecture != "gpt2" else loaded.model.transformer.h
    with layers[0].register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0])):
        loaded.model(IDS)
    positions = loaded.model.transformer.wpe.weight[: IDS.shape[1]] if architecture == "gpt2" else 0
    torch.testing.assert_close(loaded.embedding[IDS] + positions, fed[0])
    torch.testing.assert_close(loaded.embed(IDS) + positions, fed[0])
    assert loaded.embedding.shape == (VOCABULARY, 32)


def test_eager_attention_gives_weights(llama: Path) -> None:
    weights = load(entry(llama), "eager").model(IDS, output_attentions=True).attentions
    assert len(weights) == 2
    torch.testing.assert_close(weights[1].sum(-1), torch.ones(1, 4, 7))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_dtype_is_the_entry_s(llama: Path, name: str) -> None:
    loaded = load(entry(llama, dtype=name))
    assert loaded.dtype == getattr(torch, name) == loaded.model(IDS).logits.dtype


# ---- document start


def test_document_start_is_endoftext_where_the_vocabulary_has_it(llama: Path) -> None:
    assert load(entry(llama)).document_start == 0
    assert load(entry(llama, document_start="<|im_end|>")).document_start == 2


def test_no_document_start_where_the_tokenizer_puts_one_itself(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, bos=True)
    assert load(entry(folder)).document_start is None
    with pytest.raises(UserError, match="puts <.im_start.> in front by itself"):
        load(entry(folder, document_start="<|im_end|>"))


@pytest.mark.parametrize(("bos", "expected"), [("<|im_start|>", 1), (None, 2)])
def test_document_start_falls_back_to_bos_then_eos(copy: Path, bos: str | None, expected: int) -> None:
    tokenizer = tiny_tokenizer()
    state = tokenizer.backend_tokenizer.to_str().replace("<|endoftext|>", "<unk>")
    again = type(tokenizer)(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(state), eos_token="<|im_end|>")
    again.bos_token = bos
    again.save_pretrained(copy)
    assert load(entry(copy)).document_start == expected


def test_document_start_must_be_a_token(llama: Path) -> None:
    refused("'<nothing>' is no token", llama, document_start="<nothing>")


# ---- revision


def test_revision_names_contents_not_places(llama: Path, copy: Path) -> None:
    (copy / "README.md").write_text("says nothing to the model")
    (copy / "config.json").touch()
    assert load(entry(copy)).revision == load(entry(llama)).revision == content_hash(llama)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert content_hash(copy) != content_hash(llama)


def test_a_tokenizer_alone_is_the_models(llama: Path) -> None:
    assert load_tokenizer(entry(llama)).get_vocab() == load(entry(llama)).tokenizer.get_vocab()


def test_own_tokenizer_is_used_and_part_of_the_revision(llama: Path, tmp_path: Path) -> None:
    tiny_tokenizer(bos=True).save_pretrained(tmp_path)
    loaded = load(entry(llama, tokenizer=str(tmp_path)))
    assert loaded.tokenizer("a")["input_ids"][0] == 1
    assert loaded.revision == f"{content_hash(llama)}+tokenizer:{content_hash(tmp_path)}"


# ---- where an entry's folders are


def test_paths_of_a_study_start_from_its_file(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    shutil.copytree(llama, home / "own" / "model")
    elsewhere.mkdir()
    texts = "texts: [{id: a, text: b}]"
    (home / "mine.yaml").write_text(f"models: [{{label: a, model: own/model, tokenizer: own/model}}]\n{texts}")
    for folder in (elsewhere, home):
        monkeypatch.chdir(folder)
        assert load(load_study(home / "mine.yaml").models[0]).revision.startswith(content_hash(llama))
    shutil.copytree(llama, elsewhere / "own" / "other")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (home / "other.yaml").write_text("models: [{label: a, model: own/other}]\ntexts: [{id: a, text: b}]")
    with pytest.raises(UserError, match="own/other is not in the local cache"):  # the current folder is none of its own
        load(load_study(home / "other.yaml").models[0])


def test_the_repository_s_models_are_found_from_any_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "mine.yaml"
    study.write_text("models: [{label: a, model: m, adapter: models/smollm2-135m-ru-ts}]\ntexts: [{id: a, text: b}]")
    (entry,) = load_study(study).models
    assert entry.path(entry.adapter) == ROOT / "models" / "smollm2-135m-ru-ts"
    assert entry.path("models/other") == tmp_path / "models" / "other"
    assert entry.path("/x") == Path("/x") and entry.model_copy().path("m") == tmp_path / "m"


# ---- what is refused


def sharded(folder: Path, place: str = "") -> dict[str, str]:
    """Move the weights into two files, under `place`, with an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / place).mkdir(exist_ok=True)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"{place}part-{number}.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


def test_every_weight_file_is_part_of_the_hash(copy: Path, llama: Path) -> None:
    sharded(copy, "deep/")
    before = load(entry(copy))
    torch.testing.assert_close(before.model(IDS).logits, load(entry(llama)).model(IDS).logits)
    file = copy / "deep" / "part-1.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    assert load(entry(copy)).revision != before.revision


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(copy: Path, content: str) -> None:
    sharded(copy)
    (copy / "model.safetensors.index.json").write_text(content)
    refused(r"model.safetensors.index.json cannot be read \(.*\); .* fetch or copy it again", copy)


@pytest.mark.parametrize("place", ["../part.safetensors", "/etc/part.safetensors", "a/../../b.safetensors"])
def test_weights_outside_the_folder_are_refused(copy: Path, place: str) -> None:
    index = sharded(copy) | {"model.norm.weight": place}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    refused("which is not in its folder; expected weights beside it", copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_found_at_load(copy: Path, value: float) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 3] = value  # a row that no check reads
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused("its weight model.embed_tokens.weight holds values that are not finite in float32", copy)


def test_folders_without_weights_tokenizer_or_config(copy: Path) -> None:
    (copy / "tokenizer.json").rename(copy / "elsewhere")
    refused("no tokenizer that can be relied on; .*`tokenizer:`", copy)
    (copy / "elsewhere").rename(copy / "tokenizer.json")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    refused("no model.safetensors: its weights are pickled", copy)
    (copy / "pytorch_model.bin").unlink()
    refused("no model.safetensors: it has no weights", copy)
    (copy / "config.json").unlink()
    refused("no config.json", copy)


def test_a_missing_shard_is_named(copy: Path) -> None:
    tiny_model("llama-tied").save_pretrained(copy, max_shard_size="60KB")
    (copy / "model.safetensors").unlink()
    parts = sorted(copy.glob("model-*.safetensors"))
    assert len(parts) > 1 and load(entry(copy)).model(IDS).logits.isfinite().all()
    parts[0].unlink()
    refused(f"lacks 1 of its {len(parts)} weight files, {parts[0].name}", copy)


def test_weights_that_would_be_random_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused("1 weights of its architecture are not in its files, model.layers.1.mlp.up_proj.weight", copy)


def test_broken_files(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused("cannot be loaded", copy)
    (copy / "model.safetensors").write_bytes(whole)
    (copy / "tokenizer.json").write_text("{}")
    refused("tokenizer of .* cannot be read", copy)
    (copy / "config.json").write_text("{")
    refused("cannot be", copy)


def test_code_that_comes_with_a_model_is_not_run(copy: Path) -> None:
    config = '{"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}'
    (copy / "config.json").write_text(config)
    (copy / "own.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    refused("cannot be", copy)
    assert not (copy / "ran").exists()


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    refused("token ids up to 511 and its model 400 embedding rows", save_tiny(tmp_path, vocab_size=400))


def test_models_that_are_not_causal(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    BertLMHeadModel(BertConfig(vocab_size=VOCABULARY, **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    refused("the last token changes earlier outputs", tmp_path)
    t5 = T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path)
    refused("cannot be loaded.*causal", tmp_path)


def test_embeddings_that_are_not_what_the_model_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path, "gemma")
    unscaled = lambda self, ids: self.model.get_input_embeddings().weight[ids]  # noqa: E731
    monkeypatch.setattr(LoadedModel, "embed", unscaled)
    refused("output through embeddings differs", folder)


def test_logits_that_overflow(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] *= 6e4  # which is a float16, and its products are not
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused("its logits are not finite in float16; use dtype: float32", copy, dtype="float16")


def test_layers_spread_over_devices_compute_the_same(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load(entry(llama))
    given = []
    read = loading.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        loading.AutoModelForCausalLM, "from_pretrained", lambda *args, **keys: given.append(keys) or read(*args, **keys)
    )
    spread = load(entry(llama, device_map="auto"))
    assert given[0]["device_map"] == "auto" and spread.revision == plain.revision and spread.device.type == "cpu"
    torch.testing.assert_close(spread.model(IDS).logits, plain.model(IDS).logits)
    with pytest.raises(ValueError, match="device: cpu names one device, device_map spreads over all; leave one out"):
        entry(llama, device="cpu", device_map="auto")


def test_quantisation_without_its_library_is_one_line(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    refused("m: quantization: 8bit needs bitsandbytes, which is not installed; pip install", llama, quantization="8bit")


def test_a_quantised_model_is_another_one_near_the_first(llama: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plain, quantised = load(entry(llama)), load(entry(llama, quantization="8bit"))
    assert quantised.revision == f"{plain.revision}+8bit"
    difference = (quantised.model(IDS).logits - plain.model(IDS).logits).abs().max()
    assert 0 < difference < 0.3 * plain.model(IDS).logits.abs().max()


def test_devices(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(entry(llama, device="cpu")).device.type == "cpu"
    refused("device cuda:7 is not there; this machine has cpu", llama, device="cuda:7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("device cuda is not there; this machine has cpu", llama, device="cuda")
    assert load(entry(llama, device="auto")).device.type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    refused("device mps is not there", llama, device="mps")


def test_auto_is_cuda_where_there_is_one_and_never_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading._device("auto").type == "cpu" and loading._device("mps").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert loading._device("auto").type == "cuda" and loading._device("cuda:1").index == 1
    with pytest.raises(UserError, match="cuda:2 is not there; this machine has cpu, cuda:0, cuda:1"):
        loading._device("cuda:2")


def test_names_that_mean_nothing(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "model.onnx").touch()
    refused("a file of another kind", tmp_path / "model.onnx")
    refused("no such folder or file", tmp_path / "nowhere")
    refused("no such folder or file", "./nowhere")
    refused("no such folder or file", "nowhere.gguf")
    refused("cannot be a model's name", "what is this?")
    refused("only a Hub model has revisions", llama, revision="main")


# ---- the default model


def test_the_default_model_says_paris(smollm2: LoadedModel) -> None:
    def top(ids: list[int]) -> tuple[str, float]:
        p = smollm2.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        return smollm2.tokenizer.decode(int(p.argmax())), float(p.max())

    ids = smollm2.tokenizer("The capital of France is")["input_ids"]
    assert len(ids) == 5
    assert top(ids) == (" Paris", pytest.approx(0.7725, abs=2e-3))
    assert smollm2.document_start == smollm2.tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0
    assert top([0, *ids]) == (" Paris", pytest.approx(0.8059, abs=2e-3))


def test_the_default_model_s_tokenizer_is_smollm2_s(smollm2: LoadedModel) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer.tokenize("In 2024:  5 km²") == ["In", "Ġ", "2", "0", "2", "4", ":", "ĠĠ", "5", "Ġkm", "Â²"]
    assert not any(sum(c.isdigit() for c in token) > 1 for token in tokenizer.get_vocab())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"]
    assert tokenizer.convert_ids_to_tokens(range(7)) == specials
    assert tokenizer.tokenize("<|im_start|>user<|im_end|>") == ["<|im_start|>", "user", "<|im_end|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert len(tokenizer) == len(smollm2.embedding) == 49152
    text = "Сколько планет в Солнечной системе? 8!\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\nYou are") and chat.endswith("<|im_start|>assistant\n")


def test_the_default_model_keeps_nothing_of_its_gguf_file(smollm2: LoadedModel) -> None:
    config = smollm2.model.config.to_dict()
    assert "quantization_config" not in config and "_model_name_or_path" not in config
    assert (config["model_type"], config["max_position_embeddings"], config["tie_word_embeddings"]) == (
        "llama",
        8192,
        True,
    )
    assert config["rope_parameters"]["rope_theta"] == 100000
    assert config["rms_norm_eps"] == pytest.approx(1e-5)
    assert smollm2.tokenizer.model_max_length == 8192
    assert smollm2.revision.startswith("b179c9523d0e")
