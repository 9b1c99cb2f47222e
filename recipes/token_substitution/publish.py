"""What the repository keeps: the checkpoint in PEFT's format, the tables, the card. Every number in the card is
computed."""

import json
import shutil
import warnings
from pathlib import Path

import pandas as pd
from jaxtyping import Float
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from peft import TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from recipes.token_substitution.prepare import save_tokenizer
from xai_utils.errors import UserError
from xai_utils.files import ROOT, write_text, write_whole
from xai_utils.study.results import rounded

NAME = "smollm2-135m-ru-ts"
LIMIT = 16 * 2**20  # bytes of the whole checkpoint
TABLES = "tables"  # folder of the checkpoint that holds what was measured


def checkpoint_folder() -> Path:
    return ROOT / "models" / NAME


def save_checkpoint(
    folder: Path,
    base: PreTrainedModel,
    base_name: str,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[int],
    values: Float[Tensor, "rows hidden"],
) -> None:
    """Write `values` (float16) for the token ids `rows` as PEFT's trainable tokens on the tied embedding, and the
    tokenizer.

    `base` is spent: PEFT wraps it in place.
    """
    config = TrainableTokensConfig(
        token_indices=rows, target_modules=["embed_tokens"], task_type="CAUSAL_LM", inference_mode=True
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=UserWarning, module="peft"
        )  # says that tied rows are stored twice, which is meant
        adapted = get_peft_model(base, config)
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        adapted.save_pretrained(str(partial), save_embedding_layers=False)
    weights = load_file(partial / "adapter_model.safetensors")
    save_file(
        {name: values.half().clone() for name in weights}, partial / "adapter_model.safetensors", {"format": "pt"}
    )
    settings = json.loads((partial / "adapter_config.json").read_text()) | {"base_model_name_or_path": base_name}
    (partial / "adapter_config.json").write_text(
        json.dumps(settings).replace('"token_indices"', '\n"token_indices"') + "\n"
    )
    save_tokenizer(tokenizer, partial)
    (partial / "README.md").unlink(missing_ok=True)
    for file in partial.iterdir():
        file.chmod(0o644)
    if (folder / TABLES).exists():
        shutil.copytree(folder / TABLES, partial / TABLES)
    size = sum(file.stat().st_size for file in partial.rglob("*"))
    if size > LIMIT:
        raise UserError(f"the checkpoint has {size} bytes; expected at most {LIMIT}; take fewer new tokens")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(folder)


def write_table(frame: pd.DataFrame, name: str, folder: Path | None = None) -> pd.DataFrame:
    """A table of the checkpoint in `folder`, the shipped one by default, as tables/<name>.csv beside it, rounded to 5
    significant digits."""
    table = frame.map(rounded)
    file = (folder or checkpoint_folder()) / TABLES / f"{name}.csv"
    write_whole(file, lambda partial: table.to_csv(partial, index=False, lineterminator="\n"))
    return table


def read_table(name: str, folder: Path | None = None) -> pd.DataFrame:
    """A table that `write_table` wrote for the checkpoint in `folder`, the shipped one by default."""
    file = (folder or checkpoint_folder()) / TABLES / f"{name}.csv"
    return pd.read_csv(file, keep_default_na=False, na_values=[""])


def has_table(name: str) -> bool:
    """Whether the shipped checkpoint has this table."""
    return (checkpoint_folder() / TABLES / f"{name}.csv").is_file()


def markdown(frame: pd.DataFrame) -> str:
    """A small table in Markdown.

    >>> print(markdown(pd.DataFrame({"a": [1], "b": ["x"]})))
    | a | b |
    | --- | --- |
    | 1 | x |
    """
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def write_card(folder: Path, facts: dict[str, object], template: str = "model_card.md.j2") -> None:
    """The model card from its template; a fact that the template names and `facts` lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(ROOT / "report" / "template"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = markdown
    write_text(folder / "README.md", environment.get_template(template).render(facts))
