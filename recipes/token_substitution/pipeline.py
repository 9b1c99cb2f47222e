"""The steps of `make adapt` in order, each made once and then found: corpus, tokenizer, training, evaluation,
checkpoint.

Everything in between lies under the cache folder; a step that is there is not made again, so the command resumes by
being called again.
"""

import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import distributed as dist
from torch import multiprocessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from recipes.token_substitution import corpus, initialise, measure, prepare, publish, train, translate, vocabulary
from recipes.token_substitution.corpus import Corpus
from recipes.token_substitution.substituted import Substituted
from xai_utils.errors import UserError, nearest
from xai_utils.files import cache_folder, write_text
from xai_utils.models import loading
from xai_utils.models.adapters import embedding_matrix
from xai_utils.models.entry import ModelEntry

BASE = "smollm2-135m-instruct"
TWO_CORES = train.Recipe()  # about 2.5 hours with corpus and evaluation
GPU = train.Recipe(steps=1200, sequences=64, rate=3e-3, fall=0.5, replays=0, checkpoint_every=20)  # minutes
BEGINNINGS = {  # of new rows, as the card describes them
    "random": "at random",
    "mean": "as the mean of their old pieces' rows",
    "translated": "between the rows of their translations and the mean of their old pieces' rows",
}


@dataclass(frozen=True)
class Ready:
    """All that training needs."""

    texts: Corpus
    base: PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast
    rows: list[int]
    start: int


def work_folder() -> Path:
    return cache_folder() / "adapt"


def ready(folder: Path) -> Ready:
    """Corpus and tokenizer, made or found."""
    base = loading.load(ModelEntry(label="base", role="base", model=BASE))
    texts = corpus.build(folder)
    tokenizer, rows = prepare.tokenizer(base.tokenizer, texts, folder)
    assert base.document_start is not None
    return Ready(texts, base.tokenizer, tokenizer, rows, base.document_start)


def fast_dtype(capabilities: Mapping[str, object]) -> str:
    """bfloat16 where a GPU or else the CPU multiplies it, else float32: without such instructions torch's product of
    two bfloat16 matrices took over a hundred times as long as that of float32 ones.

    `capabilities` are those of `torch.cpu.get_capabilities()`.
    """
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bfloat16" if fast else "float32"


def training_here() -> tuple[train.Recipe, Path]:
    """What this machine can afford, and the folder of that training: seventeen times the tokens where there is a
    GPU."""
    if torch.cuda.is_available():
        return GPU, work_folder() / "training-gpu"
    return TWO_CORES, work_folder() / "training-two-cores"


def base_model() -> PreTrainedModel:
    """The base, on the GPU where there is one, in the arithmetic that is fast there."""
    return loading.load(entry("base", fast_dtype(torch.cpu.get_capabilities()))).model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_rows(kind: str, embedding: torch.Tensor, made: Ready, seed: int) -> torch.Tensor:
    """The new rows before training. Raises UserError for a `kind` that is none of `BEGINNINGS`."""
    if kind == "random":
        return initialise.random_rows(embedding, len(made.rows), seed)
    if kind == "translated":
        return translate.rows(embedding, made.base, made.tokenizer, made.rows, work_folder())
    if kind == "mean":
        return initialise.initial_rows(embedding, made.base, made.tokenizer, made.rows)
    raise UserError(f"unknown beginning {kind!r} of new rows; {nearest(kind, BEGINNINGS)}")


def _work(rank: int, workers: int, port: int, recipe: train.Recipe, folder: Path, work: Path) -> None:
    """One worker of one training: builds all it needs for itself, so that only gradients travel."""
    threads = torch.get_num_threads()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    made = ready(work)
    model = base_model()
    start = start_rows(recipe.rows, embedding_matrix(model).float().cpu(), made, recipe.seed)
    number = recipe.steps * recipe.sequences
    data = prepare.training_windows(
        made.texts, made.tokenizer, number, recipe.length, made.start, recipe.seed, recipe.english
    )
    substituted = Substituted(model, made.rows, start, among=data.unique())
    train.Trainer(substituted, recipe, folder, train.Worker(rank, workers)).run(data)
    if workers > 1:
        dist.destroy_process_group()
    torch.set_num_threads(threads)


def train_rows(folder: Path, recipe: train.Recipe, workers: int = 2) -> None:
    """Train to the end in `folder`; `workers` processes of a thread each on a CPU, one process on a GPU."""
    work = work_folder()
    ready(work)  # once, before the workers all look for it
    if torch.cuda.is_available():
        workers = 1
    if workers == 1:
        return _work(0, 1, 0, recipe, folder, work)
    port = free_port()
    others = [
        multiprocessing.get_context("spawn").Process(
            target=_work, args=(rank, workers, port, recipe, folder, work), daemon=True
        )
        for rank in range(1, workers)
    ]
    for process in others:
        process.start()
    _work(0, workers, port, recipe, folder, work)
    for process in others:
        process.join()
    return None


# ---- evaluation

ENTRIES = {
    "base": {},
    "untrained": {"adapter": str(publish.checkpoint_folder()), "rows": "initial"},
    "trained": {"adapter": str(publish.checkpoint_folder())},
    "shuffled": {"adapter": str(publish.checkpoint_folder()), "rows": "shuffled"},
}


def entry(label: str, dtype: str = "float32") -> ModelEntry:
    """A study's entry for the base, the checkpoint or one of its controls, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    role = {"base": "base", "trained": "adapted"}.get(label, "control")
    return ModelEntry(label=label, role=role, model=BASE, dtype=dtype, device=device, **ENTRIES[label])


def content_of(loaded: loading.LoadedModel) -> str:
    """SHA-256 of what differs between the base, the checkpoint and its controls: rows and tokenizer."""
    rows = embedding_matrix(loaded.model).float().cpu().numpy().tobytes()
    return hashlib.sha256(rows + loaded.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def evaluate(label: str, texts: Corpus, folder: Path) -> dict[str, list[dict]]:
    """Readings of all held-out text and continuations for one model, loaded as a study loads it; kept in `folder`.

    What is kept counts for the same weights and tokenizer alone.
    """
    loaded = loading.load(entry(label))
    content = content_of(loaded)
    kept = folder / f"{label}.json"
    if kept.exists():
        found = json.loads(kept.read_text())
        if found.get("content") == content:
            return found
    print(f"{label}: reading all held-out text", flush=True)
    assert loaded.document_start is not None
    held_out = texts.select("held-out", "ru") + texts.select("held-out", "en")
    readings = measure.read(measure.surprise_of(loaded.model), loaded.tokenizer, held_out, loaded.document_start)
    samples = measure.continuations(loaded.model, loaded.tokenizer, loaded.document_start)
    found = {"content": content, "readings": [vars(reading) for reading in readings], "samples": samples}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(kept, json.dumps(found, ensure_ascii=False))
    return found


def tables(texts: Corpus, folder: Path, trained: train.Finished, tokenizer: Path) -> dict[str, pd.DataFrame]:
    """All tables of the checkpoint but the trials, written beside it."""
    found = {label: evaluate(label, texts, folder) for label in ENTRIES}
    summaries = [
        measure.summary([measure.Reading(**row) for row in found[label]["readings"]], label) for label in ENTRIES
    ]
    samples = pd.DataFrame([{"model": label} | row for label in ENTRIES for row in found[label]["samples"]])
    order = {prompt: place for place, (_, prompt) in enumerate(measure.PROMPTS)}
    samples = samples.sort_values("prompt", key=lambda column: column.map(order), kind="stable")
    gone = json.loads((tokenizer / "rows.json").read_text())["gone"]
    return {
        "evaluation": publish.write_table(measure.against_base(pd.concat(summaries, ignore_index=True)), "evaluation"),
        "samples": publish.write_table(samples, "samples"),
        "training": publish.write_table(pd.DataFrame(trained.log), "training"),
        "recipe": publish.write_table(pd.DataFrame([trained.settings]), "recipe"),
        "corpus": publish.write_table(pd.DataFrame(texts.packages), "corpus"),
        "vocabulary": publish.write_table(pd.DataFrame(gone, columns=["token", "count"]), "vocabulary"),
    }


def make() -> None:
    """From nothing to the checkpoint, its tables and its card; called again, it goes on where it stopped."""
    work = work_folder()
    recipe, training = training_here()
    train_rows(training, recipe)
    made = ready(work)
    trained = train.finished(training)
    folder = publish.checkpoint_folder()
    base = loading.load(ModelEntry(label="base", role="base", model=BASE)).model
    publish.save_checkpoint(folder, base, BASE, made.tokenizer, made.rows, trained.rows)
    found = tables(made.texts, work / "evaluation", trained, work / "tokenizer")
    publish.write_card(folder, facts(found))


def facts(found: dict[str, pd.DataFrame]) -> dict[str, object]:
    """What the card says in numbers."""
    every = found["evaluation"].query("model == 'trained' and kind == 'all'").set_index("language")
    tokens, bits = every["tokens_of_base"].astype(float), every["bits_per_character_of_base"].astype(float)
    shown = found["evaluation"][found["evaluation"]["kind"] == "all"]
    columns = [
        "model",
        "language",
        "bits_per_character",
        "bits_per_character_of_base",
        "tokens_per_word",
        "tokens_of_base",
    ]
    kinds = (
        found["evaluation"]
        .query("language == 'ru' and kind != 'all'")
        .pivot(index="kind", columns="model", values="bits_per_character")
    )
    sizes = (
        found["corpus"].drop(columns=["version"]).groupby(["kind", "licence"], as_index=False).sum(numeric_only=True)
    )
    last, recipe = found["training"].iloc[-1], found["recipe"].iloc[0].to_dict()
    return {
        "name": publish.NAME, "base": BASE, "gone": len(found["vocabulary"]), "rows": vocabulary.ROWS,
        "recipe": recipe, "beginning": BEGINNINGS[recipe["rows"]],
        "tokens": int(last["tokens"]), "minutes": round(float(last["seconds"]) / 60),
        "russian": 100 * (1 - bits["ru"]),
        "english": 100 * (bits["en"] - 1),
        "share": 100 * tokens["ru"],
        "english_share": round(100 * recipe["english"], 2),
        "summary": shown[columns].sort_values(["language", "bits_per_character"], ascending=[False, False]).round(3),
        "kinds": kinds[list(ENTRIES)].round(3).reset_index(),
        "corpus": sizes,
        "samples": found["samples"].query("model in ('base', 'trained')")[["prompt", "model", "continuation"]],
        "trials": trials_table(),
    }  # fmt: skip


def trials_table() -> pd.DataFrame:
    """What `python -m recipes.token_substitution trials` found, as the card shows it; empty before it has run."""
    if not publish.has_table("trials"):
        return pd.DataFrame()
    columns = ["trial", "trained_tokens", "replays", "rate", "device", "bits_per_character_ru", "bits_per_character_en"]
    table = publish.read_table("trials")[columns].round(3)
    return table.astype({"trained_tokens": "Int64", "replays": "Int64"}).astype(object).fillna("")
