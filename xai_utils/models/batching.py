"""How a batch goes through a model: how many positions one pass holds, and how many passes run at once.

A CPU is at full speed with `ENOUGH` positions, and computes one pass on each core: cores that share every operation
wait for the slowest after each one. A GPU needs more, so the number is measured on the model itself, from `LARGE` on.
Free memory bounds both. The sequences of a batch do not see one another, so all of this changes scores by rounding
alone.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from xai_utils.models.loading import LoadedModel

ENOUGH = 832  # positions: large enough for a CPU's matrix product, small in memory
LARGE = 4096  # positions, on a GPU: below, kernels leave part of it idle in their last round
LEAST_PER_CORE = 256  # positions: a pass of fewer is bound by reading the weights, which every core does for itself
SHARE = 0.25  # of the free memory for what a pass keeps: others need some, and torch as much again while it works
PROBE = 32  # positions of a measured sequence
PAYS = 0.95  # of the time for a position: what a GPU must fall to for a pass of twice the size
LONG = 0.25  # seconds of a pass, beside which what starting it costs is nothing

Found = TypeVar("Found")

_positions: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


# ---- positions in one pass


def positions(model: LoadedModel) -> int:
    """Positions in one pass: as many as the device is quick with, or as the free memory takes, which a warning says."""
    if model.model not in _positions:
        fitting = max(int(SHARE * free(model.device) / kept_per_position(model)), 1)
        if fitting < ENOUGH:
            warnings.warn(
                f"model '{model.label}': not enough memory: passes hold {fitting} positions, not {ENOUGH}; "
                "scores are unchanged",
                stacklevel=2,
            )
        enough = quick(lambda size: _seconds(model, size), fitting) if model.device.type == "cuda" else ENOUGH
        _positions[model.model] = min(fitting, enough)
    return _positions[model.model]


def quick(seconds: Callable[[int], float], most: int) -> int:
    """The size of pass from which a larger one gains little: doubled from LARGE while a position's time still falls and
    a pass is not `LONG`.

    >>> quick(lambda size: 0.01 + size / 10**6, 10**6)  # launching takes 0.01 s, a position a microsecond
    131072
    >>> quick(lambda size: 0.01 + size / 10**6, 10_000), quick(lambda size: 0.01 + size / 10**4, 10**6)
    (8192, 4096)
    """
    size = LARGE
    took = seconds(size) if 2 * size <= most else 0.0
    while 2 * size <= most and took < LONG:
        twice = seconds(2 * size)
        if twice > 2 * PAYS * took:
            break
        size, took = 2 * size, twice
    return size


def kept_per_position(model: LoadedModel) -> float:
    """Bytes that a pass keeps for its gradient, for each position, weights apart: measured on a short pass."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, it would close a circle that nobody can free, with all the weights in it

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = _forward(model, 1)[1]  # holds what is counted
    del output
    return sum(kept.values()) / PROBE


def free(device: torch.device) -> int:
    """Bytes that may still be taken on a device, torch's own idle ones with them."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + idle


@torch.enable_grad()
def _seconds(model: LoadedModel, size: int) -> float:
    """Seconds of one pass of so many positions with its gradient, the better of two; asked for in any grad mode."""
    wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    times = []
    for _ in range(2):
        wait()
        start = time.perf_counter()
        embeds, logits = _forward(model, size // PROBE)
        torch.autograd.grad(logits.sum(), embeds)
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.enable_grad()
def _forward(model: LoadedModel, rows: int) -> tuple[Tensor, Tensor]:
    embeds = model.embed(torch.zeros(rows, PROBE, dtype=torch.long, device=model.device)).requires_grad_()
    return embeds, model.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits


# ---- passes at once


def in_passes(function: Callable[[slice], Found], embeds: Tensor, batch_size: int) -> list[Found]:
    """`function` of the parts of a batch [batch, position, ...], given as slices, at most `batch_size` rows at a time.

    On a CPU several parts are computed at once, each on one core and in the caller's context.
    """
    threads = torch.get_num_threads()
    parts, cores = cut(len(embeds), embeds.shape[1], batch_size, threads if embeds.device.type == "cpu" else 1)
    edges = [len(embeds) * part // parts for part in range(parts + 1)]
    rows = [slice(*pair) for pair in itertools.pairwise(edges)]
    if cores == 1:
        return [function(part) for part in rows]
    tasks = [_pool(cores).submit(contextvars.copy_context().run, function, part) for part in rows]
    return [task.result() for task in tasks]


def cut(rows: int, positions: int, batch_size: int, cores: int) -> tuple[int, int]:
    """How many parts a batch of `rows` sequences is cut into, of at most `batch_size` each, and how many run at once.

    Parts have like sizes, one for every core in each round.

    >>> cut(50, 64, 16, 2), cut(9, 5, 16, 2), cut(50, 5, 16, 1)
    ((8, 2), (1, 1), (4, 1))
    """
    rounds = -(-rows // batch_size)
    cores = max(min(cores, rows * positions // rounds // LEAST_PER_CORE, rows // rounds), 1)
    return rounds * cores, cores


@functools.cache
def _pool(cores: int) -> ThreadPoolExecutor:
    """So many threads, each of which computes on one core."""
    pool, together, before = ThreadPoolExecutor(cores, "pass"), threading.Barrier(cores), torch.get_num_threads()

    def alone() -> None:
        torch.get_num_threads()  # a thread takes torch's last number when it first needs one: here, not later
        torch.set_num_threads(1)
        together.wait()

    for begun in [pool.submit(alone) for _ in range(cores)]:
        begun.result()
    torch.set_num_threads(before)  # what threads that are yet to come will take
    return pool
