"""`python -m benchmarks.rehearsal`: studies/llama.yaml at the original's size, with both models replaced.

The originals are gated. In their place stand two models of Llama-3.2-1B's published configuration with random weights,
and the real Llama 3 tokenizer out of the `llama-models` package, so that shapes, memory and time are the original's and
the numbers mean nothing. Writes rehearsal.csv: what the run took and whether it ended well.
"""

import os
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
import yaml
from tokenizers import processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from benchmarks.shapes import SHAPES
from xai_utils.files import ROOT, cache_folder, write_text, write_whole
from xai_utils.models.download import fetch_wheel

RESULTS = Path(__file__).resolve().parent / "rehearsal.csv"
LABELS = {"meta-llama": 0, "research-ts": 1}  # each with the seed of its weights


def tokenizer() -> PreTrainedTokenizerFast:
    """Llama 3's, with its special tokens in their places and `<|begin_of_text|>` put in front."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    names += ["<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"]
    names += ["<|eot_id|>", "<|python_tag|>", "<|image|>"]
    names += [f"<|reserved_special_token_{number}|>" for number in range(2, 256 - len(names) + 2)]
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    folder = cache_folder() / "rehearsal"
    with zipfile.ZipFile(fetch_wheel("llama-models")) as wheel:
        file = wheel.extract("models/llama3/tokenizer.model", folder)
    converted = TikTokenConverter(file, extra_special_tokens=names).converted()
    start = converted.token_to_id(names[0])
    converted.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A", special_tokens=[(names[0], start)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=converted, bos_token=names[0], eos_token="<|eot_id|>")


def build(label: str, seed: int) -> Path:
    """A folder of random weights with the tokenizer; made once, 2.5 GB in bfloat16."""
    folder = cache_folder() / "rehearsal" / label
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(SHAPES["Llama-3.2-1B"], dtype=torch.bfloat16)
        tokenizer().save_pretrained(folder)
        model.save_pretrained(folder, max_shard_size="10GB")
    return folder


def study(dtype: str, methods: list[str], texts: int) -> Path:
    """studies/llama.yaml with the two models replaced."""
    content = yaml.safe_load((ROOT / "studies" / "llama.yaml").read_text(encoding="utf-8"))
    for entry in content["models"]:
        entry |= {"model": str(build(entry["label"], LABELS[entry["label"]])), "dtype": dtype}
    content["texts"] = content["texts"][: texts or None]
    content["methods"] = methods or content["methods"]
    return write_text(cache_folder() / "rehearsal" / "rehearsal.yaml", yaml.safe_dump(content, allow_unicode=True))


def main(
    dtype: str = "float32",
    method: Annotated[list[str] | None, typer.Option(help="instead of the study's methods")] = None,
    texts: Annotated[int, typer.Option(help="of the study, the first ones; 0 for all")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="notebooks by number")] = None,
) -> None:
    """Build the two models, run the study from an empty cache of results, and write time and peak memory down."""
    file = study(dtype, method or [], texts)
    notebooks = [part for name in only or [] for part in ("--only", name)]
    runs = cache_folder() / "rehearsal" / "runs" / str(int(time.time()))
    command = [sys.executable, "-m", "xai_utils", "run", "--study", str(file), "--timeout", "14400", *notebooks]
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"XAI_RUNS": str(runs)})
    row = {
        "models": "2 of Llama-3.2-1B's size, random",
        "dtype": dtype,
        "methods": ", ".join(method or ["those of studies/llama.yaml"]),
        "texts": texts or "all",
        "notebooks": ", ".join(only or ["01 to 05"]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads",
        "minutes": round((time.monotonic() - start) / 60, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 1),
        "exit_status": done.returncode,
    }
    before = [pd.read_csv(RESULTS)] if RESULTS.exists() else []
    table = pd.concat([*before, pd.DataFrame([row])], ignore_index=True)
    write_whole(RESULTS, lambda path: table.to_csv(path, index=False, lineterminator="\n"))
    print(pd.DataFrame([row]).to_string(index=False))
    raise typer.Exit(done.returncode)


if __name__ == "__main__":
    typer.run(main)
