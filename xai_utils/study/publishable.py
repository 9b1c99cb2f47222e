"""An executed notebook made fit to be committed: nothing in it that differs between runs or machines."""

import os
import re
from pathlib import Path

import nbformat

from xai_utils.files import ROOT


def publishable(notebook: nbformat.NotebookNode) -> None:
    """Strip in place what differs between runs or machines: timings, paths, progress bars, widget state."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
        }
    )
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_portable_output, cell.outputs) if output is not None]


def _portable_output(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    if output.output_type == "stream":
        lines = output.text.splitlines(keepends=True)
        output.text = _without_paths("".join(line for line in lines if not re.search(r"\d+%\|", line)))
        return output if output.text.strip() else None
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        return None
    for kind in data:
        if kind.startswith("text/"):
            data[kind] = _without_paths(data[kind])
    return output


def _without_paths(text: str) -> str:
    return text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".").replace(str(Path.home()), "~")
