"""What earlier runs of a study have left: results of models and texts that it no longer has, and half-written files."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import psutil

from xai_utils.files import TEMPORARY, write_text
from xai_utils.study.results import Folders

READERS = ("05", "07")  # the notebooks that read all tables which are there
SETTLED = 60  # seconds after which no process is at a result, which is written in one go


class Leftovers:
    """One run of a study's notebooks, begun now; held under the study's lock.

    A file in the study's folders that is older than the run was written for a study that is no more. `whole` says that
    all notebooks run, so that nothing else writes there.
    """

    def __init__(self, folders: Folders, whole: bool):
        self.folders, self.whole = folders, whole
        for folder in (folders.data.parent, folders.figs, folders.tables, folders.notebooks):
            clear_temporary(folder)
        clear_temporary(folders.cache, SETTLED)
        self.begun, self.kept = self._now(), set[Path]()

    def keep(self, files: Iterable[Path]) -> None:
        """Files of notebooks that need not run stay."""
        self.kept = {path.resolve() for path in files}

    def written(self) -> list[Path]:
        """The results that were written since the last call of `before`."""
        places = [(self.folders.data, "*/*"), (self.folders.tables, "*"), (self.folders.figs, "*.png")]
        files = [path for folder, pattern in places for path in folder.glob(pattern) if path.is_file()]
        return sorted(path for path in files if path.stat().st_mtime_ns >= self.since)

    def before(self, number: str) -> None:
        """To be called before the notebook of this number."""
        self.since = self._now()
        if self.whole and number in READERS:
            self._clear(self.folders.data, "*/[!.]*")

    def after(self, number: str) -> None:
        """To be called when the notebook of this number has succeeded."""
        clear(self.folders.figs, self.since, f"{number}_*.png")

    def end(self) -> None:
        """To be called when all have succeeded."""
        if self.whole:
            self._clear(self.folders.data, "*/[!.]*")
            self._clear(self.folders.tables, "*")
            self._clear(self.folders.figs, "*.png")

    def _clear(self, folder: Path, pattern: str) -> None:
        clear(folder, self.begun, pattern, self.kept)

    def _now(self) -> int:
        """The time by the file system, which may be another machine's."""
        return write_text(self.folders.data.parent / ".begun", "").stat().st_mtime_ns


def clear(folder: Path, before: int, pattern: str, kept: Collection[Path] = ()) -> None:
    """Remove the files in a folder that were last written before a time in nanoseconds, but those kept; those of
    another study's folder in it stay."""
    for path in folder.glob(pattern):
        if path.is_file() and path.stat().st_mtime_ns < before and path.resolve() not in kept:
            path.unlink(missing_ok=True)


def clear_temporary(folder: Path, age: float = 0) -> None:
    """Remove what processes that were killed have left half-written, where it is `age` seconds old."""
    for path in folder.rglob(".*-*"):
        named = re.fullmatch(TEMPORARY, path.name)
        if named and not psutil.pid_exists(int(named[1])) and time.time() - path.stat().st_mtime >= age:
            path.unlink(missing_ok=True)
