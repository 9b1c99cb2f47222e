"""What this machine has of what the kit needs: Python, packages, model files, GPU, browser, cache."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xai_utils.files import ROOT, cache_folder, is_whole

OLDEST = (3, 11)
NEEDED_BYTES = 2e9  # bytes: the default model with its wheel, and the results of a study
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `ok`, `optional` where something is missing that few need, or `fix`."""

    state: str
    what: str

    def __str__(self) -> str:
        return f"[{self.state}] {self.what}"


def examine() -> Iterator[Finding]:
    """Everything there is to know, one line each; what is missing comes with what to do."""
    yield _python()
    yield from _packages(ROOT / "requirements.txt")
    yield from _models()
    yield _gpu()
    yield _browser()
    yield _cache()


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < OLDEST:
        return Finding("fix", f"Python {version}; 3.11 or newer is needed: make PYTHON=python3.12")
    return Finding("ok", f"Python {version}")


def _packages(file: Path) -> Iterator[Finding]:
    """Installed versions against the pinned ones; other versions may work, and their numbers may differ."""
    if not file.is_file():
        yield Finding("optional", "no requirements.txt beside the package, so versions were not compared")
        return
    pinned = re.findall(r"^([\w.-]+)==([\w.]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    missing, other = [], []
    for name, version in pinned:
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if installed.partition("+")[0] != version:  # torch names its build behind a plus
            other.append(f"{name} {installed} instead of {version}")
    if missing:
        yield Finding("fix", f"not installed: {', '.join(missing)}; run make setup")
    if other:
        yield Finding("optional", f"other versions than pinned: {', '.join(other)}; run make setup for the pinned ones")
    if not missing and not other:
        yield Finding("ok", f"{len(pinned)} packages as pinned")


def _models() -> Iterator[Finding]:
    from xai_utils.models import convert, download

    for name, model in download.BUILT_IN.items():
        if is_whole(convert.place(cache_folder() / "models", name, model.sha256)):
            yield Finding("ok", f"model {name}")
        else:
            yield Finding("fix", f"model {name} is not fetched yet; run python -m xai_utils fetch")
    for folder in sorted((ROOT / "models").glob("*/adapter_config.json")):
        there = (folder.parent / "adapter_model.safetensors").is_file()
        name = f"adapter models/{folder.parent.name}"
        yield Finding("ok", name) if there else Finding("fix", f"{name} lacks its weights; check it out again")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        return Finding("ok", f"GPU {torch.cuda.get_device_name()}, {free / 2**30:.0f} of {whole / 2**30:.0f} GiB free")
    return Finding("ok", f"no GPU: {torch.get_num_threads()} CPU threads are used")


def _browser() -> Finding:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found:
        return Finding("ok", f"browser {found}")
    return Finding("optional", "no Chromium, which only the browser tests need; on Debian: apt-get install chromium")


def _cache() -> Finding:
    folder = cache_folder()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding("fix", f"the cache {folder} cannot be written; set XAI_CACHE to a folder that you may write")
    if free < NEEDED_BYTES:
        return Finding("fix", f"the cache {folder} has {free / 1e9:.1f} GB free; free some, or set XAI_CACHE")
    return Finding("ok", f"cache {folder}, {free / 1e9:.0f} GB free")
