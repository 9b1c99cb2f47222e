"""Which notebooks of a study need not run again: what they read is as it was, and what they wrote is still there.

A notebook reads its own cells, the study, the models, the code of this repository, the installed packages, and what the
notebooks before it wrote. So from the first one that changed on, all run.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
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
    "report/*.py",
    "report/facts/*.py",
    "report/template/answers/*.j2",  # what a notebook says too
    "report/template/common.j2",
    "report/template/figures.j2",
    "report/evidence/*",
    "recipes/**/*.py",
    "models/*/tables/*",  # which the notebook on the adapted model reads
)


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
        return [self.file.parent / name for done in self.done for name in done.wrote]

    def add(self, job: NotebookRun, read: str, wrote: Iterable[Path]) -> None:
        """The next notebook has run; `read` was its key before."""
        hashes = {os.path.relpath(path, self.file.parent): file_sha256(path) for path in wrote}
        self.done.append(Done(notebook=job.source.stem, read=read, wrote=hashes))
        write_text(self.file, FILE.dump_json(self.done, indent=1).decode())

    def key(self, job: NotebookRun) -> str:
        """The key of all that a notebook reads now, but for what those before it wrote."""
        cells = nbformat.read(job.source, as_version=4).cells
        return key([self.common, job.parameters, [[cell.cell_type, cell.source] for cell in cells]])

    def _holds(self, job: NotebookRun, done: Done) -> bool:
        files = {self.file.parent / name: content for name, content in done.wrote.items()}
        same = done.notebook == job.source.stem and done.read == self.key(job)
        return same and all(path.is_file() and file_sha256(path) == content for path, content in files.items())


def _read(file: Path) -> list[Done]:
    try:
        return FILE.validate_json(file.read_bytes())
    except (OSError, ValueError):
        return []


def _common(study: Study) -> str:
    """The key of what all notebooks of a study read; empty where it cannot be known whether a model has changed."""
    if any(_may_move(entry) for entry in study.models):
        return ""
    code = sorted(path for pattern in CODE for path in ROOT.glob(pattern) if path.is_file())
    packages = sorted(f"{found.name} {found.version}" for found in importlib.metadata.distributions())
    return key(
        [
            study.model_dump(mode="json"),
            [entry.stamp() for entry in study.models],
            [(path.relative_to(ROOT).as_posix(), file_sha256(path)) for path in code],
            [sys.version, *packages],
        ]
    )


def _may_move(entry: ModelEntry) -> bool:
    """Whether an entry names a branch on the Hub, which may have gone on."""
    names = [entry.model if entry.revision is None else None, entry.tokenizer]
    return any(name and name not in BUILT_IN and not entry.path(name).exists() for name in names)
