"""One model of a study, as its file names it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, PrivateAttr, Strict, model_validator

from xai_utils.fields import Entry, FileName, Text
from xai_utils.files import ROOT, locate


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("expected auto, cpu, cuda, cuda:N or mps")
    return name


Device = Annotated[str, Strict(), AfterValidator(_device)]


class ModelEntry(Entry):
    """One model of a study.

    `model` is a built-in name, a Hub id, a local folder or a GGUF file; `adapter` a PEFT folder on top of it.
    """

    label: FileName
    role: Literal["base", "adapted", "control"] = "base"
    model: Text
    revision: Text | None = None
    adapter: Text | None = None
    tokenizer: Text | None = None
    rows: Literal["initial", "shuffled"] | None = None  # controls: the adapter's rows untrained, or permuted
    dtype: Literal["float32", "tf32", "bfloat16", "float16", "float64"] = "float32"  # tf32: precision.py
    device: Device = "auto"
    device_map: Literal["auto"] | None = None  # layers spread over all devices and main memory, by accelerate
    quantization: Literal["8bit", "4bit"] | None = None  # by bitsandbytes, where it is installed
    document_start: Text | None = None
    _home: Path | None = PrivateAttr(None)  # the folder of the study's file

    def model_post_init(self, context: Any) -> None:
        self._home = (context or {}).get("home")

    def path(self, name: str) -> Path:
        """Where a file or folder lies that this entry names: from its study's folder, else from the repository.

        Without a study's file it is looked for from the current folder first.
        """
        given = Path(name).expanduser()
        if self._home is None or given.is_absolute():
            return locate(name)
        near = self._home / given
        return near if near.exists() or not (ROOT / given).exists() else ROOT / given

    def stamp(self) -> list[tuple[str, int, int]]:
        """Names, sizes and times of the local files that it is read from, which change when it is made again."""
        places = [self.path(name) for name in (self.model, self.adapter, self.tokenizer) if name]
        files = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]

    @model_validator(mode="after")
    def _rows_need_adapter(self) -> Self:
        if self.rows and not self.adapter:
            raise ValueError(f"rows: {self.rows} changes an adapter's rows, and this entry has no adapter; add one")
        return self

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.device_map and self.device != "auto":
            raise ValueError(f"device: {self.device} names one device, device_map spreads over all; leave one out")
        return self
