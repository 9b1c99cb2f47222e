"""What trainings share: a checkpoint goes on under its own settings alone, and says what computed it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xai_utils.errors import UserError


def check_same_settings(file: Path, begun: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises UserError, which names them, where the settings of a checkpoint `file` differ from those asked for."""
    other = [name for name, value in here.items() if begun.get(name) != value]
    if other:
        raise UserError(
            f"{file} was begun with other settings ({', '.join(other)}); expected the same; "
            f"delete {file.parent} to start again"
        )


def machine(device: torch.device, cores: int, dtype: torch.dtype) -> dict[str, str]:
    """What trains, and the arithmetic of the frozen model."""
    cpu = "a CPU core" if cores == 1 else f"{cores} CPU cores"
    name = f"one {torch.cuda.get_device_name(device)}" if device.type == "cuda" else cpu
    return {"device": name, "dtype": str(dtype).removeprefix("torch.")}
