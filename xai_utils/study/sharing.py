"""Processes that fill one cache share the work: each claims a result before it computes it.

A claim is a file lock beside the result, which the system drops when its process dies. The lock's file goes once the
result is there: whoever still waits for it then finds the result.
"""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from xai_utils.files import refusals

SHARED = "XAI_SHARED"  # names a file that holds how many processes are at work on one run, now


def cores_of_each(processes: int) -> int:
    """How many cores each of so many processes computes on."""
    return max((os.cpu_count() or 1) // processes, 1)


class Claims:
    """The results that this process is computing."""

    def __init__(self) -> None:
        self._held: dict[Path, FileLock] = {}

    def take(self, result: Path, wait: bool = False) -> bool:
        """Claim a result; false where it is there already, or where another process is at it and we do not `wait`.

        Raises UserError when the folder cannot be written.
        """
        if result.exists():
            return False
        lock = FileLock(result.with_suffix(".lock"))
        with refusals(result):
            result.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:  # which is an OSError
                return False
        self._held[result] = lock
        if result.exists():  # computed between the two looks
            self.drop(result)
            return False
        return True

    def drop(self, result: Path) -> None:
        """Give a claim back."""
        lock = self._held.pop(result)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()

    def drop_all(self) -> None:
        for result in list(self._held):
            self.drop(result)
