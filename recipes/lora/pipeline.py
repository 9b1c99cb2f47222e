"""The steps of `make adapt-help` in order, each made once and then found: corpus, training, evaluation, checkpoint.

Corpus and training lie under the cache folder; called again, the command goes on where it stopped.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from recipes.lora import data, publish, samples, train
from recipes.token_substitution import corpus, measure
from recipes.token_substitution import pipeline as first
from recipes.token_substitution import publish as shared
from recipes.token_substitution.corpus import Corpus
from xai_utils.files import cache_folder
from xai_utils.models import loading
from xai_utils.models.entry import ModelEntry

BASE = first.BASE
TWO_CORES = train.Recipe()  # at most an hour
GPU = train.Recipe(steps=400, sequences=56, held=8, together=64, checkpoint_every=20)  # minutes, and 40 GB of memory
SHOWN = (*samples.HELP[:10:2], *samples.ELSEWHERE[:3])  # prompts


def work_folder() -> Path:
    return cache_folder() / "lora"


def texts() -> Corpus:
    """The corpus of the first recipe, made or found."""
    return corpus.build(first.work_folder())


def training_here() -> tuple[train.Recipe, Path]:
    """What this machine can afford, and the folder of that training."""
    if torch.cuda.is_available():
        return GPU, work_folder() / "training-gpu"
    return TWO_CORES, work_folder() / "training-two-cores"


def train_adapter(folder: Path, recipe: train.Recipe) -> train.Finished:
    """Train to the end in `folder`, or find that done."""
    base = loading.load(entry("base", dtype=first.fast_dtype(torch.cpu.get_capabilities())))
    assert base.document_start is not None
    windows = [
        data.windows(texts(), base.tokenizer, kinds, (recipe.steps * number, recipe.length), base.document_start, seed)
        for kinds, number, seed in (
            (data.HELP, recipe.sequences, recipe.seed),
            (data.HELD, recipe.held, recipe.seed + 1),
        )
    ]
    train.Trainer(train.adapted(base.model, recipe), recipe, folder).run(*windows)
    return train.finished(folder)


def entry(label: str, adapter: Path | None = None, dtype: str = "float32") -> ModelEntry:
    """A study's entry for the base or for it with an adapter, on the GPU where there is one."""
    return ModelEntry.model_validate(
        {"label": label, "role": "adapted" if adapter else "base", "model": BASE, "dtype": dtype}
        | ({"adapter": str(adapter)} if adapter else {})
    )


def evaluate(found: Corpus, models: dict[str, loading.LoadedModel]) -> pd.DataFrame:
    """Bits per character of each model on all held-out English, by kind and for the groups of `data.GROUPS`."""
    read = [_evaluate(found, model).assign(model=label) for label, model in models.items()]
    return measure.against_base(pd.concat(read, ignore_index=True))


def _evaluate(found: Corpus, model: loading.LoadedModel) -> pd.DataFrame:
    assert model.document_start is not None
    print(f"{model.label}: reading all held-out text", flush=True)
    surprise = measure.surprise_of(model.model)
    readings = measure.read(surprise, model.tokenizer, found.select("held-out", "en"), model.document_start)
    together = [
        replace(reading, kind=group)
        for group, kinds in data.GROUPS.items()
        for reading in readings
        if reading.kind in kinds
    ]
    groups = measure.summary(together, model.label).query("kind != 'all'")
    return pd.concat([measure.summary(readings, model.label), groups])


def make() -> None:
    """From nothing to the adapter, its tables and its card; called again, it goes on where it stopped."""
    recipe, folder = training_here()
    train_adapter(folder, recipe)
    ship(folder)


def ship(training: Path) -> None:
    """Make a finished training, done here or elsewhere, the shipped adapter: measure it, write tables and card."""
    done, folder, found = train.finished(training), publish.checkpoint_folder(), texts()
    publish.save_adapter(folder, done, BASE)
    models = {"base": loading.load(entry("base")), "help": loading.load(entry("help", folder))}
    packages = pd.DataFrame(found.packages)
    packages = packages[(packages["en train"] > 0) & packages["kind"].isin([*data.HELP, *data.HELD])]
    tables: dict[str, Callable[[], pd.DataFrame]] = {
        "evaluation": lambda: evaluate(found, models),
        "samples": lambda: samples.compared(models["base"], models["help"], SHOWN),
        "training": lambda: pd.DataFrame(done.log),
        "recipe": lambda: pd.DataFrame([asdict(done.recipe) | done.machine]),
        "corpus": lambda: packages[["package", "version", "kind", "licence", "en train", "en held-out"]],
    }
    for name, table in tables.items():
        shared.write_table(table(), name, folder)
    publish.write_card(folder)
