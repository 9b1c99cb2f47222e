"""Notebooks on papermill: executed in order, replaced only when they succeed, every failure told in one line.

papermill runs and inspects; what is here is what it leaves open: parameters that exist and keep their type, a limit on
a cell's time, a kernel that died, several notebooks at once, two runs on one study, and a copy fit to be committed.
"""

import ast
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import nbformat
import papermill
from filelock import FileLock, Timeout
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from xai_utils import results
from xai_utils.study import ROOT, Study, UserError, load_study, locate, nearest
from xai_utils.tidy import publishable

NOTEBOOKS = ROOT / "notebooks"
SEQUENCE = ("01", "02", "03", "04", "05")
BESIDE = ("00", "06")  # run for the published study too: how its twin was made, and the explorers' static twins
READS = {"05": {"01", "02", "03", "04"}}  # the notebooks whose tables a notebook reads
THREADS = "OMP_NUM_THREADS"
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


def run(
    study_file: str | Path,
    only: Sequence[str] = (),
    settings: Sequence[str] = (),
    timeout: int = CELL_SECONDS,
    kernels: int = 1,
    notebooks: Path = NOTEBOOKS,
) -> list[Job]:
    """Execute the notebooks 01 to 05, or those that `only` names by number, on a study.

    `settings` are `key=value` for the notebooks' own parameters; `timeout` is in seconds a cell; `kernels` notebooks
    run at once, which share the cores and the work. The published study's notebooks are replaced by their executed
    copies; another study's copies go to runs/<study>/notebooks/. Raises UserError.
    """
    study = load_study(study_file)
    if "XAI_RUNS" in os.environ:  # for kernels, which work in another folder
        os.environ["XAI_RUNS"] = str(Path(os.environ["XAI_RUNS"]).resolve())
    jobs = plan(study, study_file, only, settings, notebooks)
    with locked(study), _restored(THREADS):
        total = sum(len(_code_cells(nbformat.read(job.source, as_version=4))) for job in jobs)
        with tqdm(total=total, unit="cell", file=sys.stderr, mininterval=0.1 if sys.stderr.isatty() else 30) as bar:
            _execute_all(jobs, timeout, kernels, bar)
    return jobs


@contextmanager
def _restored(name: str) -> Iterator[None]:
    """An environment variable is afterwards what it was before."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _execute_all(jobs: list[Job], timeout: int, kernels: int, bar: "tqdm[Any]") -> None:
    """Jobs in their order, `kernels` at once, none before those that it reads. The first that fails, or an
    interruption, ends the others.

    Each kernel computes on its share of the cores, unless the caller's environment says on how many: threads that
    wait for one another cost much.
    """
    ended, shared = threading.Event(), THREADS not in os.environ
    waiting, running = dict(enumerate(jobs, 1)), dict[Future[None], Job]()

    def work(number: int, job: Job) -> None:
        if ended.is_set():
            return
        bar.set_description(f"{job.source.stem} [{number}/{len(jobs)}]")
        try:
            execute(job, timeout, bar, ended)
        except BaseException:
            ended.set()
            raise

    with ThreadPoolExecutor(kernels) as pool:
        try:
            while waiting or running:
                unfinished = {job.number for job in (*waiting.values(), *running.values())}
                ready = [number for number, job in waiting.items() if not READS.get(job.number, set()) & unfinished]
                for number in ready[: kernels - len(running)]:
                    if shared and kernels > 1:
                        beside = min(kernels, len(running) + len(waiting))
                        os.environ[THREADS] = str(max((os.cpu_count() or 1) // beside, 1))
                    job = waiting.pop(number)
                    running[pool.submit(work, number, job)] = job
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    running.pop(done)
                    done.result()
        except BaseException:
            ended.set()
            OwnKernel.end_all()
            raise


def plan(
    study: Study,
    study_file: str | Path,
    only: Sequence[str],
    settings: Sequence[str],
    notebooks: Path = NOTEBOOKS,
) -> list[Job]:
    """What is to be executed, with every parameter checked before anything starts. Raises UserError."""
    sources = select(only, notebooks, SEQUENCE + BESIDE if study.published else SEQUENCE)
    declared = {source: papermill.inspect_notebook(source) for source in sources}
    given = parse_settings(settings, declared)
    as_it_is = study.published and not given
    folder = notebooks if as_it_is else own_folder(study) / "notebooks"
    jobs = []
    for source in sources:
        parameters = {name: value for name, value in given.items() if name in declared[source]}
        if not study.published:
            if "study" not in declared[source]:
                raise UserError(f"{source.name}: has no parameter 'study'; declare it in the cell tagged 'parameters'")
            parameters["study"] = _portable(locate(study_file))
        jobs.append(Job(source, folder / source.name, parameters))
    return jobs


def select(only: Sequence[str], notebooks: Path = NOTEBOOKS, otherwise: Sequence[str] = SEQUENCE) -> list[Path]:
    """The notebooks named by number (`02`) or name, or else `otherwise`, in the order of their file names."""
    found = {path.stem: path for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))}
    wanted = [name for item in only for name in item.split(",")] or [n for n in otherwise if _match(n, found)]
    chosen = set()
    for name in wanted:
        matches = _match(name, found)
        if not matches:
            raise UserError(f"--only {name}: no such notebook; {nearest(name, found)}")
        chosen.update(matches)
    if not chosen:
        raise UserError(f"{notebooks}: holds no notebooks; expected 01_*.ipynb to 05_*.ipynb")
    return [found[name] for name in sorted(chosen)]


def _match(name: str, found: dict[str, Path]) -> list[str]:
    stem = Path(name).name.removesuffix(".ipynb")
    return [known for known in found if known == stem or known.split("_")[0] == stem.zfill(2)]


def parse_settings(settings: Sequence[str], declared: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """`key=value` texts as values of the type that the notebooks' own default has. Raises UserError."""
    known = {name: parameter for parameters in declared.values() for name, parameter in parameters.items()}
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value; write for example --set {setting}=1")
        if name == "study":
            raise UserError("--set study: the study is named by --study; write --study FILE")
        if name not in known:
            raise UserError(f"--set {name}: no notebook of this run has that parameter; {nearest(name, known)}")
        values[name] = typed(name, text, known[name]["default"])
    return values


def typed(name: str, text: str, default: str) -> Any:
    """The text of a parameter as a value of the type of its default, which is given as Python source.

    >>> typed("x", "0012", "'a'"), typed("x", "12", "1"), typed("x", "1e-3", "0.5"), typed("x", "no", "True")
    ('0012', 12, 0.001, False)
    """
    like = _literal(default)
    if isinstance(like, str):
        return text
    kind = type(like).__name__
    try:
        if isinstance(like, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if isinstance(like, int | float):
            return type(like)(text)
    except (KeyError, ValueError):
        raise UserError(f"--set {name}={text}: expected a {kind} like the default {default}") from None
    value = _literal(text)
    if like is not None and type(value) is not type(like):
        raise UserError(f"--set {name}={text}: expected a {kind} like the default {default}")
    return value


def _literal(source: str) -> Any:
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return source


def execute(
    job: Job, timeout: int = CELL_SECONDS, bar: "tqdm[Any] | None" = None, ended: threading.Event | None = None
) -> None:
    """Execute one notebook in a fresh kernel and replace its output when all cells have succeeded.

    No further cell is begun once `ended` is set. Raises UserError, naming notebook and cell: a cell fails or takes
    longer than `timeout` seconds, the kernel dies.
    """
    progress = _Progress(job, bar, ended)
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
    results.write_text(job.output, nbformat.writes(notebook) + "\n")


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

    def __init__(self, job: Job, bar: "tqdm[Any] | None", ended: threading.Event | None) -> None:
        self.name, self.bar, self.ended, self.cells = job.source.name, bar, ended, 0

    def start(self, cell: nbformat.NotebookNode, **_: Any) -> None:
        self.cells += not _injected(cell)
        if self.ended is not None and self.ended.is_set():
            raise UserError(f"{self.place}: not begun, for the run was ended")

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


def _code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def _injected(cell: nbformat.NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def _portable(path: Path) -> str:
    resolved = path.resolve()
    return resolved.relative_to(ROOT).as_posix() if resolved.is_relative_to(ROOT) else str(resolved)


def own_folder(study: Study) -> Path:
    """Where a study keeps what is its own and not published."""
    return results.folders(study).data.parent


def not_converged(study: Study) -> str:
    """One line on the certificates of a study: how many did not converge, and of which methods; empty without any."""
    try:
        table = results.read_table(study, "certificates")
    except UserError:
        return ""
    if table.empty:  # methods without a certificate write an empty table, without columns
        return ""
    failed = table[~table["converged"].astype(bool)]
    counts = ", ".join(f"{method} {number}" for method, number in failed["method"].value_counts().items())
    return f"certificates not converged: {len(failed)} of {len(table)}" + (f" ({counts})" if counts else "")


@contextmanager
def locked(study: Study) -> Iterator[None]:
    """Hold a study for one run, at most until the process ends. Raises UserError when another holds it."""
    lock = FileLock(own_folder(study) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"the study {study.name!r} is being run by another process; wait until it ends, or end it"
        ) from None
    except OSError as error:
        raise UserError(
            f"{own_folder(study)}: cannot be written ({error.strerror}); free space there, or set XAI_RUNS"
        ) from None
    try:
        yield
    finally:
        lock.release()
