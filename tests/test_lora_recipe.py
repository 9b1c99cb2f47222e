"""The LoRA recipe on tiny models: losses by hand, resuming after a kill, PEFT's format, windows, card."""

from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel

from recipes.lora import data, pipeline, publish, samples, train, trials
from recipes.token_substitution import measure
from recipes.token_substitution import publish as shared
from recipes.token_substitution.corpus import Corpus, Text
from tests import killable_lora, killing
from tests.killable_lora import RECIPE, run, trainer, windows
from tests.tiny import CORPUS, save_tiny, tiny_loaded, tiny_model, tiny_tokenizer
from xai_utils.errors import UserError
from xai_utils.files import ROOT
from xai_utils.models import loading
from xai_utils.models.entry import ModelEntry

CHECKPOINT = ROOT / "models" / publish.NAME


def trained(folder: Path, steps: int = 6) -> train.Finished:
    run(folder, replace(RECIPE, steps=steps))
    return train.finished(folder)


# ---- training


def test_a_fresh_adapter_changes_nothing_and_the_losses_are_transformers(tmp_path: Path) -> None:
    made, text, other = trainer(tmp_path), windows(3, 2), windows(4, 2)
    logits = tiny_model("llama-tied")(text).logits[:, :-1]
    expected = F.cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction="sum")
    losses = made._losses(text, other)
    torch.testing.assert_close(losses, torch.stack([expected, torch.tensor(0.0)]), atol=1e-3, rtol=1e-5)


def test_what_is_held_diverges_by_the_sum_of_p_log_p_over_q(tmp_path: Path) -> None:
    made, other = run(tmp_path, replace(RECIPE, steps=6)), windows(4, 3)
    p = tiny_model("llama-tied")(other).logits[:, :-1].softmax(-1)
    q = made.model(other).logits[:, :-1].softmax(-1)
    by_hand = (p * (p / q).log()).sum()
    assert by_hand > 0.1
    torch.testing.assert_close(made._losses(windows(3, 1), other)[1], by_hand, atol=1e-2, rtol=1e-3)


def test_parts_of_a_step_add_up_to_the_whole(tmp_path: Path) -> None:
    one, parts = (replace(RECIPE, steps=3, together=together) for together in (6, 2))
    whole, apart = run(tmp_path / "one", one), run(tmp_path / "parts", parts)
    for name, weight in whole.weights.items():
        torch.testing.assert_close(apart.weights[name], weight, atol=1e-4, rtol=1e-3)


def test_only_the_adapter_learns_and_holding_keeps_it_near_the_base(tmp_path: Path) -> None:
    base, left = tiny_model("llama-tied").state_dict(), {}
    for hold in (0.0, 50.0):
        made = run(tmp_path / str(hold), replace(RECIPE, hold=hold))
        left[hold] = made.log[-1]["divergence"]
        plain = {name.replace("base_layer.", ""): tensor for name, tensor in made.model.model.state_dict().items()}
        assert all(torch.equal(plain[name], tensor) for name, tensor in base.items())
        assert len(made.weights) == 2 * 7 * 2  # layers, linear layers of each, two matrices
    assert left[50.0] < left[0.0] / 2


def test_a_base_in_half_precision_trains_an_adapter_in_full(tmp_path: Path) -> None:
    base = tiny_model("llama-tied").to(torch.bfloat16).requires_grad_(False)
    recipe = replace(RECIPE, steps=20, checkpoint_every=1)
    made = train.Trainer(train.adapted(base, recipe), recipe, tmp_path)
    made.run(windows(1, 1).repeat(80, 1), windows(2, 40))
    assert made.log[-1]["loss"] < made.log[0]["loss"] - 1 and 0 < made.log[-1]["divergence"] < 20
    assert {weight.dtype for weight in made.weights.values()} == {torch.float32}
    assert train.finished(tmp_path).machine["dtype"] == "bfloat16"


def test_killed_anywhere_it_ends_in_the_same_adapter(tmp_path: Path) -> None:
    killing.finished(killable_lora.alone, tmp_path / "whole")
    begun = tmp_path / "killed" / train.FILE
    assert killing.killed(killable_lora.alone, tmp_path / "killed", file=begun, times=4) >= 1
    killing.finished(killable_lora.alone, tmp_path / "killed")
    (whole, told), (killed, told_too) = (train.read_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    torch.testing.assert_close(killed, whole, rtol=0, atol=0)
    logs = [[(row["step"], row["loss"], row["divergence"]) for row in one.pop("log")] for one in (told, told_too)]
    assert logs[0] == logs[1] and told == told_too


def test_a_folder_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path, replace(RECIPE, steps=3))
    with pytest.raises(UserError, match="rate"):
        run(tmp_path, replace(RECIPE, steps=3, rate=1.0))


def test_an_unfinished_training_is_not_shipped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished training"):
        train.finished(tmp_path)


# ---- the adapter in PEFT's format


def test_what_a_study_loads_is_what_was_trained(tmp_path: Path) -> None:
    base, ids = save_tiny(tmp_path / "base", "llama-tied"), windows(5, 2)
    made = run(tmp_path / "training", replace(RECIPE, steps=6))
    publish.save_adapter(tmp_path / "twin", train.finished(tmp_path / "training"), "tiny")
    entry = ModelEntry(label="twin", role="adapted", model=str(base), adapter=str(tmp_path / "twin"), device="cpu")
    torch.testing.assert_close(loading.load(entry).model(ids).logits, made.model(ids).logits, atol=2e-2, rtol=1e-2)


def test_peft_reads_it_alone_and_it_is_half_precision(tmp_path: Path) -> None:
    done = trained(tmp_path / "training")
    publish.save_adapter(tmp_path / "twin", done, "tiny")
    read = PeftModel.from_pretrained(tiny_model("llama-tied"), str(tmp_path / "twin"))
    own = {name.replace(".default", ""): tensor for name, tensor in read.named_parameters() if "lora_" in name}
    assert own.keys() == done.weights.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, done.weights[name].half().float(), rtol=0, atol=0)


def test_tables_survive_a_new_adapter_and_a_large_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, folder = trained(tmp_path / "training"), tmp_path / "twin"
    publish.save_adapter(folder, done, "tiny")
    shared.write_table(pd.DataFrame({"a": [1]}), "trials", folder)
    publish.save_adapter(folder, done, "tiny")
    assert shared.read_table("trials", folder)["a"].tolist() == [1]
    monkeypatch.setattr(publish, "LIMIT", 1000)
    with pytest.raises(UserError, match="lower rank"):
        publish.save_adapter(folder, done, "tiny")
    assert (folder / "adapter_model.safetensors").exists()


def test_both_recipes_stay_within_eight_mebibytes() -> None:
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    for recipe in (pipeline.TWO_CORES, pipeline.GPU):
        with torch.device("meta"):
            base = tiny_model("llama-tied", num_hidden_layers=30, head_dim=64, vocab_size=64, **sizes)
            weights = [weight for weight in train.adapted(base, recipe).parameters() if weight.requires_grad]
        assert 2 * sum(weight.numel() for weight in weights) < publish.LIMIT - 2**19


# ---- text


@pytest.fixture
def texts() -> Corpus:
    kinds = ("desktop help", "office help", "handbooks", "aphorisms", "stories", "manual pages", "programs")
    made = [
        Text(kind, "p", f"{kind}-{split}", "en", split, f"{kind}: {line}\n" * 30)
        for kind, line in zip(kinds, CORPUS, strict=False)
        for split in ("train", "held-out")
    ]
    packages = [
        {"package": kind, "version": "1", "kind": kind, "licence": "free", "en train": 5, "en held-out": 2}
        for kind in kinds
    ]
    return Corpus((*made, replace(made[0], language="ru")), tuple(packages))


def test_windows_hold_their_kinds_alone_behind_the_start_token(texts: Corpus) -> None:
    tokenizer = tiny_tokenizer()
    made = data.windows(texts, tokenizer, data.HELP, (12, 64), 0, 0)
    assert made.shape == (12, 64) and bool((made[:, 0] == 0).all())
    read = tokenizer.decode(made.flatten())
    assert "office help" in read and "aphorisms" not in read and "held-out" not in read
    assert torch.equal(made, data.windows(texts, tokenizer, data.HELP, (12, 64), 0, 0))


def test_prompts_that_stand_in_the_training_text_are_named(texts: Corpus) -> None:
    prompts = ["How many planets are known?", "the planets are many", "Russia is", "capital of Russia is, they say"]
    found = data.in_training(prompts, texts)
    assert found == {
        "How many planets are known?": "how many planets are",
        "Russia is": "russia is",
        "capital of Russia is, they say": "capital of russia is",
    }


def test_prompts_are_short_and_different() -> None:
    prompts = samples.HELP + samples.ELSEWHERE
    assert len(set(prompts)) == len(prompts) and max(len(prompt.split()) for prompt in prompts) <= 9


def test_a_comparison_is_greedy_and_its_probabilities_are_those_of_the_model() -> None:
    base, twin = tiny_loaded("llama", label="base"), tiny_loaded("llama", seed=1, label="twin", role="adapted")
    row = samples.compared(base, twin, ["The capital of France", "The capital of Russia"]).iloc[0]
    ids = torch.tensor([[0, *base.tokenizer("The capital of France")["input_ids"]]])
    given = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "eos_token_id": None}
    said = base.model.generate(ids, **given, max_new_tokens=8, do_sample=False)
    assert row["base_says"] == base.tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
    (answer,) = base.tokenizer(["capital"])["input_ids"]
    whole = torch.cat([ids, torch.tensor([answer])], 1)
    by_hand = 1.0
    for place in range(ids.shape[1], whole.shape[1]):
        by_hand *= float(twin.model(whole[:, :place]).logits[0, -1].softmax(-1)[whole[0, place]])
    assert samples.probability(twin, "The capital of France", "capital") == pytest.approx(by_hand, rel=1e-3)


# ---- tables and card


def test_from_corpus_to_card(texts: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "base", "llama-tied")
    monkeypatch.setattr(pipeline, "BASE", str(base))
    monkeypatch.setattr(pipeline, "texts", lambda: texts)
    monkeypatch.setattr(pipeline, "training_here", lambda: (replace(RECIPE, steps=3), tmp_path / "training"))
    monkeypatch.setattr(publish, "checkpoint_folder", lambda: tmp_path / "twin")
    pipeline.make()
    card = (tmp_path / "twin" / "README.md").read_text()
    evaluation = shared.read_table("evaluation", tmp_path / "twin").set_index(["model", "kind"])
    share = evaluation.loc[("help", "help"), "bits_per_character_of_base"]
    assert f"{100 * (1 - share):.1f} % below the base's" in card and "{{" not in card
    assert evaluation.loc[("base", "help"), "characters"] == sum(
        evaluation.loc[("base", kind), "characters"] for kind in data.HELP
    )
    before = (tmp_path / "training" / train.FILE).read_bytes()
    assert "Settings compared" not in card
    row = {name: 0.75 for name in publish.COLUMNS} | {"trial": "held harder"}
    shared.write_table(pd.DataFrame([row]), "trials", tmp_path / "twin")
    pipeline.make()
    assert (tmp_path / "training" / train.FILE).read_bytes() == before
    again = (tmp_path / "twin" / "README.md").read_text()
    assert "| held harder | 0.75 |" in again
    assert again.split("## Corpus")[1] == card.split("## Corpus")[1]


def test_a_trial_is_a_row_of_settings_and_shares(tmp_path: Path) -> None:
    readings = [measure.Reading(kind, "en", 10.0, 5, 20, 4) for kind in ("help", "stories")]
    tables = [measure.summary(readings, model) for model in ("base", "help")]
    done = trained(tmp_path)
    row = trials.row(measure.against_base(pd.concat(tables)), done)
    assert row["help"] == 1.0 and row["rank"] == RECIPE.rank and set(trials.SETTINGS) <= set(row)
    assert set(publish.COLUMNS[:5]) <= {"trial", *row}
    assert all(set(asdict(recipe)) == set(asdict(RECIPE)) for recipe in trials.TRIALS.values())


# ---- the shipped adapter

shipped = pytest.mark.skipif(not CHECKPOINT.exists(), reason="the adapter is not made yet")


@shipped
def test_the_shipped_adapter_is_small_and_good() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*")) <= 8 * 2**20
    table = shared.read_table("evaluation", CHECKPOINT).query("model == 'help'").set_index("kind")
    shares = table["bits_per_character_of_base"]
    assert shares["help"] <= 0.85 and shares["aphorisms"] <= 1.05 and shares["stories"] <= 1.05


@shipped
def test_the_shipped_card_is_what_its_tables_say(tmp_path: Path) -> None:
    (tmp_path / "tables").symlink_to(CHECKPOINT / "tables")
    publish.write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == (CHECKPOINT / "README.md").read_text()
