"""The notebooks of a study, one after the other.

papermill inspects and execute.py executes; what is here is parameters that exist and keep their type, and two runs on
one study.
"""

import ast
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import nbformat
import papermill
from filelock import FileLock, Timeout

from xai_utils.errors import UserError, nearest
from xai_utils.evaluation.thresholds import COMPETENT
from xai_utils.files import ROOT, locate
from xai_utils.study import results
from xai_utils.study.config import Study, load_study
from xai_utils.study.execute import CELL_SECONDS, NotebookRun, execute, headings
from xai_utils.study.kernel import OwnKernel, kernels
from xai_utils.study.leftovers import Leftovers
from xai_utils.study.progress import Line
from xai_utils.study.unchanged import Record

NOTEBOOKS = ROOT / "notebooks"
RECORD = "executed.json"  # of the last whole run, beside a study's results


def run(
    study_file: str | Path,
    only: Sequence[str] = (),
    settings: Sequence[str] = (),
    timeout: int = CELL_SECONDS,
    fresh: bool = False,
    debug: bool = False,
    kernel: Callable[[], OwnKernel] | None = None,
    changed: bool = False,
    notebooks: Path = NOTEBOOKS,
) -> list[NotebookRun]:
    """Execute a study's notebooks, or those that `only` names by number; returns all that were asked for.

    `settings` are `key=value` for the notebooks' own parameters; `timeout` is in seconds a cell; with `fresh` each
    notebook has a kernel of its own, else they share one that is made fresh in between and keeps its models, which may
    be the caller's, given by `kernel`; `debug` shows where a cell failed. A published study's own notebooks are
    replaced by their executed copies; all other copies go to runs/<study>/notebooks/. Figures, and after a whole run
    tables, that nothing has written this time are removed. Raises UserError.
    """
    study = load_study(study_file)
    if "XAI_RUNS" in os.environ:  # for kernels, which work in another folder
        os.environ["XAI_RUNS"] = str(Path(os.environ["XAI_RUNS"]).resolve())
    jobs = plan(study, study_file, only, settings, notebooks)
    with locked(study):
        left, record = Leftovers(results.folders(study), whole=not only), Record(study, own_folder(study) / RECORD)
        left.keep(record.unchanged(jobs if changed else []))
        asked = jobs[len(record.done) :]
        if kept := ", ".join(job.number for job in jobs[: len(record.done)]):
            print(f"{study.name}: kept as they are, for nothing that they read has changed: {kept}", file=sys.stderr)
        with (
            Line(len(asked), results.folders(study).figs) as line,
            nullcontext(kernel) if kernel else kernels(own_folder(study) / "kernels", fresh) as given,
        ):
            for job in asked:
                line.notebook(job.source.stem, headings(nbformat.read(job.source, as_version=4)))
                left.before(job.number)
                read = record.key(job)
                execute(job, timeout, line, given(), debug)
                left.after(job.number)
                if not only and not settings:
                    record.add(job, read, [*left.written(), job.output])
        left.end()
    return jobs


def plan(
    study: Study,
    study_file: str | Path,
    only: Sequence[str],
    settings: Sequence[str],
    notebooks: Path = NOTEBOOKS,
) -> list[NotebookRun]:
    """What is to be executed, with every parameter checked before anything starts. Raises UserError."""
    sources = select(only, notebooks, study.notebooks)
    declared = {source: papermill.inspect_notebook(source) for source in sources}
    given = parse_settings(settings, declared)
    jobs = []
    for source in sources:
        parameters = {name: value for name, value in given.items() if name in declared[source]}
        own = study.published and source.stem.split("_")[0] in study.notebooks  # whose default this study is
        if not own:
            if "study" not in declared[source]:
                raise UserError(f"{source.name}: has no parameter 'study'; declare it in the cell tagged 'parameters'")
            parameters["study"] = _portable(locate(study_file))
        folder = notebooks if own and not given else own_folder(study) / "notebooks"
        jobs.append(NotebookRun(source, folder / source.name, parameters))
    return jobs


def select(only: Sequence[str], notebooks: Path, otherwise: Sequence[str]) -> list[Path]:
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
        raise UserError(f"{notebooks}: holds no notebook of the study; expected {', '.join(otherwise)}")
    return [found[name] for name in sorted(chosen)]


def _match(name: str, found: dict[str, Path]) -> list[str]:
    stem = Path(name).name.removesuffix(".ipynb")
    return [known for known in found if known == stem or known.split("_")[0] == stem.zfill(2)]


def parse_settings(settings: Sequence[str], declared: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """`key=value` texts as values of the type that the notebooks' own default has. Raises UserError."""
    known = {name: parameter for parameters in declared.values() for name, parameter in parameters.items()}
    known.pop("study", None)
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


def not_given(study: Study) -> str:
    """One line that names the texts whose answer no model of the study gives; empty where every answer is given."""
    try:
        table = results.read_table(study, "behaviour")
    except UserError:
        return ""
    best = table.groupby("text", sort=False)["probability"].max()
    texts = ", ".join(best[best < COMPETENT].index)
    return f"answers that no model gives (probability below {COMPETENT}): {texts}" if texts else ""


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
