"""One model of a study, as its file names it."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Strict, model_validator

from xai_utils.fields import Entry, FileName, Text


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
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    device: Device = "auto"
    device_map: Literal["auto"] | None = None  # layers spread over all devices and main memory, by accelerate
    quantization: Literal["8bit", "4bit"] | None = None  # by bitsandbytes, where it is installed
    document_start: Text | None = None

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
