"""Processes that are killed while they work: begun in no time, from one that has imported what they need."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def started(work: Callable[..., Any], *given: Any) -> BaseProcess:
    """A process that calls a function of a module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    process = context.Process(target=work, args=given, daemon=True)
    process.start()
    return process


def finished(work: Callable[..., Any], *given: Any) -> None:
    process = started(work, *given)
    process.join()
    assert process.exitcode == 0


def killed(work: Callable[..., Any], *given: Any, file: Path, times: int) -> int:
    """How often, up to `times`, it was killed just after it had written `file` anew, before it came to its end."""
    random_ = random.Random(0)
    for kills in range(times):
        process, before = started(work, *given), file.stat().st_mtime_ns if file.exists() else 0
        while process.is_alive() and (not file.exists() or file.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(random_.uniform(0, 0.02))
        if not process.is_alive():
            return kills
        process.kill()
        process.join()
    return times
