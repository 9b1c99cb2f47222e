"""Where files lie, and the rule by which any comes to be: made beside its place, moved there when whole.

A folder counts as whole by the stamp that is written into it last. A file lock keeps two processes apart; what a
process that died has left is cleared by the next one that holds the lock.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock

from xai_utils.errors import UserError
from xai_utils.notices import notice

ROOT = Path(__file__).resolve().parents[1]
STAMP = "complete.json"
TEMPORARY = r"\..*-(\d+)-\w+\.?\w*"  # the name of a file that the process of this number is writing


def locate(path: str | Path) -> Path:
    """A path as a person writes it: from the current folder, else from the repository's root."""
    given = Path(path).expanduser()
    return given if given.is_absolute() or given.exists() else ROOT / given


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
        notice(f"another process is making {target.name}: waiting for it")
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


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, put in place at the end; an error or an interruption leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-{os.getpid()}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in place; an interruption leaves the old file.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    try:
        with whole(path) as temporary:
            write(temporary)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); expected a folder with free space; free some or set XAI_RUNS"
        ) from None
    return path


def write_text(path: Path, text: str) -> Path:
    return write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))
