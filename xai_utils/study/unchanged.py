"""Which notebooks of a study need not run again: what they read is as it was, and what they wrote is still there.

A notebook reads its own cells, the study, the files of its models, the code of this repository, the installed packages,
and what the notebooks before it wrote. So from the first one that changed on, all run; so they do on another GPU, and
for a model that a branch on the Hub names, which may have gone on.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat
from pydantic import BaseModel, TypeAdapter

from xai_utils.files import ROOT, file_sha256, write_text
from xai_utils.models.download import BUILT_IN
from xai_utils.models.entry import ModelEntry
from xai_utils.study.config import Study
from xai_utils.study.execute import NotebookRun
from xai_utils.study.results import key

CODE = (
    "xai_utils/**/*.py",
    "recipes/**/*.py",
    "report/*.py",
    "report/facts/*.py",
    "report/template/answers/*.j2",  # what a notebook says too
    "report/template/common.j2",
    "report/template/figures.j2",
)
COMMIT = r"[0-9a-f]{40}"


class Done(BaseModel):
    """One notebook that ran: the key of what it read, and the SHA-256 of the files that it wrote, by their paths from
    the record."""

    notebook: str
    read: str
    wrote: dict[str, str]


FILE = TypeAdapter(list[Done])


class Record:
    """The notebooks of a study's last whole run, in their order, in a file beside the study's results."""

    def __init__(self, study: Study, file: Path):
        self.file, self.common = file, _common(study)
        self.done = _read(file) if self.common else []

    def unchanged(self, jobs: Sequence[NotebookRun]) -> list[Path]:
        """The files of the notebooks that need not run, which are the first ones; the others are forgotten."""
        pairs = zip(jobs, self.done, strict=False)
        self.done = [done for _, done in itertools.takewhile(lambda pair: self._holds(*pair), pairs)]
        return [self._place(name) for done in self.done for name in done.wrote]

    def add(self, job: NotebookRun, read: str, wrote: Iterable[Path]) -> None:
        """The next notebook has run; `read` was its key before. Without effect when code was edited meanwhile."""
        if _sources() != _at_first():
            return
        hashes = {os.path.relpath(path, self.file.parent): file_sha256(path) for path in wrote}
        self.done.append(Done(notebook=job.source.stem, read=read, wrote=hashes))
        write_text(self.file, FILE.dump_json(self.done, indent=1).decode())

    def key(self, job: NotebookRun) -> str:
        """The key of all that a notebook reads now, but for what those before it wrote."""
        cells = nbformat.read(job.source, as_version=4).cells
        return key([self.common, job.parameters, [[cell.cell_type, cell.source] for cell in cells]])

    def _holds(self, job: NotebookRun, done: Done) -> bool:
        files = {self._place(name): content for name, content in done.wrote.items()}
        same = done.notebook == job.source.stem and done.read == self.key(job)
        return same and all(path.is_file() and file_sha256(path) == content for path, content in files.items())

    def _place(self, name: str) -> Path:
        return Path(os.path.normpath(self.file.parent / name))  # `..` of the name, also where a folder is a link


def _read(file: Path) -> list[Done]:
    try:
        return FILE.validate_json(file.read_bytes())
    except (OSError, ValueError):
        return []


def _common(study: Study) -> str:
    """The key of what all notebooks of a study read; empty where it cannot be known whether a model has changed."""
    if any(_may_move(entry) for entry in study.models):
        return ""
    stamps = [entry.stamp() for entry in study.models]
    return key([study.model_dump(mode="json"), stamps, _at_first(), _packages(), _cards()])


def _sources() -> list[tuple[str, str]]:
    """The code that is on disk now."""
    files = sorted(path for pattern in CODE for path in ROOT.glob(pattern) if path.is_file())
    return [(path.relative_to(ROOT).as_posix(), file_sha256(path)) for path in files]


_at_first = functools.cache(_sources)  # the code of a process: an edit while notebooks run is not what they ran with


@functools.cache
def _packages() -> list[str]:
    return [sys.version, *sorted(f"{found.name} {found.version}" for found in importlib.metadata.distributions())]


def _cards() -> list[str]:
    return [os.environ.get("CUDA_VISIBLE_DEVICES", ""), *sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))]


def _may_move(entry: ModelEntry) -> bool:
    """Whether an entry names something on the Hub by other than its commit."""
    fixed = re.fullmatch(COMMIT, entry.revision or "")
    names = [None if fixed else entry.model, entry.tokenizer]
    return any(name and name not in BUILT_IN and not entry.path(name).exists() for name in names)
