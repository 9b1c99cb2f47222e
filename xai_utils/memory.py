"""Memory that is free in this process and still counts as its own."""

from __future__ import annotations

import contextlib
import ctypes
import time

EVERY = 20  # seconds of work between two returns: what comes back later is paged in anew

_last = 0.0


def give_back(every: float = 0) -> None:
    """Give what is free back to the system, unless that was done less than `every` seconds ago.

    The C library keeps it for itself otherwise, in pieces that the next batch does not fit into: a study of short and
    long texts came to hold a gigabyte more than its largest batch takes. Does nothing where that library is not glibc.
    """
    global _last
    if time.monotonic() - _last >= every:
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
        _last = time.monotonic()
