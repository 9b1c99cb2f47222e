"""Independent passes side by side: one core for each, instead of all cores for each operation.

Cores that share every operation wait for the slowest after each one; passes that share nothing wait once, at the end.
Scores differ by rounding alone.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

LEAST = 256  # positions for each core: a pass of few is bound by reading the weights, which every core does for itself

Found = TypeVar("Found")


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


def cut(rows: int, positions: int, room: int, cores: int) -> tuple[int, int]:
    """How many parts a batch of `rows` sequences goes through a model in, and how many of these at once, where `room`
    of them fit at a time: parts of like size, one for every core in each round.

    >>> cut(50, 64, 16, 2), cut(9, 5, 16, 2), cut(50, 5, 16, 1)
    ((8, 2), (1, 1), (4, 1))
    """
    rounds = -(-rows // room)
    cores = max(min(cores, rows * positions // rounds // LEAST, rows // rounds), 1)
    return rounds * cores, cores


def in_passes(function: Callable[[slice], Found], embeds: Tensor, room: int) -> list[Found]:
    """`function` of the parts of a batch [batch, position, ...], told by their rows, at most `room` rows at a time.

    On a CPU several parts are computed at once, each on one core and in the caller's context.
    """
    threads = torch.get_num_threads()
    parts, cores = cut(len(embeds), embeds.shape[1], room, threads if embeds.device.type == "cpu" else 1)
    edges = [len(embeds) * part // parts for part in range(parts + 1)]
    rows = [slice(*pair) for pair in itertools.pairwise(edges)]
    if cores == 1:
        return [function(part) for part in rows]
    tasks = [_pool(cores).submit(contextvars.copy_context().run, function, part) for part in rows]
    return [task.result() for task in tasks]
