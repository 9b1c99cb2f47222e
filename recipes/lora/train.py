"""The adapter trained, the base frozen; killed at any point, it goes on from its last checkpoint to the same result:
exactly on a CPU, up to rounding on a GPU.

The loss of a step is the mean surprise of its help windows, on all tokens, and `hold` times the mean divergence
KL(base || adapted) of its other windows: there the model learns nothing but to stay as it is. The base is the same
model with its adapter switched off. AdamW; the rate climbs and then falls to zero. Weights of the base are bfloat16
where that is fast, those of the adapter and the losses float32.
"""

import hashlib
import json
import os
import time
import warnings
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from recipes.training import check_same_settings, machine
from xai_utils.errors import UserError

FILE = "adapter.safetensors"
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """The adapter's size, how long and how fast it is trained, and how hard it is held to its base elsewhere.

    `sequences` windows of help and `held` ones of other text, at least one, make a step, `together` of both at a time,
    which bounds the memory. The rate climbs for `warm_up` steps and then falls to zero.
    """

    rank: int = 8
    alpha: int = 16
    steps: int = 320
    sequences: int = 4
    held: int = 1
    hold: float = 1.0
    length: int = 256
    together: int = 5
    rate: float = 2e-3
    warm_up: int = 20
    seed: int = 0
    checkpoint_every: int = 10


def configuration(recipe: Recipe) -> LoraConfig:
    """PEFT's own: all linear layers of the body."""
    return LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, target_modules=list(LAYERS), task_type="CAUSAL_LM"
    )


def adapted(base: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """`base` with a fresh adapter, which changes nothing yet; PEFT wraps it in place."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft asks transformers by a name that it has since changed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(recipe.seed)
        return get_peft_model(base, configuration(recipe))


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of the step after `step` steps: up for `warm_up`, then down to zero at the end.

    >>> [round(learning_rate(step, Recipe(steps=6, warm_up=2, rate=1.0)), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    rise, down = (step + 1) / max(1, recipe.warm_up), (recipe.steps - step) / max(1, recipe.steps - recipe.warm_up)
    return recipe.rate * min(rise, down, 1.0)


def surprise(
    logits: Float[Tensor, "sequence position vocabulary"], ids: Int[Tensor, "sequence position"]
) -> Float[Tensor, ""]:
    """The sum of -log p of every token but the first of each sequence."""
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")


def divergence(
    base: Float[Tensor, "sequence position vocabulary"], logits: Float[Tensor, "sequence position vocabulary"]
) -> Float[Tensor, ""]:
    """The sum of KL(base || adapted) over the same predictions.

    >>> both = torch.tensor([0.5, 0.5]).log()[None, None], torch.tensor([0.25, 0.75]).log()[None, None]
    >>> round(float(divergence(*(torch.cat([logits, logits], 1) for logits in both))), 4)  # (ln 2 + ln 2/3) / 2
    0.1438
    """
    other, own = (side[:, :-1].float().log_softmax(-1) for side in (base, logits))
    return kl_div(own, other, log_target=True, reduction="sum")


class Trainer:
    """Training in a folder that holds one file: the adapter's weights, until the end AdamW's two moments, and as
    metadata the recipe and the log."""

    def __init__(self, model: PeftModel, recipe: Recipe, folder: Path):
        self.model, self.recipe, self.folder = model, recipe, folder
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.optimiser = torch.optim.AdamW(self.weights.values(), betas=(0.9, 0.99), weight_decay=0.0)
        self.step, self.log, self.data = 0, list[dict[str, float]](), ""

    def run(self, text: Int[Tensor, "window position"], other: Int[Tensor, "window position"]) -> None:
        """Train on help `text` and hold on `other` text to the end, or go on to it.

        Raises UserError for a folder begun with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = hashlib.sha256(text.numpy().tobytes() + other.numpy().tobytes()).hexdigest()
        self._resume()
        began = time.monotonic() - (self.log[-1]["seconds"] if self.log else 0.0)
        losses = list[Tensor]()
        while self.step < self.recipe.steps:
            losses.append(self._advance(*(self._batch(windows) for windows in (text, other))))
            if self.step % self.recipe.checkpoint_every == 0 or self.step == self.recipe.steps:
                self._note(time.monotonic() - began, *torch.stack(losses).mean(0).tolist())
                losses = []

    def _batch(self, windows: Tensor) -> Tensor:
        """This step's share of the windows, a function of the step alone."""
        share = len(windows) // self.recipe.steps
        return windows[self.step * share : (self.step + 1) * share].to(self.model.device)

    def _advance(self, text: Tensor, other: Tensor) -> Float[Tensor, "2"]:
        """One step; its mean surprise on help and its mean divergence elsewhere before it, in nats a token."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe)
        self.optimiser.zero_grad()
        counts = torch.tensor([text[:, 1:].numel(), other[:, 1:].numel()], device=text.device)
        weights, total = torch.tensor([1.0, self.recipe.hold], device=text.device), torch.zeros(2, device=text.device)
        parts = -(-(len(text) + len(other)) // self.recipe.together)
        for some, others in zip(text.tensor_split(parts), other.tensor_split(parts), strict=True):
            losses = self._losses(some, others) / counts
            (losses @ weights).backward()
            total += losses.detach()
        nn.utils.clip_grad_norm_(list(self.weights.values()), 1.0)
        self.optimiser.step()
        self.step += 1
        return total

    def _losses(self, text: Tensor, other: Tensor) -> Float[Tensor, "2"]:
        with self._arithmetic():
            logits = self.model(torch.cat([text, other]), use_cache=False).logits
            with torch.no_grad(), self.model.disable_adapter():
                base = self.model(other, use_cache=False).logits if len(other) else logits[len(text) :]
        return torch.stack([surprise(logits[: len(text)], text), divergence(base, logits[len(text) :])])

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """bfloat16 products where the base is bfloat16."""
        half = self.model.dtype == torch.bfloat16
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=half)

    def _note(self, seconds: float, loss: float, apart: float) -> None:
        tokens = self.step * (self.recipe.sequences + self.recipe.held) * self.recipe.length
        row = {"step": self.step, "tokens": tokens, "seconds": round(seconds, 1), "loss": loss, "divergence": apart}
        self.log.append(row)
        self._checkpoint()
        told = (
            "step {step} of {}: {tokens} tokens, {seconds:.0f} s, {loss:.3f} nats a token, divergence {divergence:.4f}"
        )
        print(told.format(self.recipe.steps, **row), flush=True)

    def _checkpoint(self) -> None:
        """All that is needed to go on, and at the end the adapter alone, in one file that appears whole."""
        tensors = {f"weight {name}": weight.detach() for name, weight in self.weights.items()}
        if self.step < self.recipe.steps:
            for name, weight in self.weights.items():
                state = self.optimiser.state[weight]
                tensors |= {f"first {name}": state["exp_avg"], f"second {name}": state["exp_avg_sq"]}
        told = {"step": self.step, "log": self.log, "recipe": asdict(self.recipe), "machine": self._machine()}
        partial = self.folder / f".{FILE}"
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            partial,
            {name: json.dumps(value) for name, value in (told | {"data": self.data}).items()},
        )
        os.replace(partial, self.folder / FILE)

    def _machine(self) -> dict[str, str]:
        return machine(self.model.device, torch.get_num_threads(), self.model.dtype)

    def _resume(self) -> None:
        if not (self.folder / FILE).exists():
            return
        tensors, told = read_checkpoint(self.folder)
        begun = told["recipe"] | {"arithmetic": told["machine"]["dtype"], "text": told["data"]}
        here = asdict(self.recipe) | {"arithmetic": self._machine()["dtype"], "text": self.data}
        check_same_settings(self.folder / FILE, begun, here)
        self.step, self.log = told["step"], told["log"]
        for name, weight in self.weights.items():
            with torch.no_grad():
                weight.copy_(tensors[f"weight {name}"])
            if self.step < self.recipe.steps:
                moments = (tensors[f"{kind} {name}"].to(weight.device) for kind in ("first", "second"))
                self.optimiser.state[weight] = dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True)) | {
                    "step": torch.tensor(float(self.step))
                }


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `Trainer` wrote last: tensors by kind and name, and what is told about them."""
    with safe_open(folder / FILE, "pt") as file:
        told = {name: json.loads(value) for name, value in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, told  # noqa: SIM118  # no mapping


class Finished(NamedTuple):
    """What a training left: the adapter's weights by PEFT's names, float32, its log, its recipe, and on what it was
    done."""

    weights: dict[str, Tensor]
    log: list[dict[str, float]]
    recipe: Recipe
    machine: dict[str, str]


def finished(folder: Path) -> Finished:
    """A training that came to its end. Raises UserError for one that did not."""
    tensors, told = read_checkpoint(folder) if (folder / FILE).exists() else ({}, {"step": 0, "recipe": {}})
    recipe = Recipe(**told["recipe"])
    if told["step"] < recipe.steps:
        raise UserError(f"{folder} holds no finished training; expected one of {recipe.steps} steps; train it first")
    weights = {name.removeprefix("weight ").replace(".default", ""): tensor for name, tensor in tensors.items()}
    return Finished(weights, told["log"], recipe, told["machine"])
