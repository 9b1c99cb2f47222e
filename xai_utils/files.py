"""The cache folder, and the rule by which anything comes to be in it: made beside its place, moved there when whole.

A folder counts as whole by the stamp that is written into it last. A file lock keeps two processes apart; what a
process that died has left is cleared by the next one that holds the lock.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock
from tqdm import tqdm

from xai_utils.study.config import UserError

STAMP = "complete.json"


def cache_folder() -> Path:
    """The folder for everything that is fetched or converted: `$XAI_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("XAI_CACHE") or platformdirs.user_cache_dir("xai", appauthor=False)).expanduser()


@contextmanager
def writing(folder: Path, size: int = 0, variable: str = "XAI_CACHE") -> Iterator[None]:
    """Make `folder` for `size` bytes to come; what the disk refuses, now or inside the block, becomes a UserError.

    `variable` is the environment variable that moves the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{size / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no disk space in the cache {folder} ({error.strerror}); "
                f"free some, or set {variable} to a folder on another disk"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"cannot write to the cache {folder} ({error.strerror}); set {variable} to a folder that you may write"
            ) from None
        raise


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`; a second process waits here. The system drops the lock of a process that dies."""
    lock = FileLock(target.with_name(f".lock-{target.name}"))
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        tqdm.write(f"another process is making {target.name}: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A fresh empty folder next to `target`, gone afterwards. To be used under the lock of `target`."""
    folder = target.with_name(f".partial-{target.name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(folder: Path, target: Path) -> None:
    """Stamp a finished folder with its files and their sizes, and move it to `target`."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / STAMP).write_text(json.dumps(files, indent=1) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(folder, target)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds all files that its stamp lists, in their sizes."""
    try:
        files = json.loads((folder / STAMP).read_text())
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """The part of a library's message that fits into one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
