"""A short training of a tiny model in a process that can be killed."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed as dist

from recipes.token_substitution.substituted import Substituted
from recipes.token_substitution.train import Recipe, Trainer, Worker
from tests.tiny import tiny_model

ROWS = list(range(300, 340))
RECIPE = Recipe(
    steps=40, sequences=4, length=16, rate=1e-2, warm_up=4, checkpoint_every=3, replayed=32, remembered=5, seed=5
)


def data(seed: int, number: int) -> torch.Tensor:
    return torch.randint(0, 512, (number, RECIPE.length), generator=torch.Generator().manual_seed(seed))


def trainer(folder: Path, worker: Worker | None = None, recipe: Recipe = RECIPE) -> Trainer:
    model = tiny_model("llama-tied")
    start = model.get_input_embeddings().weight[ROWS].detach() + 0.1
    return Trainer(Substituted(model, ROWS, start), recipe, folder, worker)


def work(rank: int, workers: int, port: int, folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    trainer(folder, Worker(rank, workers), replace(RECIPE, steps=steps)).run(data(1, 100))
    if workers > 1:
        dist.destroy_process_group()


def alone(folder: Path) -> None:
    """A training without other workers."""
    work(0, 1, 0, folder, RECIPE.steps)
