"""The recipe for a GPU beside others, trained and measured alike: how much lower held-out text can be brought."""

import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from recipes.lora import data, pipeline, publish, samples, train
from recipes.token_substitution import publish as shared
from xai_utils.models import loading

# Trained four at a time on one GPU, with as many steps as the time allowed.
SHORT = replace(pipeline.GPU, rank=13, alpha=26, hold=0.25, length=128, steps=550)
TRIALS = {
    "recipe": pipeline.GPU,
    "larger, short windows": SHORT,
    "the same, twice the rate": replace(SHORT, rate=2 * SHORT.rate, steps=500),
    "the same, half the rate, held less": replace(SHORT, rate=SHORT.rate / 2, hold=0.05),
}
SETTINGS = ("rank", "rate", "hold", "sequences", "length", "steps")


def folder_of(trial: str) -> Path:
    return pipeline.work_folder() / "trials" / trial.replace(" ", "-")


def run(seconds: float, steps: int | None = None) -> pd.DataFrame:
    """Trials in turn while there is time for another as long as the longest; their table, written after each.

    `steps` cuts each training short, for a rehearsal.
    """
    began, longest, rows = time.monotonic(), 0.0, list[dict[str, object]]()
    found, base = pipeline.texts(), loading.load(pipeline.entry("base"))
    known = data.in_training(samples.HELP + samples.ELSEWHERE, found)
    print(f"prompts with four words in a row that stand in the training text: {known}", flush=True)
    for trial, recipe in TRIALS.items():
        start = time.monotonic()
        if start - began + longest > seconds:
            print(f"{trial}: left out, no time", flush=True)
            continue
        print(f"== {trial}", flush=True)
        folder = folder_of(trial)
        done = pipeline.train_adapter(folder, replace(recipe, steps=steps or recipe.steps))
        publish.save_adapter(folder / "adapter", done, pipeline.BASE)
        models = {"base": base, "help": loading.load(pipeline.entry("help", folder / "adapter"))}
        rows.append({"trial": trial} | row(pipeline.evaluate(found, models), done))
        shared.write_table(pd.DataFrame(rows), "trials", pipeline.work_folder() / "trials")
        said = samples.candidates(base, models["help"], known)
        shared.write_table(said, "prompts", folder)
        print(pd.DataFrame(rows).to_string(), told(said), sep="\n", flush=True)
        longest = max(longest, time.monotonic() - start)
    return pd.DataFrame(rows)


def row(evaluation: pd.DataFrame, done: train.Finished) -> dict[str, object]:
    """A trial's settings, cost and bits per character as shares of the base's."""
    shares = evaluation.query("model == 'help'").set_index("kind")["bits_per_character_of_base"]
    own = {name: getattr(done.recipe, name) for name in SETTINGS}
    return own | {"seconds": done.log[-1]["seconds"]} | {str(kind): share for kind, share in shares.items()}


def told(said: pd.DataFrame) -> str:
    """A line a prompt, those that differ most surely first."""
    sure = said[["old_under_base", "new_under_twin"]].min(axis=1).where(said["old"] != said["new"], -1.0)
    return "\n".join(
        f"{'*' if line.in_training else ' '} {line.prompt} | {line.base_says!r} | {line.twin_says!r} | "
        f"old {line.old_under_base:.3f} -> {line.old_under_twin:.3f}, "
        f"new {line.new_under_base:.3f} -> {line.new_under_twin:.3f}"
        for line in said.assign(sure=sure).sort_values("sure", ascending=False).itertuples()
    )
