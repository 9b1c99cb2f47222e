"""Which beginning is worth training: equal small budgets of tokens by the recipe for two cores, measured on the same
held-out text; and what that recipe comes to when it is followed to its end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from recipes.token_substitution import measure, pipeline, publish, train
from recipes.token_substitution.corpus import Corpus, Text
from recipes.token_substitution.substituted import Substituted
from xai_utils.models import loading
from xai_utils.models.entry import ModelEntry

BUDGET = 40_960  # tokens
EXCERPT = 1_200  # characters of each held-out document
FULL = pipeline.TWO_CORES


@dataclass(frozen=True)
class Trial:
    """One training: what of the recipe for two cores is otherwise, and its budget."""

    name: str
    recipe: train.Recipe
    tokens: int = BUDGET


TRIALS = (
    Trial("random", replace(FULL, rows="random")),
    Trial("mean of pieces", FULL),
    Trial("translations and pieces", replace(FULL, rows="translated")),
    Trial("pieces, half the rate", replace(FULL, rate=FULL.rate / 2)),
    Trial("pieces, no replay", replace(FULL, replays=0)),
    Trial("pieces, no English", replace(FULL, english=0.0)),
    Trial("pieces, to the end", FULL, FULL.steps * FULL.sequences * FULL.length),
)


def recipe_of(trial: Trial) -> train.Recipe:
    """The trial's recipe, cut to its budget."""
    steps = trial.tokens // FULL.length // FULL.sequences
    return replace(trial.recipe, steps=steps, warm_up=min(FULL.warm_up, steps // 5))


def folder_of(trial: Trial) -> Path:
    return pipeline.work_folder() / "trials" / trial.name.replace(" ", "-").replace(",", "")


def train_rows(trial: Trial) -> train.Finished:
    """Train to the end of the budget, or find that done."""
    pipeline.train_rows(folder_of(trial), recipe_of(trial), workers=1)
    return train.finished(folder_of(trial))


def excerpts(texts: Corpus) -> list[Text]:
    """The beginning of every held-out document, Russian and English."""
    return [
        replace(text, text=text.text[:EXCERPT])
        for language in ("ru", "en")
        for text in texts.select("held-out", language)
    ]


def run() -> pd.DataFrame:
    """All trials one after the other, resumable, and their table; the base and the shipped rows read the same text."""
    made = pipeline.ready(pipeline.work_folder())
    base = {"trial": "base"} | bits_of(pipeline.entry("base"), made.texts)
    last = {"trial": "shipped rows"} | shipped() | bits_of(pipeline.entry("trained"), made.texts)
    found: list[dict[str, object]] = []
    for trial in TRIALS:
        trained = train_rows(trial)
        substituted = Substituted(loading.load(pipeline.entry("base")).model, made.rows, trained.rows)
        readings = measure.read(substituted.surprise, made.tokenizer, excerpts(made.texts), made.start)
        found.append({"trial": trial.name} | spent(trained.settings, trained.log[-1]) | bits(readings))
        publish.write_table(pd.DataFrame([base, *found, last]), "trials")
    return publish.read_table("trials")


def spent(settings: Mapping[Any, Any], last: Mapping[Any, Any]) -> dict[str, object]:
    """How a training was done, and what it took."""
    how = {name: settings[name] for name in ("rows", "english", "replays", "rate", "device", "dtype")}
    return how | {"trained_tokens": int(last["tokens"]), "seconds": last["seconds"]}


def shipped() -> dict[str, object]:
    """`spent` of the shipped rows."""
    recipe, training = (publish.read_table(name) for name in ("recipe", "training"))
    return spent(recipe.iloc[0].to_dict(), training.iloc[-1].to_dict())


def bits(readings: list[measure.Reading]) -> dict[str, object]:
    """Bits per character of all the text of each language."""
    table = measure.summary(readings, "").query("kind == 'all'").set_index("language")["bits_per_character"]
    return {f"bits_per_character_{language}": table[language] for language in ("ru", "en")}


def bits_of(asked: ModelEntry, texts: Corpus) -> dict[str, object]:
    """Bits per character of a study's model on the same excerpts."""
    loaded = loading.load(asked)
    assert loaded.document_start is not None
    surprise = measure.surprise_of(loaded.model)
    return bits(measure.read(surprise, loaded.tokenizer, excerpts(texts), loaded.document_start))
