"""One notebook on papermill: executed in a fresh kernel, replaced only when it succeeds, every failure told in one
line.

papermill runs; what is here is what it leaves open: a limit on a cell's time, a kernel that died, and a copy fit to be
committed.
"""

import logging
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from xai_utils.errors import UserError
from xai_utils.files import ROOT, write_text
from xai_utils.study.publishable import publishable

CELL_SECONDS = 3600
KERNEL_ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "XAI_HEADLESS": "1",  # the runner's bar is the only one, and no widget is built
}
KERNEL_STARTS = 3  # two kernels that start at once can pick one port (papermill issue 511)


@dataclass(frozen=True)
class Job:
    """One notebook to execute: its source, where the executed copy goes, the parameters that differ from its own."""

    source: Path
    output: Path
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> str:
        return self.source.stem.split("_")[0]


class OwnKernel(AsyncKernelManager):
    """A kernel of the running interpreter, whatever kernels are installed beside it, in the repository's root."""

    started: ClassVar["WeakSet[OwnKernel]"] = WeakSet()

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        """Start it with figures inline, also where the caller's MPLBACKEND says otherwise."""
        # The folder is given here, for papermill would change that of this process, which its threads share.
        await super().start_kernel(**options | {"env": os.environ | KERNEL_ENVIRONMENT, "cwd": str(ROOT)})
        self.started.add(self)

    @classmethod
    def end_all(cls) -> None:
        """Kill the processes; the threads that wait for them then find their kernels dead."""
        for process in [getattr(kernel.provisioner, "process", None) for kernel in cls.started]:
            if process is not None:
                process.kill()


def execute(job: Job, timeout: int = CELL_SECONDS, bar: "tqdm[Any] | None" = None) -> None:
    """Execute one notebook in a fresh kernel and replace its output when all cells have succeeded.

    Raises UserError, naming notebook and cell: a cell fails or takes longer than `timeout` seconds, the kernel dies.
    """
    progress = _Progress(job, bar)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it says is said once, below
    try:
        for attempt in range(1, KERNEL_STARTS + 1):
            try:
                notebook = _papermill(job, timeout, progress)
                break
            except RuntimeError:
                if progress.cells or attempt == KERNEL_STARTS:
                    raise
                time.sleep(attempt)
    except PapermillExecutionError as error:
        raise UserError(f"{progress.place}: {_told(error)}") from None
    except CellTimeoutError:
        raise UserError(f"{progress.place}: took longer than {timeout} s; allow more with --timeout SECONDS") from None
    except DeadKernelError:
        reason = "the kernel was killed, most likely for lack of memory; close programs, or use a smaller model or text"
        raise UserError(f"{progress.place}: {reason}") from None
    except RuntimeError as error:
        raise UserError(f"{progress.place}: the kernel did not start ({_line(str(error))}); try again") from None
    publishable(notebook)
    write_text(job.output, nbformat.writes(notebook) + "\n")


def _papermill(job: Job, timeout: int, progress: "_Progress") -> nbformat.NotebookNode:
    return papermill.execute_notebook(
        str(job.source),
        None,  # nothing is written until all of it has succeeded
        parameters=job.parameters,
        kernel_name="python3",
        language="python",
        progress_bar=False,
        execution_timeout=timeout,
        kernel_manager_class=OwnKernel,
        on_cell_execute=progress.start,
        on_cell_executed=progress.done,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )


class _Progress:
    """Counts cells as a person reads them: code cells from 1, without the injected one."""

    def __init__(self, job: Job, bar: "tqdm[Any] | None") -> None:
        self.name, self.bar, self.cells = job.source.name, bar, 0

    def start(self, cell: nbformat.NotebookNode, **_: Any) -> None:
        self.cells += not _injected(cell)

    def done(self, cell: nbformat.NotebookNode, **_: Any) -> None:
        if self.bar is not None and not _injected(cell):
            self.bar.update()

    @property
    def place(self) -> str:
        return f"{self.name}, cell {self.cells}" if self.cells else self.name


def _told(error: PapermillExecutionError) -> str:
    """The failure in one line; its traceback goes before it, unless the cell itself told the user what is wrong."""
    if error.ename == UserError.__name__:
        return _line(error.evalue)
    tqdm.write(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)), file=sys.stderr)
    return f"{error.ename}: {_line(error.evalue)}".removesuffix(": ")


def _line(text: str) -> str:
    return " ".join(text.split())


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def _injected(cell: nbformat.NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])
