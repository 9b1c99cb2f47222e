"""A notebook's figures: each is saved with its alt text and shown with the sentence that says what it shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from IPython.display import Markdown, display
from matplotlib.figure import Figure

from xai_utils.plots.style import save


@dataclass(frozen=True)
class Gallery:
    """`gallery(name, figure, said)` writes `name`.png into the folder and shows it, `said` (Markdown) below it."""

    folder: Path

    def __call__(self, name: str, figure: Figure | None, said: str) -> None:
        """Without a figure nothing is shown; where nothing can be said of it, its name stands in its alt text.

        Raises UserError when a file cannot be written.
        """
        if figure is not None:
            display(
                save(figure, self.folder / f"{name}.png", alt=without_markup(said) or f"Figure {name}"), Markdown(said)
            )


def without_markup(markdown: str) -> str:
    r"""Markdown of a few sentences as text, for an alt text.

    >>> without_markup("**Paris** is likely (`0.8`).\n\nIt \\*is\\*.")
    'Paris is likely (0.8). It *is*.'
    """
    text = re.sub(r"(?<!\\)[*`]+", "", markdown)
    return " ".join(re.sub(r"\\([\\`*_\[\]#~])", r"\1", text).split())
