"""Which beginning is worth training: equal small budgets of tokens, one thread each, measured on the same held-out
text.
"""

from dataclasses import dataclass, replace

import pandas as pd

from xai_utils import models
from xai_utils.adapt import measure, pipeline, prepare, publish, train
from xai_utils.adapt.corpus import Corpus, Text

BUDGET = 40_960  # tokens
EXCERPT = 1_200  # characters of each held-out document


@dataclass(frozen=True)
class Trial:
    """One beginning: what the rows are, how many more updates of the output role follow a step, how much of the text
    is English, the highest rate."""

    name: str
    rows: str
    replays: int = pipeline.RECIPE.replays
    english: float = prepare.ENGLISH_SHARE
    rate: float = pipeline.RECIPE.rate


TRIALS = (
    Trial("random", "random"),
    Trial("mean of pieces", "mean"),
    Trial("mean, half the rate", "mean", rate=pipeline.RECIPE.rate / 2),
    Trial("mean, no replay", "mean", replays=0),
    Trial("mean, no English", "mean", english=0.0),
)


def recipe_of(trial: Trial) -> train.Recipe:
    """The shipped recipe, cut to the budget."""
    full = pipeline.RECIPE
    steps = BUDGET // full.length // full.sequences
    return replace(full, steps=steps, warm_up=8, rate=trial.rate, replays=trial.replays, checkpoint_every=10)


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
        folder, recipe = work / "trials" / trial.name.replace(" ", "-").replace(",", ""), recipe_of(trial)
        pipeline.train_rows(folder, recipe, 1, trial.rows, trial.english)
        values, log = train.finished_rows(folder)
        made = pipeline.ready(work)
        substituted = train.Substituted(pipeline.base_model(), made.rows, values)
        readings = measure.read(substituted.surprise, made.tokenizer, excerpts(made.texts), made.start)
        found.append(
            {
                "trial": trial.name,
                "rows": trial.rows,
                "trained_tokens": int(log[-1]["tokens"]),
                "replays": trial.replays,
                "rate": trial.rate,
                "seconds": log[-1]["seconds"],
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
