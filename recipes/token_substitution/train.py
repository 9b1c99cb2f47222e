"""The new rows trained, everything else frozen; killed at any point, it goes on from its last checkpoint to the same
result: exactly on a CPU, up to rounding on a GPU.

A row has two roles in a tied model: what goes in for a token, and what its probability is read with. A step trains
both, by backpropagation through the frozen body. What the body gave is then used again: for fixed hidden states the
output role is a softmax regression, which costs a twentieth of a pass through the body, so a few more updates of it
follow each step, on positions drawn from the states of the last steps (experience replay, Lin 1992; the rows move
little in the meantime). That lexical rows alone can carry a model into another language is de Vries and Nissim 2021.

The optimiser is SOAP (Vyas et al. 2024): Adam in the eigenbasis of the gradients' second moment, here over the hidden
size alone. Hidden states of a language model vary in few directions far more than in the others, which Adam, entry by
entry, does not see. The rate climbs, stays, and falls to zero.

On a CPU several processes of one thread each share a step (`workers`): on a busy machine that is far faster than one
process of several threads, which wait for one another at every operation. Gradients are added in float32, so
their number matters only by rounding; but in directions where hidden states hardly vary, rounding decides the
optimiser's basis, so rows repeat exactly for an equal number of workers alone. Gradients are clipped at a norm of 1.
Weights of the body are bfloat16 where that is fast, the rows and the loss float32.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from pytorch_optimizer import SOAP
from torch import Tensor, nn
from torch import distributed as dist

from recipes.token_substitution.substituted import Features, Substituted, output_surprise
from recipes.training import check_same_settings, machine
from xai_utils.errors import UserError

TOGETHER = 16  # sequences that go through the body at once: what bounds the memory of a step


@dataclass(frozen=True)
class Recipe:
    """What to train from and on, how long and how fast.

    `rows` names the beginning (`pipeline.start_rows`), `english` the share of English windows. The rate climbs for
    `warm_up` steps and falls to zero over the last `fall` of all steps; `replays` more updates of the output role
    follow each step, each on `replayed` positions of the last `remembered` steps.
    """

    rows: str = "mean"
    english: float = 0.0625
    steps: int = 1100
    sequences: int = 4  # a step, over all workers
    length: int = 256
    rate: float = 2e-3
    warm_up: int = 20
    fall: float = 0.35
    replays: int = 3
    replayed: int = 1024
    remembered: int = 50
    seed: int = 0
    checkpoint_every: int = 10


@dataclass
class Worker:
    """One of `workers` processes that share each step; rank 0 writes checkpoints and the log."""

    rank: int = 0
    workers: int = 1

    def add(self, tensor: Tensor) -> None:
        """Sum the tensor over all workers, in place."""
        if self.workers > 1:
            dist.all_reduce(tensor)

    def meet(self) -> None:
        """Wait until all workers have come this far."""
        if self.workers > 1:
            dist.barrier()

    def gather(self, tensor: Tensor) -> Tensor:
        """The workers' parts [part ...] put together, in the order that dealing them out one by one undoes."""
        if self.workers == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.workers)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)


class Memory:
    """The features of the last steps, this worker's share of them; a ring of arrays [sequence, step, position ...]."""

    def __init__(self, recipe: Recipe, worker: Worker):
        self.recipe, self.worker = recipe, worker
        self.kept: Features | None = None

    def keep(self, step: int, new: Features) -> None:
        """Remember a step's features [sequence position ...] in place of those that are `remembered` steps old."""
        if self.kept is None:
            shape = (self.recipe.remembered,)
            self.kept = Features(*(part.new_zeros(part.shape[:1] + shape + part.shape[1:]) for part in new))
        for whole, part in zip(self.kept, new, strict=True):
            whole[:, step % self.recipe.remembered] = part.detach()

    def drawn(self, step: int) -> Iterator[Features]:
        """For each replay after `step` steps, those of the positions drawn that this worker holds; a function of the
        step."""
        assert self.kept is not None
        sequences, kept, positions = self.kept.slot.shape
        generator = torch.Generator().manual_seed(self.recipe.seed * 2**32 + step)
        sizes = sequences * self.worker.workers, min(step + 1, kept), positions
        for _ in range(self.recipe.replays):
            sequence, when, position = (
                torch.randint(size, (self.recipe.replayed,), generator=generator) for size in sizes
            )
            own = sequence % self.worker.workers == self.worker.rank
            places = sequence[own] // self.worker.workers, when[own], position[own]
            yield Features(*(part[places] for part in self.kept))


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of the step after `step` steps: up, level, and down to zero over the last `fall` of all steps.

    >>> [round(learning_rate(step, Recipe(steps=8, warm_up=2, fall=0.5, rate=1.0)), 2) for step in (0, 1, 4, 5, 7)]
    [0.5, 1.0, 1.0, 0.75, 0.25]
    """
    rise = (step + 1) / max(1, recipe.warm_up)
    down = (recipe.steps - step) / (recipe.fall * recipe.steps)
    return recipe.rate * min(rise, down, 1.0)


def batch(data: Int[Tensor, "window position"], step: int, recipe: Recipe) -> Int[Tensor, "sequence position"]:
    """The windows of one step, one after the other and from the first again: a function of the step alone."""
    first = step * recipe.sequences
    return data[[place % len(data) for place in range(first, first + recipe.sequences)]]


class Trainer:
    """Training in a folder that holds one file, `rows.pt`: rows, the optimiser's state, memory, recipe and log."""

    def __init__(self, model: Substituted, recipe: Recipe, folder: Path, worker: Worker | None = None):
        self.model, self.recipe, self.folder = model, recipe, folder
        self.worker = worker or Worker()
        assert recipe.sequences % self.worker.workers == 0, "the workers share a step's sequences evenly"
        self.optimiser = SOAP(
            [model.rows],
            betas=(0.9, 0.99),
            weight_decay=0.0,
            max_precondition_dim=model.rows.shape[1],
        )
        self.memory = Memory(recipe, self.worker)
        self.step, self.log, self.data = 0, list[dict[str, float]](), ""

    def run(self, data: Int[Tensor, "window position"]) -> None:
        """Train on `data` to the end, or go on to it.

        Raises UserError for tokens that the model has no place for, and for a folder begun with other settings.
        """
        strange = self.model.without_place(data)
        if strange:
            raise UserError(
                f"the text to train on holds {len(strange)} tokens that share no probability ({strange[0]} the first); "
                "expected new ones and those that the model was given as `among`"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = hashlib.sha256(data.numpy().tobytes()).hexdigest()
        self._resume()
        self.worker.meet()  # nobody writes before everybody has read
        began = time.monotonic() - (self.log[-1]["seconds"] if self.log else 0.0)
        total, count = 0.0, 0
        while self.step < self.recipe.steps:
            total, count = total + self._advance(data), count + 1
            if self.step % self.recipe.checkpoint_every == 0 or self.step == self.recipe.steps:
                self._note(time.monotonic() - began, total / count)
                total, count = 0.0, 0

    def _note(self, seconds: float, loss: float) -> None:
        tokens = self.step * self.recipe.sequences * self.recipe.length
        self.log.append({"step": self.step, "tokens": tokens, "seconds": round(seconds, 1), "loss": loss})
        self._checkpoint()
        if self.worker.rank == 0:
            print(
                "step {step} of {}: {tokens} tokens, {seconds:.0f} s, {loss:.3f} nats a token".format(
                    self.recipe.steps, **self.log[-1]
                ),
                flush=True,
            )

    def _advance(self, data: Tensor) -> float:
        """One step on both roles and its replays; the step's mean loss before it, in nats a token."""
        ids = batch(data, self.step, self.recipe)
        own = ids[self.worker.rank :: self.worker.workers].to(self.model.rows.device)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe)
        seen = list[Features]()

        def parts() -> Iterator[Features]:
            for part in own.split(TOGETHER):
                features = self.model.features(part)
                yield features
                seen.append(Features(*(feature.detach() for feature in features)))

        loss = self._update(parts(), ids[:, 1:].numel())
        if self.recipe.replays:
            self.memory.keep(self.step, Features(*map(torch.cat, zip(*seen, strict=True))))
            for positions in self.memory.drawn(self.step):
                self._update([positions], self.recipe.replayed)
        self.step += 1
        return loss

    def _update(self, parts: Iterable[Features], count: int) -> float:
        """The rows moved against the mean surprise of `count` positions over all parts and workers, which it gives."""
        self.optimiser.zero_grad()
        total = torch.zeros((), device=self.model.rows.device)
        for features in parts:
            loss = output_surprise(self.model.rows, features).sum() / count
            loss.backward()
            total += loss.detach()
        assert self.model.rows.grad is not None
        self.worker.add(self.model.rows.grad)
        nn.utils.clip_grad_norm_([self.model.rows], 1.0)
        self.optimiser.step()
        self.worker.add(total)
        return float(total)

    def _checkpoint(self) -> None:
        """All that is needed to go on, in one file that appears whole."""
        memory = [self.worker.gather(part).cpu() for part in self.memory.kept or ()]
        if self.worker.rank:
            return
        state = {
            "rows": self.model.rows.detach().cpu(),
            "optimiser": self.optimiser.state_dict(),
            "memory": memory,
            "step": self.step,
            "recipe": asdict(self.recipe),
            "machine": self._machine(),
            "data": self.data,
            "log": self.log,
        }
        partial = self.folder / ".rows.pt"
        torch.save(state, partial)
        os.replace(partial, self.folder / "rows.pt")

    def _machine(self) -> dict[str, str]:
        return machine(self.model.rows.device, self.worker.workers, self.model.kept.dtype)

    def _resume(self) -> None:
        file = self.folder / "rows.pt"
        if not file.exists():
            return
        state = read_checkpoint(self.folder)
        begun = state["recipe"] | {"arithmetic": state["machine"]["dtype"], "text": state["data"]}
        here = asdict(self.recipe) | {"arithmetic": self._machine()["dtype"], "text": self.data}
        check_same_settings(file, begun, here)
        self.step, self.log = state["step"], state["log"]
        with torch.no_grad():
            self.model.rows.copy_(state["rows"])
        self.optimiser.load_state_dict(state["optimiser"])
        if state["memory"]:
            device, own = self.model.rows.device, slice(self.worker.rank, None, self.worker.workers)
            self.memory.kept = Features(*(part[own].to(device, copy=True) for part in state["memory"]))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What `Trainer` wrote last."""
    return torch.load(folder / "rows.pt", map_location="cpu", weights_only=True)


class Finished(NamedTuple):
    """What a training left: the rows [rows hidden], float32, its log, and how and on what it was done."""

    rows: Tensor
    log: list[dict[str, float]]
    settings: dict[str, float | str]


def finished(folder: Path) -> Finished:
    """The last checkpoint of a training."""
    state = read_checkpoint(folder)
    return Finished(state["rows"], state["log"], state["recipe"] | state["machine"])
