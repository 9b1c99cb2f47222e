"""One notebook on papermill: executed in a kernel as fresh as a new one, replaced only when it succeeds, every failure
reported in one line.

papermill runs; what is here is what it leaves open: a limit on a cell's time, a kernel that died, what the kernel says
of its progress, and a copy fit to be committed.
"""

import logging
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
import papermill.log
import traitlets
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from xai_utils.errors import MORE, UserError
from xai_utils.files import ROOT, write_text
from xai_utils.notices import MIME
from xai_utils.study.kernel import DIED, OwnKernel
from xai_utils.study.progress import Line

CELL_SECONDS = 3600


@dataclass(frozen=True)
class NotebookRun:
    """One notebook to execute: its source, where the executed copy goes, the parameters that differ from its own."""

    source: Path
    output: Path
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> str:
        return self.source.stem.split("_")[0]


def execute(
    job: NotebookRun,
    timeout: int = CELL_SECONDS,
    line: Line | None = None,
    kernel: OwnKernel | None = None,
    debug: bool = False,
) -> None:
    """Execute one notebook and replace its output when all cells have succeeded.

    `kernel` is made fresh and left running; without one, the notebook has a process of its own.
    Raises UserError, naming notebook and cell: a cell fails or takes longer than `timeout` seconds, the kernel dies.
    What no cell has foreseen is reported in one line too; with `debug` behind its traceback.
    """
    own = kernel or OwnKernel()
    try:
        notebook = _executed(job, timeout, _Progress(job, line), own, debug)
    finally:
        if kernel is None:
            own.end()
    publishable(notebook)
    write_text(job.output, nbformat.writes(notebook) + "\n")


def _executed(
    job: NotebookRun, timeout: int, progress: "_Progress", kernel: OwnKernel, debug: bool
) -> nbformat.NotebookNode:
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it says is said once, below
    try:
        kernel.begin()
        return _papermill(job, timeout, progress, kernel)
    except PapermillExecutionError as error:
        raise UserError(f"{progress.place}: {_reason(error, debug)}") from None
    except CellTimeoutError:
        raise UserError(f"{progress.place}: took longer than {timeout} s; allow more with --timeout SECONDS") from None
    except DeadKernelError:
        raise UserError(f"{progress.place}: {DIED}") from None
    except RuntimeError as error:
        raise UserError(f"{progress.place}: the kernel did not start ({_line(str(error))}); try again") from None


class _Client(PapermillNotebookClient):
    """papermill's, which hands on what the kernel says of its progress instead of writing it into the notebook."""

    on_progress = traitlets.Any()

    def output(self, outs: list[Any], msg: dict[str, Any], display_id: str | None, cell_index: int) -> Any:
        message = msg["content"].get("data", {}).get(MIME)
        if message is None:
            return super().output(outs, msg, display_id, cell_index)
        self.on_progress(message)
        return None


class _Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, execution_timeout: int = CELL_SECONDS, **options: Any
    ) -> Any:
        known = {name: value for name, value in options.items() if name in _Client.class_trait_names()}
        client = _Client(nb_man, options["km"], timeout=execution_timeout, log=papermill.log.logger, **known)
        return client.execute()


papermill_engines.register("xai", _Engine)


def _papermill(job: NotebookRun, timeout: int, progress: "_Progress", kernel: OwnKernel) -> nbformat.NotebookNode:
    return papermill.execute_notebook(
        str(job.source),
        None,  # nothing is written until all of it has succeeded
        parameters=job.parameters,
        kernel_name="python3",
        language="python",
        progress_bar=False,
        engine_name="xai",
        execution_timeout=timeout,
        km=kernel,
        on_cell_execute=progress.start,
        on_progress=progress.report,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )


class _Progress:
    """Counts cells as a person reads them: code cells from 1, without the injected one."""

    def __init__(self, job: NotebookRun, line: Line | None) -> None:
        self.name, self.line, self.cells = job.source.name, line, 0

    def start(self, cell: nbformat.NotebookNode, **_: Any) -> None:
        if _injected(cell):
            return
        self.cells += 1
        if self.line is not None:
            self.line.next_cell()

    def report(self, message: dict[str, Any]) -> None:
        if self.line is not None:
            self.line.told(message)

    @property
    def place(self) -> str:
        return f"{self.name}, cell {self.cells}" if self.cells else self.name


def _reason(error: PapermillExecutionError, debug: bool) -> str:
    """The failure in one line, after its traceback where that is asked for."""
    if debug:
        tqdm.write(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)), file=sys.stderr)
    if error.ename == UserError.__name__:
        return _line(error.evalue)
    reason = f"{error.ename}: {_line(error.evalue)}".removesuffix(": ")
    return reason if debug else f"{reason}; {MORE}"


def _line(text: str) -> str:
    return " ".join(text.split())


def headings(notebook: nbformat.NotebookNode) -> list[str]:
    """Of each code cell the heading that it stands under; `starting` under the title, where things are imported."""
    found, heading = [], "starting"
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            found.append(heading)
        elif cell.cell_type == "markdown":
            heading = (re.findall(r"^##+ +(.*)", cell.source, re.MULTILINE) or [heading])[-1]
    return found


def _injected(cell: nbformat.NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


# ---- fit to be committed


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
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"  # papermill draws one
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
