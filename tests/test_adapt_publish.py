"""The checkpoint in PEFT's format: what a study loads equals the rows added by hand, also of the shipped one."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from recipes.token_substitution import pipeline, prepare, publish
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from xai_utils.errors import UserError
from xai_utils.files import ROOT
from xai_utils.models import adapters, loading
from xai_utils.models.entry import ModelEntry

CHECKPOINT = ROOT / "models" / "smollm2-135m-ru-ts"
ROWS = [5, 17, 300, 411]


def saved(folder: Path) -> torch.Tensor:
    values = torch.randn(len(ROWS), 32, generator=torch.Generator().manual_seed(1)).half()
    publish.save_checkpoint(folder, tiny_model("llama-tied"), "tiny", tiny_tokenizer(), ROWS, values.float())
    return values


def test_a_saved_checkpoint_equals_its_rows_added_by_hand(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama-tied")
    values = saved(tmp_path / "twin")
    entry = ModelEntry(label="twin", role="adapted", model=str(base), adapter=str(tmp_path / "twin"))
    by_hand = tiny_model("llama-tied")
    with torch.no_grad():
        by_hand.get_input_embeddings().weight[ROWS] = values.float()
    ids = torch.tensor([[1, 5, 17, 300, 411, 8, 300]])
    got, expected = loading.load(entry).model(ids).logits, by_hand(ids).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert (got - tiny_model("llama-tied")(ids).logits).abs().max() > 0.1


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    saved(tmp_path / "twin")
    (tmp_path / "twin" / "left-over").touch()
    saved(tmp_path / "twin")
    names = {file.name for file in (tmp_path / "twin").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert "left-over" not in names and [file.name for file in tmp_path.iterdir()] == ["twin"]
    weights = load_file(tmp_path / "twin" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    text = (tmp_path / "twin" / "adapter_config.json").read_text()
    assert str(tmp_path) not in text and '"base_model_name_or_path": "tiny"' in text


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({"avx2": True, "avx512_bf16": False}, "float32"), ({"amx_bf16": True}, "bfloat16")]
)
def test_arithmetic_follows_the_processor_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pipeline.fast_dtype(capabilities) == expected


@pytest.mark.parametrize("gpu", [False, True])
def test_a_gpu_has_a_recipe_and_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    recipe, folder = pipeline.training_here()
    assert recipe == (pipeline.GPU if gpu else pipeline.TWO_CORES)
    assert folder.name == ("training-gpu" if gpu else "training-two-cores")
    tokens = recipe.steps * recipe.sequences * recipe.length
    assert tokens == (19_660_800 if gpu else 1_126_400)


def test_an_unknown_beginning_is_refused() -> None:
    with pytest.raises(UserError, match="unknown beginning 'translatd' of new rows; .*translated"):
        pipeline.start_rows("translatd", torch.zeros(1, 1), None, 0)  # type: ignore[arg-type]  # looked at first


def test_a_saved_tokenizer_does_not_tell_how_it_was_loaded(tmp_path: Path) -> None:
    saved(tmp_path / "twin")
    kept = json.loads((tmp_path / "twin" / "tokenizer_config.json").read_text())
    assert not set(prepare.OF_LOADING) & set(kept) and kept["tokenizer_class"]


def test_a_bar_in_a_cell_does_not_break_the_table() -> None:
    assert publish.markdown(pd.DataFrame({"a": ["x|y"]})).splitlines()[-1] == "| x\\|y |"


# ---- the shipped checkpoint


def test_the_shipped_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*")) <= 16 * 2**20


@pytest.mark.parametrize("prompt", ["Сколько планет в Солнечной системе?", "The capital of France is"])
def test_the_shipped_checkpoint_equals_its_rows_added_by_hand(smollm2: loading.LoadedModel, prompt: str) -> None:
    entry = ModelEntry(label="ru-ts", role="adapted", model="smollm2-135m-instruct", adapter=str(CHECKPOINT))
    twin = loading.load(entry)
    ids = torch.tensor([[0, *twin.tokenizer(prompt)["input_ids"]]])
    weight, rows = smollm2.embedding, adapters.token_rows(CHECKPOINT)
    kept = weight[rows].clone()
    try:
        weight[rows] = next(iter(load_file(CHECKPOINT / "adapter_model.safetensors").values())).float()
        expected = smollm2.model(ids).logits.clone()
    finally:
        weight[rows] = kept
    torch.testing.assert_close(twin.model(ids).logits, expected, atol=1e-5, rtol=0)


def test_what_the_card_says_stands_in_the_table() -> None:
    table = publish.read_table("evaluation").set_index(["model", "language", "kind"])
    trained = {language: table.loc[("trained", language, "all")] for language in ("ru", "en")}
    assert trained["ru"]["tokens_of_base"] <= 0.45
    assert trained["ru"]["bits_per_character_of_base"] <= 0.72
    assert trained["en"]["bits_per_character_of_base"] <= 1.02
    card = (CHECKPOINT / "README.md").read_text()
    assert f"{100 * (1 - trained['ru']['bits_per_character_of_base']):.1f} % below" in card


def test_the_card_shows_the_trials_once_they_have_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "checkpoint_folder", lambda: tmp_path)
    assert pipeline.trials_table().empty
    base = {"trial": "base", "bits_per_character_ru": 2.07701, "bits_per_character_en": 1.1638}
    spent = {"trial": "mean", "trained_tokens": 40960.0, "replays": 2.0, "rate": 0.002, "device": "a CPU core"}
    bits = {"bits_per_character_ru": 2.6764, "bits_per_character_en": 1.1656}
    publish.write_table(pd.DataFrame([base, spent | bits]), "trials")
    rows = publish.markdown(pipeline.trials_table()).splitlines()[2:]
    assert rows == ["| base |  |  |  |  | 2.08 | 1.16 |", "| mean | 41000 | 2 | 0.002 | a CPU core | 2.68 | 1.17 |"]


def test_the_shipped_card_is_what_its_tables_say(tmp_path: Path) -> None:
    names = ("evaluation", "samples", "training", "recipe", "corpus", "vocabulary")
    publish.write_card(tmp_path, pipeline.facts({name: publish.read_table(name) for name in names}))
    assert (tmp_path / "README.md").read_text() == (CHECKPOINT / "README.md").read_text()
