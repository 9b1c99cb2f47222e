"""`python -m benchmarks.agree`: the same scores on a GPU and on the CPU, method by method, to 1e-3.

Random models of three architectures, and one of 28 layers, deep enough to multiply rounding errors. There a path from
zero is left out: it does not converge, on any device.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator

import numpy as np
import torch

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.methods import METHODS
from xai_utils.errors import UserError
from xai_utils.models import kernels
from xai_utils.models.loading import LoadedModel

AGREE, TEXT = 1e-3, "The capital of France is"
MODELS = ("llama", "gpt2", "gemma2", "llama-28")


def on_gpu(model: LoadedModel) -> LoadedModel:
    moved = copy.deepcopy(model.model).to("cuda")
    kernels.choose(moved)
    return dataclasses.replace(model, model=moved)


def differences(model: LoadedModel) -> Iterator[tuple[str, float]]:
    """Each method's largest difference between the devices, over its largest score."""
    other = on_gpu(model)
    case, target = tiny_case(model, TEXT)
    deep = model.model.config.num_hidden_layers > 2
    for name, method in METHODS.items():
        settings = dict(method.fixed)
        if deep and settings.get("baseline") == "zero":
            continue
        try:
            theirs = method.function(model, case, target, **settings)
        except UserError:  # the method is not for this architecture
            continue
        for _ in range(3):  # plain, recorded, replayed
            mine = method.function(dataclasses.replace(other), case, target, **settings)
        gap = np.nanmax(np.abs(mine.scores - theirs.scores)) / np.nanmax(np.abs(theirs.scores))
        yield name, float(gap)


def main() -> int:
    """Print each method's difference; the exit status says whether all agree."""
    worst = 0.0
    for architecture in MODELS:
        for name, gap in differences(tiny_loaded(architecture)):
            worst = max(worst, gap)
            print(f"{architecture} {name}: {gap:.1e}{'' if gap <= AGREE else '  TOO FAR'}")
    return int(not worst <= AGREE)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("error: no GPU is at hand; run this where torch.cuda.is_available()")
    sys.exit(main())
