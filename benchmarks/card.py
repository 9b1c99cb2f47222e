"""The same works on a GPU, on models by their shapes, all peers in one process and the limit measured in it.

A process of its own for each measurement, as on a CPU, would time the start of CUDA. Each peer is warmed up, repeats
are interleaved, and the clock stops when the GPU has done. Peers get the attention that transformers chooses.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import TO_GOAL
from benchmarks.one import case_of
from benchmarks.shapes import shaped
from benchmarks.works import WORKS, Found, one_pass
from xai_utils.attribution.target import Target, make_target
from xai_utils.models.loading import LoadedModel
from xai_utils.models.watch import Watch
from xai_utils.text.cases import Case

FIFTY, MATRIX = "integrated gradients, 50 steps", {"cuda": 8192, "cpu": 512}
LATER, LONG = ("inseq", "one by one", "head by head"), 20.0  # peers and seconds that are not worth a GPU's time


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def rate(device: str, dtype: str) -> float:
    """Floating-point operations a second of a large matrix product, in the median of five."""
    size = MATRIX[device]
    one, other = torch.randn(2, size, size, dtype=getattr(torch, dtype), device=device).unbind()
    seconds = [timed(lambda: one @ other, device)[0] for _ in range(6)][1:]
    return 2 * size**3 / statistics.median(seconds)


def timed(function: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds until the device has done, and what came out."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    found = function()
    wait()
    return time.perf_counter() - start, found


@contextmanager
def as_anybody(model: LoadedModel) -> Iterator[None]:
    """The model as transformers loads it."""
    before = model.model.config._attn_implementation
    model.model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.model.set_attn_implementation(before)


def run(peer: str, work: str, model: LoadedModel, case: Case, target: Target) -> tuple[float, Found]:
    """One run of a peer: seconds and what it found."""
    fresh = dataclasses.replace(model)  # values of prompts are remembered by it

    def call() -> Found:
        return WORKS[work][peer](fresh, case, target)

    if peer == "ours":
        return timed(call, model.device.type)
    with as_anybody(model):
        return timed(call, model.device.type)


def operations(work: str, model: LoadedModel, case: Case, target: Target) -> float:
    """Floating-point operations that ours makes; watched, so that nothing is replayed behind the counter's back."""
    with FlopCounterMode(display=False) as counter, Watch([]):
        WORKS[work]["ours"](dataclasses.replace(model), case, target)
    return counter.get_total_flops()


def rows(work: str, model: LoadedModel, tokens: int, limit: float, repeats: int) -> list[dict[str, Any]]:
    """The lines of one work at one length, peers that take too long or fail left out or told."""
    case = case_of(model, tokens)
    target = make_target(model, case)
    one_pass(model, case, target)
    device = model.device.type
    keys = {"device": name_of(device), "model": model.label, "work": work, "tokens": tokens, "dtype": model.entry.dtype}
    found: dict[str, list[tuple[float, Found]]] = {}
    failed: dict[str, str] = {}
    for peer in [name for name in WORKS[work] if name not in LATER]:
        try:
            warm = [run(peer, work, model, case, target) for _ in range(3 if peer == "ours" else 1)]
            found[peer] = [] if warm[-1][0] < LONG else warm[-1:]
        except Exception as error:  # a peer that fails is a line of the table
            failed[peer] = f"{type(error).__name__}: {error}".splitlines()[0]
    for _ in range(repeats):
        for peer, runs in found.items():
            if not runs or runs[-1][0] < LONG:
                runs.append(run(peer, work, model, case, target))
    count = operations(work, model, case, target)
    mine = statistics.median(seconds for seconds, _ in found["ours"])
    lines = []
    for peer, runs in found.items():
        seconds = statistics.median(seconds for seconds, _ in runs)
        lines.append(
            keys
            | {"peer": peer, "seconds": seconds, "ratio": mine / seconds}
            | {"share_of_limit": count / seconds / limit, "error": difference(work, peer, runs[0][1], found)}
        )
    return lines + [keys | {"peer": peer, "error": why} for peer, why in failed.items()]


def difference(work: str, peer: str, mine: Found, found: dict[str, list[tuple[float, Found]]]) -> float | None:
    """The completeness error; else how far a peer's scores lie from ours, where they must be the same."""
    if work in (FIFTY, TO_GOAL) or peer == "ours" or work == "Shapley sampling":
        return mine.error
    ours = found["ours"][0][1].scores
    return max(abs(one - other) for one, other in zip(mine.scores, ours, strict=True))


def measure(
    device: str, shapes: list[str], works: list[str], lengths: list[int], dtype: str, repeats: int
) -> Iterator[list[dict[str, Any]]]:
    """Lines of the table, one work and length at a time."""
    for shape in shapes:
        model = shaped(shape, device, dtype)
        limit = rate(device, dtype)
        print(f"{name_of(device)}: {shape}, {dtype}, limit {limit / 1e12:.1f} TFLOP/s", file=sys.stderr, flush=True)
        for work in works:
            for tokens in lengths:
                lines = rows(work, model, tokens, limit, repeats)
                print(*map(told, lines), sep="\n", file=sys.stderr, flush=True)
                yield lines


def told(line: dict[str, Any]) -> str:
    """One line of the table as text."""
    keys = f"{line['work']}, {line['tokens']} tokens, {line['peer']}: "
    if "seconds" not in line:
        return keys + line["error"]
    return keys + f"{line['seconds']:.4f} s, ratio {line['ratio']:.2f}, {line['share_of_limit']:.0%} of the limit"
