"""What the repository keeps: the adapter in PEFT's format, the tables, the card. Every number in the card is
computed."""

import json
import shutil
from pathlib import Path

import pandas as pd
from safetensors.torch import save_file

from recipes.lora import train
from recipes.token_substitution import publish as shared
from xai_utils.errors import UserError
from xai_utils.files import ROOT

NAME = "smollm2-135m-help"
LIMIT = 8 * 2**20  # bytes of the whole checkpoint
TEMPLATE = "lora_card.md.j2"
GROUPS = "help", "aphorisms and stories"
COLUMNS = (
    "trial",
    "rank",
    "rate",
    "hold",
    "length",
    "steps",
    "help",
    "aphorisms",
    "stories",
    "manual pages",
    "programs",
)  # of trials


def checkpoint_folder() -> Path:
    return ROOT / "models" / NAME


def save_adapter(folder: Path, done: train.Finished, base_name: str) -> None:
    """Write the adapter (float16) as PEFT does; tables that stand in `folder` stay."""
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, partial)
    partial.mkdir(parents=True, exist_ok=True)
    config = train.configuration(done.recipe)
    config.inference_mode = True
    config.save_pretrained(str(partial))
    file = partial / "adapter_config.json"
    settings = json.loads(file.read_text()) | {
        "base_model_name_or_path": base_name,
        "target_modules": list(train.LAYERS),
    }
    file.write_text(json.dumps(settings, indent=1) + "\n")
    save_file(
        {name: weight.half() for name, weight in done.weights.items()},
        partial / "adapter_model.safetensors",
        {"format": "pt"},
    )
    for written in partial.glob("adapter*"):
        written.chmod(0o644)
    _check_size(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _check_size(folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*"))
    if size > LIMIT:
        raise UserError(f"the checkpoint has {size} bytes; expected at most {LIMIT}; take a lower rank")


def write_card(folder: Path) -> None:
    """The card beside the adapter, out of the tables there."""
    names = ("evaluation", "samples", "training", "recipe", "corpus")
    found = {name: shared.read_table(name, folder) for name in names}
    trials = folder / shared.TABLES / "trials.csv"
    shown = shared.read_table("trials", folder)[list(COLUMNS)] if trials.is_file() else pd.DataFrame()
    shared.write_card(folder, facts(found, shown), TEMPLATE)


def facts(found: dict[str, pd.DataFrame], trials: pd.DataFrame) -> dict[str, object]:
    """What the card says in numbers."""
    table = found["evaluation"]
    shares = table.query("model == 'help'").set_index("kind")["bits_per_character_of_base"]
    last, recipe = found["training"].iloc[-1], found["recipe"].iloc[0].to_dict()
    wide = table.pivot(index="kind", columns="model", values="bits_per_character")[["base", "help"]]
    groups = [*GROUPS, "all"]
    order = [*groups, *sorted(set(wide.index) - set(groups))]
    text = recipe["sequences"] / (recipe["sequences"] + recipe["held"])
    return {
        "name": NAME, "recipe": recipe,
        "tokens": int(last["tokens"]), "text_tokens": round(int(last["tokens"]) * text),
        "minutes": round(float(last["seconds"]) / 60, 1),
        "below": 100 * (1 - shares["help"]), "above": 100 * (shares["aphorisms and stories"] - 1),
        "each": {kind: 100 * (shares[kind] - 1) for kind in ("aphorisms", "stories", "manual pages", "programs")},
        "kinds": wide.assign(of_base=shares).loc[order].round(3).reset_index(),
        "corpus": found["corpus"].groupby(["kind", "licence"], as_index=False).sum(numeric_only=True),
        "samples": found["samples"][["prompt", "base_says", "twin_says"]],
        "trials": trials.round(3),
    }  # fmt: skip
