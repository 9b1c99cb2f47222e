"""The second study and its notebook: the file itself, and notebook 07 run on a tiny base and a LoRA of it."""

import math

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from tests.tiny import save_tiny, tiny_model
from xai_utils.files import ROOT
from xai_utils.study import between
from xai_utils.study.config import load_study
from xai_utils.study.explainer import Explainer
from xai_utils.study.results import folders, read_table
from xai_utils.study.run import run
from xai_utils.text.words import words

KEYS = ["study", "text", "base", "other", "target", "target_text"]
COLUMNS = {
    "swap": [*KEYS, "part", "kind", "start", "end", "score"],
    "adapter_path": [*KEYS, "layer", "module", "position", "token", "score"],
    "adapter_path_words": [*KEYS, "layer", "module", "order", "word", "start", "end", "score"],
    "adapter_path_contrast": [*KEYS, "layer", "module", "position", "token", "score"],
    "adapter_path_certificates": [*KEYS, "tolerance", "evaluations", "delta", "bound", "converged", "cancellation"],
    "layer_deletion": [*KEYS, "removed", "highest", "lowest", "random", "best", "share"],
    "attention_change": ["study", "text", "base", "other", "layer", "head", "divergence", "floor", "beyond_floor"],
    "behaviour": ["study", "text", "model", "role", "answer", "probability", "rank", "margin", "continuation"],
    "tokenization": ["study", "text", "model", "role", "tokens", "words"],
    "word_scores": ["study", "text", "model", "role", "method", "word", "score", "low", "high", "stands"],
}
TEXTS = [
    {"id": "cat", "text": "The cat sat on", "answer": " the", "contrast": " mat", "rewordings": ["The dog sat on"]},
    {"id": "water", "text": "Water boils at", "answer": " zero", "contrast": " the"},
]


def test_the_study_asks_short_prompts_for_minimal_pairs():
    study = load_study("studies/lora.yaml")
    groups = [text.group for text in study.texts]
    assert len(groups) >= 8 and groups.count("help") >= 6 and groups.count("elsewhere") >= 2
    assert all(len(words(text.text)) <= 7 and text.language == "en" and text.rewordings for text in study.texts)
    assert all(text.answer and text.contrast and text.answer != text.contrast for text in study.texts)
    assert [model.adapter is None for model in study.models] == [True, False] and study.notebooks == ("07",)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A study file on a tiny base of four layers and a LoRA of it."""
    folder = tmp_path_factory.mktemp("pair")
    save_tiny(folder / "base", num_hidden_layers=4)
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(tiny_model(num_hidden_layers=4), config).save_pretrained(folder / "adapter")
    models = [{"label": "base", "role": "base", "model": str(folder / "base")}]
    models += [models[0] | {"label": "twin", "role": "adapted", "adapter": str(folder / "adapter")}]
    settings = {"methods": ["panel_shapley"], "absences": ["dropped", "mean"], "notebooks": ["07"]}
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({"models": models, "texts": TEXTS} | settings))
    return file


@pytest.fixture(scope="module")
def ran(pair, tmp_path_factory):
    """The study, with notebook 07 run on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_RUNS", str(tmp_path_factory.mktemp("runs")))
        (job,) = run(pair)
        yield load_study(pair), job


def test_notebook_07_writes_tables_with_the_documented_columns(ran):
    study, _ = ran
    for name, columns in COLUMNS.items():
        table = read_table(study, name)
        assert set(columns) <= set(table.columns), name
        assert set(table["study"]) == {"mine"} and set(table["text"]) == {"cat", "water"}, name
    assert set(read_table(study, "adapter_path_contrast")["target_text"]) == {" mat", " the"}


def test_path_and_swap_sum_to_the_difference_in_behaviour(ran):
    study, _ = ran
    logs = read_table(study, "behaviour").assign(log=lambda table: table["probability"].map(math.log))
    wide = logs.pivot(index="text", columns="model", values="log")
    difference = wide["twin"] - wide["base"]
    assert difference.abs().min() > 0.1
    for name, tolerance in (("swap", 1e-4), ("adapter_path", 0.01 * difference.abs().max())):
        sums = read_table(study, name).groupby("text")["score"].sum()
        pd.testing.assert_series_equal(sums, difference, check_names=False, rtol=0, atol=tolerance)
    both = [
        read_table(study, name).groupby("text")["score"].sum() for name in ("adapter_path", "adapter_path_contrast")
    ]
    margins = logs.pivot(index="text", columns="model", values="margin")
    pd.testing.assert_series_equal(both[0] - both[1], margins["twin"] - margins["base"], check_names=False, atol=0.1)


def test_the_published_map_is_the_path_summed_over_the_modules_of_a_layer(ran):
    study, _ = ran
    shown = pd.read_csv(folders(study).tables / "adapter_path.csv")
    every = read_table(study, "adapter_path_words")
    assert len(shown) == every.groupby(["text", "layer", "order"]).ngroups
    one = every[(every["text"] == "cat") & (every["layer"] == 2) & (every["order"] == 1)]
    assert shown.query("text == 'cat' and layer == 2 and order == 1")["score"].item() == pytest.approx(
        one["score"].sum(), rel=1e-2
    )


def test_notebook_07_shows_a_figure_for_each_question_and_by_hand_what_the_library_says(ran):
    study, job = ran
    names = {path.name for path in folders(study).figs.glob("*.png")}
    kinds = ("behaviour", "heads", "layers", "prompts", "swap", "undone", "words")
    assert names == {f"07_{kind}.twin.png" for kind in kinds}
    code = [cell for cell in nbformat.read(job.output, as_version=4).cells if cell.cell_type == "code"]
    assert any("assert abs(by_hand - library)" in cell.source for cell in code)


def test_path_and_swap_are_compared_over_the_same_layers(ran, pair):
    """Of one group the sum over its layers and half, of a ranking that of all groups."""
    study, _ = ran
    book = Explainer(study)
    swapped = between.swaps(book, "base", "twin")["swap"]
    paths = between.adapter_paths(book, "base", "twin")
    rows = paths["adapter_path"].query("text == 'cat'")
    groups = swapped.query("text == 'cat' and kind == 'layers'")
    along = [
        rows[(rows["half"] == half) & rows["layer"].isin(list(layers))]["score"].sum()
        for half, layers in zip(groups["half"], groups["layers"], strict=True)
    ]
    expected = pd.Series(along).corr(groups["score"].reset_index(drop=True), method="spearman")
    assert between.layer_agreement(paths, swapped)["cat"] == pytest.approx(expected)


def test_texts_on_which_nothing_differs_have_no_deletion_test(ran):
    study, _ = ran
    book = Explainer(study)
    paths = between.adapter_paths(book, "base", "twin")
    flat = paths["adapter_path_certificates"].assign(f_input=lambda table: table["f_baseline"] + 0.01)
    assert between.layer_deletions(book, "base", "twin", paths | {"adapter_path_certificates": flat}).empty
    tests = between.layer_deletions(book, "base", "twin", paths)
    assert set(tests["removed"]) == {3}  # of four adapted layers


def test_make_report_runs_both_published_studies():
    recipe = (ROOT / "Makefile").read_text().split("report: setup")[1].split("\n\n")[0]
    assert recipe.index("studies/lora.yaml") < recipe.index("xai_utils report")
