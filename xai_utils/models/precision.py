"""`dtype: tf32`: float32 weights whose products a GPU computes with ten bits of mantissa.

Integrated gradients take about half the time of float32 so, their scores move by 1e-3 of the largest, and certificates
to 1 % still hold (benchmarks/README.md). It applies where F is computed (attribution/target.py), and on a GPU alone;
attention weights and one-pass relevance stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xai_utils.models.entry import ModelEntry

TF32 = "tf32"


def weights_of(entry: ModelEntry) -> torch.dtype:
    """The dtype that an entry's weights are loaded in."""
    return torch.float32 if entry.dtype == TF32 else getattr(torch, entry.dtype)


@contextmanager
def products(entry: ModelEntry) -> Iterator[None]:
    """Products of float32 matrices in the entry's precision inside, as before outside."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = entry.dtype == TF32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
