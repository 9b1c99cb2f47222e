"""What long work says of itself: to the runner where one runs notebooks, else to a person on stderr.

No message becomes a part of a notebook.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm

MIME = "application/vnd.xai.progress+json"  # of a message to the runner, which no notebook keeps
HEADLESS = "XAI_HEADLESS"  # set in the runner's kernels


def headless() -> bool:
    return bool(os.environ.get(HEADLESS))


def publish(message: dict[str, Any]) -> None:
    """Send a message to the runner of notebooks."""
    from IPython.display import display

    display({MIME: message}, raw=True)


def notice(text: str) -> None:
    """One line that a person should read now."""
    if headless():
        publish({"notice": text})
    else:
        tqdm.write(text, file=sys.stderr)
