"""A short training of a tiny adapter in a process that can be killed."""

from pathlib import Path

import torch

from recipes.lora.train import Recipe, Trainer, adapted
from tests.tiny import tiny_model

RECIPE = Recipe(
    rank=2, alpha=4, steps=40, sequences=4, held=2, together=3, length=16, rate=1e-2, warm_up=4, checkpoint_every=3
)


def windows(seed: int, number: int) -> torch.Tensor:
    return torch.randint(0, 512, (number, RECIPE.length), generator=torch.Generator().manual_seed(seed))


def trainer(folder: Path, recipe: Recipe = RECIPE) -> Trainer:
    return Trainer(adapted(tiny_model("llama-tied").requires_grad_(False), recipe), recipe, folder)


def run(folder: Path, recipe: Recipe = RECIPE) -> Trainer:
    made = trainer(folder, recipe)
    made.run(windows(1, recipe.steps * recipe.sequences), windows(2, recipe.steps * recipe.held))
    return made


def alone(folder: Path) -> None:
    """A training on one core, so that nothing depends on how many there are."""
    torch.set_num_threads(1)
    run(folder)
