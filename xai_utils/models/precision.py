"""`dtype: tf32`: float32 weights whose products a GPU computes with ten bits of mantissa.

Integrated gradients take about half the time of float32 so, their scores move by 1e-3 of the largest, and certificates
to 1 % still hold (benchmarks/README.md). It applies where F is computed (attribution/target.py), and on a GPU alone;
attention weights and one-pass relevance stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

TF32 = "tf32"


def weights_dtype(precision: str) -> torch.dtype:
    """The dtype of the weights in a precision of a study's file."""
    return torch.float32 if precision == TF32 else getattr(torch, precision)


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Products of float32 matrices in this precision inside, as before outside."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == TF32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
