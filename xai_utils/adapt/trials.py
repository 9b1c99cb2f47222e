"""Which beginning is worth training: equal small budgets of tokens by the recipe for two cores, measured on the same
held-out text; and what that recipe comes to when it is followed to its end.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from xai_utils import models
from xai_utils.adapt import measure, pipeline, prepare, publish, train
from xai_utils.adapt.corpus import Corpus, Text

BUDGET = 40_960  # tokens
EXCERPT = 1_200  # characters of each held-out document
FULL = pipeline.TWO_CORES


@dataclass(frozen=True)
class Trial:
    """One beginning: what the rows are, and what of the recipe for two cores is otherwise."""

    name: str
    rows: str
    replays: int = FULL.replays
    english: float = prepare.ENGLISH_SHARE
    rate: float = FULL.rate
    tokens: int = BUDGET


TRIALS = (
    Trial("random", "random"),
    Trial("mean of pieces", "mean"),
    Trial("translations and pieces", "translated"),
    Trial("pieces, half the rate", "mean", rate=FULL.rate / 2),
    Trial("pieces, no replay", "mean", replays=0),
    Trial("pieces, no English", "mean", english=0.0),
    Trial("pieces, to the end", "mean", tokens=FULL.steps * FULL.sequences * FULL.length),
)


def recipe_of(trial: Trial) -> train.Recipe:
    """The recipe for two cores, cut to the trial's budget."""
    steps = trial.tokens // FULL.length // FULL.sequences
    warm_up = min(FULL.warm_up, steps // 5)
    return replace(FULL, steps=steps, warm_up=warm_up, rate=trial.rate, replays=trial.replays)


def folder_of(trial: Trial) -> Path:
    return pipeline.work_folder() / "trials" / trial.name.replace(" ", "-").replace(",", "")


def train_rows(trial: Trial) -> train.Finished:
    """Train to the end of the budget, or find that done."""
    pipeline.train_rows(folder_of(trial), recipe_of(trial), 1, trial.rows, trial.english)
    return train.finished(folder_of(trial))


def excerpts(texts: Corpus) -> list[Text]:
    """The beginning of every held-out document, Russian and English."""
    return [
        replace(text, text=text.text[:EXCERPT])
        for language in ("ru", "en")
        for text in texts.select("held-out", language)
    ]


def run() -> pd.DataFrame:
    """All trials one after the other, resumable, and their table."""
    work = pipeline.work_folder()
    found: list[dict[str, object]] = [{"trial": "base"} | reference(pipeline.ready(work).texts)]
    for trial in TRIALS:
        trained, made = train_rows(trial), pipeline.ready(work)
        substituted = train.Substituted(pipeline.base_model(), made.rows, trained.rows)
        readings = measure.read(substituted.surprise, made.tokenizer, excerpts(made.texts), made.start)
        found.append(
            {
                "trial": trial.name,
                "rows": trial.rows,
                "trained_tokens": int(trained.log[-1]["tokens"]),
                "replays": trial.replays,
                "rate": trial.rate,
                "seconds": trained.log[-1]["seconds"],
                "english_share": trial.english,
            }
            | bits(readings)
        )
        publish.write_table(pd.DataFrame(found), "trials")
    return pd.DataFrame(found)


def bits(readings: list[measure.Reading]) -> dict[str, object]:
    """Bits per character of all the text of each language."""
    table = measure.summary(readings, "").query("kind == 'all'").set_index("language")["bits_per_character"]
    return {f"bits_per_character_{language}": table[language] for language in ("ru", "en")}


def reference(texts: Corpus) -> dict[str, object]:
    """Bits per character of the base on the same excerpts."""
    loaded = models.load(pipeline.entry("base"))
    assert loaded.document_start is not None
    surprise = measure.surprise_of(loaded.model)
    return bits(measure.read(surprise, loaded.tokenizer, excerpts(texts), loaded.document_start))
