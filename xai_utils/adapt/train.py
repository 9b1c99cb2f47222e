"""The new rows trained, everything else frozen; killed at any point, it goes on from its last checkpoint to the same
result.

A row has two roles in a tied model: what goes in for a token, and what its probability is read with. Training has two
parts.

1. `fit_output`: the output role alone. For a frozen body it is a softmax regression on the hidden states of the text,
   which are computed once; an epoch over them costs a fiftieth of an epoch of real training. (The order, head first
   and then through the network, is that of Kumar et al. 2022, Fine-Tuning can Distort Pretrained Features; that
   lexical rows alone can carry a model into another language is de Vries and Nissim 2021.) Hidden states are long, so
   rows move little and keep their input role.
2. `Trainer.run`: both roles at once, by backpropagation through the frozen body; AdamW without decay; the rate
   climbs, stays, and falls to zero.

On a CPU several processes of one thread each share a step (`workers`): on a busy machine that is far faster than one
process of several threads, which wait for one another at every operation. Gradients are added in float32, so the
result depends on the number of workers only by rounding. Weights of the body are bfloat16 where that
is fast, the rows and the loss float32.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist
from transformers import PreTrainedModel

from xai_utils.adapters import embedding_matrix
from xai_utils.study import UserError


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train: AdamW's rate climbs for `warm_up` steps and falls to zero over the last `fall`
    of all steps."""

    steps: int = 880
    sequences: int = 2  # a step, over all workers
    length: int = 256
    rate: float = 2e-3
    warm_up: int = 40
    fall: float = 0.35
    seed: int = 0
    checkpoint_every: int = 25
    fit_sequences: int = 240
    fit_epochs: int = 4
    fit_rate: float = 1e-3


class Substituted(nn.Module):
    """A tied causal model whose rows `rows` are a parameter of their own, float32; all else is frozen.

    Logits are computed for the kept rows and the new rows apart, so that the frozen part needs no gradient of its own.
    """

    place: Tensor
    kept: Tensor

    def __init__(self, model: PreTrainedModel, rows: list[int], start: Float[Tensor, "rows hidden"]):
        super().__init__()
        if not model.config.tie_word_embeddings:
            raise UserError(
                "the base's output head is not tied to its embedding; expected a tied model; "
                "here one row serves a token in both roles"
            )
        self.body: nn.Module = model.requires_grad_(False).eval().model
        weight = embedding_matrix(model)
        kept = torch.ones(len(weight), dtype=torch.bool).index_fill(0, torch.tensor(rows), False)
        place = torch.empty(len(weight), dtype=torch.long)
        place[kept], place[~kept] = (
            torch.arange(len(weight) - len(rows)),
            torch.arange(len(weight) - len(rows), len(weight)),
        )
        self.register_buffer("place", place.to(weight.device))
        self.register_buffer("kept", weight[kept.to(weight.device)].clone())
        order = torch.tensor(rows).argsort()
        assert torch.equal(order, torch.arange(len(rows))), "rows must be in ascending order"
        self.rows = nn.Parameter(start.detach().float().to(weight.device, copy=True))

    def hidden(self, ids: Int[Tensor, "sequence position"]) -> Float[Tensor, "sequence position hidden"]:
        """The body's last hidden states."""
        slot = self.place[ids] - len(self.kept)
        new = F.embedding(slot.clamp(min=0), self.rows).to(self.kept.dtype)
        embeds = torch.where(
            (slot >= 0)[..., None], new, F.embedding(self.place[ids].clamp(max=len(self.kept) - 1), self.kept)
        )
        return self.body(inputs_embeds=embeds, use_cache=False).last_hidden_state

    def surprise(self, ids: Int[Tensor, "sequence position"]) -> Float[Tensor, "sequence position-1"]:
        """-log p of every token but the first, in nats, float32."""
        states = self.hidden(ids)[:, :-1]
        logits = torch.cat([states @ self.kept.T, states @ self.rows.to(states.dtype).T], -1)
        return F.cross_entropy(logits.flatten(0, 1).float(), self.place[ids[:, 1:]].flatten(), reduction="none").view(
            ids[:, 1:].shape
        )


@torch.no_grad()
def output_features(model: Substituted, ids: Int[Tensor, "sequence position"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For every position but the last, [sequence position]: hidden state, place of the next token among the rows (-1:
    a kept token), the kept rows' log-sum-exp, and the next token's logit where it is a kept one (else 0)."""
    found = []
    for sequence in ids.to(model.rows.device):
        state = model.hidden(sequence[None])[0, :-1]
        old = (state @ model.kept.T).float()
        place = model.place[sequence[1:]]
        slot = place - len(model.kept)
        own = old.gather(1, place.clamp(max=len(model.kept) - 1)[:, None])[:, 0]
        found.append((state, slot.clamp(min=-1), old.logsumexp(-1), torch.where(slot < 0, own, 0.0)))
    states, slots, sums, logits = (torch.stack(column) for column in zip(*found, strict=True))
    return states, slots, sums, logits


def output_surprise(
    rows: Tensor, state: Tensor, slot: Tensor, kept_sum: Tensor, kept_logit: Tensor
) -> Float[Tensor, " position"]:
    """-log p of the next token for fixed hidden states, as a function of the new rows alone."""
    new = state.float() @ rows.T
    own = torch.where(slot >= 0, new.gather(1, slot.clamp(min=0)[:, None])[:, 0], kept_logit)
    return torch.logaddexp(new.logsumexp(-1), kept_sum) - own


@dataclass
class Worker:
    """One of `workers` processes that share each step; rank 0 writes checkpoints and the log."""

    rank: int = 0
    workers: int = 1

    def add(self, tensor: Tensor) -> None:
        """Sum the tensor over all workers, in place."""
        if self.workers > 1:
            dist.all_reduce(tensor)

    def agree(self, tensor: Tensor) -> None:
        """Take rank 0's values, in place, when all workers have come this far."""
        if self.workers > 1:
            dist.broadcast(tensor, 0)

    def gather(self, tensor: Tensor) -> Tensor:
        """The workers' parts [part ...] put together, in the order that dealing them out one by one undoes."""
        if self.workers == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.workers)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)


def fit_output(
    model: Substituted, ids: Int[Tensor, "sequence position"], recipe: Recipe, worker: Worker
) -> list[float]:
    """Part 1: the rows moved, from where they are, so that fixed hidden states predict the text; mean loss of each
    epoch."""
    own = output_features(model, ids[worker.rank :: worker.workers])
    features = [worker.gather(feature).flatten(0, 1) for feature in own]
    generator = torch.Generator().manual_seed(recipe.seed)
    optimiser = torch.optim.Adam([model.rows], lr=recipe.fit_rate)
    total, done, losses = recipe.fit_epochs * -(-len(features[0]) // 512), 0, []
    for _ in range(recipe.fit_epochs):
        order, sums = torch.randperm(len(features[0]), generator=generator), 0.0
        for part in order.split(512):
            optimiser.param_groups[0]["lr"] = recipe.fit_rate * (1 - done / total)
            loss = output_surprise(model.rows, *(feature[part.to(feature.device)] for feature in features)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            sums, done = sums + loss.item() * len(part), done + 1
        losses.append(sums / len(order))
    worker.agree(model.rows.data)
    return losses


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of the step after `step` steps: up, level, and down to zero over the last `fall` of all steps.

    >>> [round(learning_rate(step, Recipe(steps=8, warm_up=2, fall=0.5, rate=1.0)), 2) for step in (0, 1, 4, 5, 7)]
    [0.5, 1.0, 1.0, 0.75, 0.25]
    """
    rise = (step + 1) / max(1, recipe.warm_up)
    down = (recipe.steps - step) / (recipe.fall * recipe.steps)
    return recipe.rate * min(rise, down, 1.0)


def same_so_far(one: Recipe, other: Recipe, step: int) -> bool:
    """Whether two recipes train alike up to `step`: equal, or of other lengths and neither has begun to fall."""
    alike = replace(one, steps=0) == replace(other, steps=0)
    level = all(step <= (1 - recipe.fall) * recipe.steps for recipe in (one, other))
    return one == other or alike and level


def batch(data: Int[Tensor, "window position"], step: int, recipe: Recipe) -> Int[Tensor, "sequence position"]:
    """The windows of one step, one after the other and from the first again: a function of the step alone."""
    first = step * recipe.sequences
    return data[[place % len(data) for place in range(first, first + recipe.sequences)]]


class Trainer:
    """Both parts of training, in a folder that holds one file, `rows.safetensors`: rows, AdamW's state, recipe and
    log."""

    def __init__(self, model: Substituted, recipe: Recipe, folder: Path, worker: Worker | None = None):
        self.model, self.recipe, self.folder = model, recipe, folder
        self.worker = worker or Worker()
        self.optimiser = torch.optim.AdamW([model.rows], lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.step, self.log = 0, list[dict[str, float]]()

    def run(self, data: Int[Tensor, "window position"], fit: Int[Tensor, "window position"]) -> None:
        """Train to the end, or go on to it: first `fit_output` on the windows `fit` (none: left out), then steps on
        `data`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        began, total, count = time.monotonic(), 0.0, 0
        if not self._resume():
            losses = fit_output(self.model, fit, self.recipe, self.worker) if len(fit) else [float("nan")]
            self._note(time.monotonic() - began, losses[-1])
        self.worker.agree(self.model.rows.data)  # nobody writes before everybody has read
        began = time.monotonic() - self.log[-1]["seconds"]
        while self.step < self.recipe.steps:
            total, count = total + self._advance(data), count + 1
            if self.step % self.recipe.checkpoint_every == 0 or self.step == self.recipe.steps:
                self._note(time.monotonic() - began, total / count)
                total, count = 0.0, 0

    def _note(self, seconds: float, loss: float) -> None:
        tokens = self.step * self.recipe.sequences * self.recipe.length
        self.log.append({"step": self.step, "tokens": tokens, "seconds": round(seconds, 1), "loss": loss})
        if self.worker.rank == 0:
            self._checkpoint()
            print(
                "step {step} of {}: {tokens} tokens, {seconds:.0f} s, {loss:.3f} nats a token".format(
                    self.recipe.steps, **self.log[-1]
                ),
                flush=True,
            )

    def _advance(self, data: Tensor) -> float:
        ids = batch(data, self.step, self.recipe)
        own = ids[self.worker.rank :: self.worker.workers].to(self.model.rows.device)
        tokens = ids[:, 1:].numel()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe)
        loss = self.model.surprise(own).sum() / tokens
        self.optimiser.zero_grad()
        loss.backward()
        assert self.model.rows.grad is not None
        self.worker.add(self.model.rows.grad)
        nn.utils.clip_grad_norm_([self.model.rows], 1.0)
        self.optimiser.step()
        value = loss.detach().clone()
        self.worker.add(value)
        self.step += 1
        return float(value)

    def _checkpoint(self) -> None:
        """All that is needed to go on, in one file that appears whole."""
        state = self.optimiser.state.get(self.model.rows, {})
        tensors = {
            "rows": self.model.rows.detach(),
            **{name: value for name, value in state.items() if isinstance(value, Tensor)},
        }
        note = {"step": str(self.step), "recipe": json.dumps(asdict(self.recipe)), "log": json.dumps(self.log)}
        partial = self.folder / ".rows.safetensors"
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, note)
        os.replace(partial, self.folder / "rows.safetensors")

    def _resume(self) -> bool:
        file = self.folder / "rows.safetensors"
        if not file.exists():
            return False
        with safe_open(file, "pt") as opened:
            note = opened.metadata()
        if not same_so_far(Recipe(**json.loads(note["recipe"])), self.recipe, int(note["step"])):
            raise UserError(
                f"{file} was begun with other settings; expected the same recipe; delete {self.folder} to begin anew"
            )
        tensors = load_file(file, device=str(self.model.rows.device))
        self.step, self.log = int(note["step"]), json.loads(note["log"])
        with torch.no_grad():
            self.model.rows.copy_(tensors.pop("rows"))
        if tensors:
            tensors["step"] = tensors["step"].cpu()
            self.optimiser.state[self.model.rows] = tensors
        return True


def finished_rows(folder: Path) -> tuple[Float[Tensor, "rows hidden"], list[dict[str, float]]]:
    """The rows of the last checkpoint, float32, and the log."""
    with safe_open(folder / "rows.safetensors", "pt") as opened:
        return opened.get_tensor("rows"), json.loads(opened.metadata()["log"])
