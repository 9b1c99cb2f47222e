"""The runner on tiny notebooks of its own: what succeeds, what fails and how that is said, what is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from filelock import FileLock
from jupyter_core.paths import jupyter_runtime_dir
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from tests.kills import SURVIVES, kills
from xai_utils.__main__ import app, main
from xai_utils.attribution.methods import METHODS
from xai_utils.errors import UserError
from xai_utils.files import ROOT, TEMPORARY, whole
from xai_utils.study import kernel, results
from xai_utils.study.config import load_study
from xai_utils.study.execute import NotebookRun, execute
from xai_utils.study.kernel import OwnKernel, kernels
from xai_utils.study.progress import Line
from xai_utils.study.run import locked, not_converged, not_given, parse_settings, plan, run, select, typed

PARAMETERS = 'study = "studies/default.yaml"\ncode = "a"\nlayer = 0\nwidgets = False\nsigma = 0.1\nheads = [0, 1]'


@pytest.fixture
def book(tmp_path):
    """Writes notebooks/<name>.ipynb with a parameters cell and the given code cells."""

    def _book(name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
        first = new_code_cell(parameters)
        first.metadata["tags"] = ["parameters"]
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        notebook = new_notebook(cells=[new_markdown_cell("# A notebook"), first, *map(new_code_cell, cells)])
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        path.write_text(nbformat.writes(notebook))
        return path

    return _book


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def notebooks(tmp_path):
    return tmp_path / "notebooks"


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("models: [{label: a, model: m}]\ntexts: [{id: a, text: b}]\n")
    return path


def texts(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for c in cells if c.cell_type == "code" for o in c.outputs)


def error_of(job: NotebookRun, timeout: int = 60) -> str:
    with pytest.raises(UserError) as caught:
        execute(job, timeout)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_goes_through_the_sequence_in_order(book, notebooks, study, tmp_path):
    log = tmp_path / "log"
    for name in ("03_c", "01_a", "02_b", "06_f", "00_z"):
        book(name, f"print(study, layer)\nopen({str(log)!r}, 'a').write({name!r} + ' ')")
    source = (notebooks / "01_a.ipynb").read_bytes()
    jobs = run(study, settings=["layer=3"], notebooks=notebooks)
    assert log.read_text() == "01_a 02_b 03_c "
    assert [job.output for job in jobs] == [
        tmp_path / f"runs/mine/notebooks/{n}.ipynb" for n in ("01_a", "02_b", "03_c")
    ]
    assert texts(jobs[1].output) == f"{study} 3\n"
    assert (notebooks / "01_a.ipynb").read_bytes() == source


def test_the_first_failure_ends_the_run(book, notebooks, study, runs, tmp_path):
    book("01_a")
    book("02_b", "1 / 0")
    book("03_c", f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match=r"02_b.ipynb, cell 2: ZeroDivisionError"):
        run(study, notebooks=notebooks)
    assert [path.name for path in runs.rglob("*.ipynb")] == ["01_a.ipynb"] and not (tmp_path / "ran").exists()


def test_the_kernel_is_this_python_in_the_repository(book, tmp_path, monkeypatch):
    monkeypatch.setenv("WANTED", sys.prefix)
    out = tmp_path / "out.ipynb"
    execute(
        NotebookRun(
            book("01_a", "import sys, os, xai_utils\nprint(sys.prefix == os.environ['WANTED'], os.getcwd())"), out
        )
    )
    assert texts(out) == "True .\n"  # the root's machine path is not shown


def test_a_published_notebook_is_replaced_by_its_clean_copy(book):
    path = book(
        "01_a",
        "import sys, os\nprint(os.getcwd() + '/xai_utils', file=sys.stderr)",
        "print('  5%|5   | 1/20 [00:01<00:19]', file=sys.stderr)",
        "import ipywidgets\nipywidgets.IntSlider()",
        "import numpy as np\nnp.arange(3)",
    )
    execute(NotebookRun(path, path))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert [cell.metadata for cell in code] == [{"tags": ["parameters"]}, {}, {}, {}, {}]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert code[1].outputs[0].text == "xai_utils\n"
    assert code[2].outputs == [] and code[3].outputs == []  # a progress bar, a widget
    assert code[4].outputs[0].data["text/plain"] == "array([0, 1, 2])"
    raw = path.read_text()
    assert str(ROOT) not in raw and "papermill" not in raw and "injected" not in raw and "widget-view" not in raw
    assert not [other for other in path.parent.iterdir() if other != path]


def test_running_again_gives_the_same_bytes(book):
    path = book("01_a", "print('a')", "1 + 1", "import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    for job in (NotebookRun(path, path), NotebookRun(path, path.with_name("out.ipynb"), {"layer": 3})):
        execute(job)
        first = job.output.read_bytes()
        execute(job)
        assert job.output.read_bytes() == first and b"image/png" in first


def test_the_published_study_writes_its_notebooks_in_place_and_with_settings_it_does_not(book, notebooks, runs, study):
    source = book("01_a")
    book("02_b")
    published = load_study(study).model_copy(update={"published": True, "notebooks": ("01",)})
    assert plan(published, study, (), (), notebooks=notebooks) == [NotebookRun(source, source, {})]
    (job,) = plan(published, study, (), ["layer=1"], notebooks=notebooks)
    assert job == NotebookRun(source, runs / "mine/notebooks/01_a.ipynb", {"layer": 1})
    (job,) = plan(published, study, ("02",), (), notebooks=notebooks)  # another study's notebook
    assert job == NotebookRun(notebooks / "02_b.ipynb", runs / "mine/notebooks/02_b.ipynb", {"study": str(study)})


def test_a_failing_cell_is_named_and_leaves_the_old_output(book, tmp_path, capfd):
    out = tmp_path / "out.ipynb"
    out.write_text("old")
    path = book("02_b", "x = 1", "def f():\n    return x / 0\n\nf()")
    told = "02_b.ipynb, cell 3: ZeroDivisionError: division by zero"
    assert error_of(NotebookRun(path, out)) == f"{told}; --debug shows where"
    assert out.read_text() == "old" and capfd.readouterr().err == ""
    with pytest.raises(UserError) as caught:
        execute(NotebookRun(path, out), debug=True)
    assert str(caught.value) == told and "return x / 0" in capfd.readouterr().err


def test_cells_are_counted_without_the_injected_one(book, tmp_path):
    path = book("02_b", "x = 1", "1 / (layer - 5)")
    message = error_of(NotebookRun(path, tmp_path / "out.ipynb", {"layer": 5}))
    assert message.startswith("02_b.ipynb, cell 3: ZeroDivisionError: division by zero; ")


def test_a_users_error_inside_a_cell_is_said_as_it_is(book, tmp_path, capfd):
    path = book("02_b", "from xai_utils.study.config import load_study\nload_study('studies/smal.yaml')")
    message = error_of(NotebookRun(path, tmp_path / "out.ipynb"))
    expected = "studies/smal.yaml: no such study file; did you mean 'studies/small.yaml'?"
    assert message == f"02_b.ipynb, cell 2: {expected}"
    assert "Traceback" not in capfd.readouterr().err


def test_a_killed_kernel_is_not_taken_for_success(book, tmp_path):
    out = tmp_path / "out.ipynb"
    path = book("02_b", "x = 1", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "x = 2")
    message = error_of(NotebookRun(path, out))
    assert message.startswith("02_b.ipynb, cell 3: the kernel was killed, most likely for lack of memory")
    assert not out.exists()


def test_a_cell_that_takes_too_long(book, tmp_path):
    path = book("02_b", "import time\ntime.sleep(60)")
    start = time.monotonic()
    message = error_of(NotebookRun(path, tmp_path / "out.ipynb"), timeout=1)
    assert message == "02_b.ipynb, cell 2: took longer than 1 s; allow more with --timeout SECONDS"
    assert time.monotonic() - start < 30


def test_a_kernel_that_finds_its_port_taken_is_started_again(book, tmp_path, monkeypatch):
    real, calls = OwnKernel.start_kernel, []

    async def collide(self, **options):
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("Kernel died before replying to kernel_info")
        await real(self, **options)

    monkeypatch.setattr(OwnKernel, "start_kernel", collide)
    monkeypatch.setattr(kernel.time, "sleep", lambda seconds: None)
    out = tmp_path / "out.ipynb"
    execute(NotebookRun(book("01_a", "print('up')"), out))
    assert texts(out) == "up\n" and len(calls) == 3

    async def die(self, **options):
        raise RuntimeError("Kernel died\nagain")

    monkeypatch.setattr(OwnKernel, "start_kernel", die)
    assert (
        error_of(NotebookRun(book("01_a"), out))
        == "01_a.ipynb: the kernel did not start (Kernel died again); try again"
    )


KILLS_ITSELF = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def test_a_kernel_that_dies_between_two_notebooks_is_begun_again(book, tmp_path, monkeypatch):
    died = tmp_path / "died"
    once = f"from pathlib import Path\nif not Path({str(died)!r}).exists():\n    Path({str(died)!r}).touch()\n    "
    monkeypatch.setattr(kernel, "FRESH", once + KILLS_ITSELF)
    out = tmp_path / "out.ipynb"
    execute(NotebookRun(book("01_a", "print('up')"), out))
    assert texts(out) == "up\n" and died.exists()


def test_what_a_kernel_runs_beside_notebooks_prints_or_says_why_not(tmp_path):
    with kernels(tmp_path / "kernels") as given:
        own = given()
        assert own.run("print('a'); print('b')") == "a\nb\n"
        with pytest.raises(UserError, match="^what; do$"):
            own.run("from xai_utils.errors import UserError\nraise UserError('what; do')")
        with pytest.raises(RuntimeError, match="^ZeroDivisionError: division by zero"):
            own.run("1 / 0")
        with pytest.raises(UserError, match="^the kernel was killed, most likely for lack of memory"):
            own.run(KILLS_ITSELF)
        assert own.run("print('again')") == "again\n"


DIRTY = [
    "import os, sys, warnings\nimport matplotlib.pyplot as plt\nprint('pid', os.getpid())",
    "left = 1\nos.chdir('/')\nos.environ['LEFT'] = '1'\nsys.path.insert(0, 'left')\nwarnings.simplefilter('ignore')",
    "plt.rcParams['figure.figsize'] = (1, 1)\nplt.gcf()\nfirst = plt.get_fignums()\nprint(first)",
]
CLEAN = [
    "import os, sys, warnings\nimport matplotlib.pyplot as plt\nprint('pid', os.getpid())",
    "print('left' in dir(), os.environ.get('LEFT'), 'left' in sys.path, os.getcwd() == ROOT)",
    "warnings.warn('heard')",
    "print(plt.get_fignums(), plt.rcParams['figure.figsize'], plt.get_backend())",
]


@pytest.mark.parametrize("fresh", [False, True])
def test_notebooks_of_a_run_share_a_process_and_nothing_else(book, notebooks, study, fresh):
    given = f"ROOT = {str(ROOT)!r}\nstudy = ''"
    book("01_a", *DIRTY, parameters=given)
    book("02_b", *CLEAN, parameters=given)
    jobs = run(study, fresh=fresh, notebooks=notebooks)
    first, second = (texts(job.output) for job in jobs)
    pids = [re.search(r"pid (\d+)", text)[1] for text in (first, second)]
    assert (len(set(pids)) == 1) is not fresh
    assert "False None False True" in second and "UserWarning: heard" in second
    assert second.splitlines()[-1] == "[] [6.4, 4.8] module://matplotlib_inline.backend_inline"
    code = [cell for cell in nbformat.read(jobs[1].output, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids[1]), 0)


def test_two_studies_and_a_report_share_a_process(book, notebooks, study, tmp_path):
    """What is run beside notebooks finds the modules that they loaded, and fails as a command does."""
    other = tmp_path / "other.yaml"
    other.write_text(study.read_text())
    book("01_a", "import os\nimport colorsys\nprint(os.getpid())")
    with kernels(tmp_path / "kernels") as given:
        jobs = [job for file in (study, other) for job in run(file, kernel=given, notebooks=notebooks)]
        told = given().run("import os, sys\nprint(os.getpid(), 'colorsys' in sys.modules)")
        with pytest.raises(UserError, match=r"nowhere.yaml: no such study file"):
            given().run("from xai_utils.study.config import load_study\nload_study('nowhere.yaml')")
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            given().run("1 / 0")
    pids = {texts(job.output).strip() for job in jobs}
    assert len(jobs) == 2 and pids == {told.split()[0]} and told.split()[1] == "True"
    assert not (tmp_path / "kernels").exists()


PROGRESS = "from xai_utils.study.progress import progress"


def test_what_a_kernel_says_of_its_progress_is_shown_and_not_kept(book, notebooks, study, tmp_path):
    loop = "for case in progress([('x', 'one'), ('x', 'two')], 'working'):\n    time.sleep(0.3)"
    wait = f"with files.locked(Path({str(tmp_path / 'model')!r})):\n    pass"  # another process holds it
    book(
        "01_a",
        "import time\nfrom pathlib import Path\nfrom xai_utils import files",
        f"{PROGRESS}\n{loop}",
        wait,
        "print(1)",
    )
    said = []
    (job,) = run(study, notebooks=notebooks)
    with held(tmp_path / "model", said):
        execute(job, line=Told(said))
    cells = [cell for cell in nbformat.read(job.output, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells[:-1])
    assert [(message.get("case"), message.get("done"), message.get("of")) for message in said] == [
        ("x/one", 0, 2),
        ("x/two", 1, 2),
        (None, None, None),
        (None, None, None),
    ]
    assert said[3] == {"notice": "another process is making model: waiting for it"}
    assert said[0]["left"] is None and 0.3 <= said[1]["left"] < 3


@contextmanager
def held(target: Path, said: list[dict]):
    """The lock of a target is another's until somebody has said that he waits."""
    lock = FileLock(target.with_name(f".lock-{target.name}"), thread_local=False)
    lock.acquire()

    def release() -> None:
        while not any("notice" in message for message in said):
            time.sleep(0.05)
        lock.release()

    threading.Thread(target=release, daemon=True).start()
    yield


class Told(Line):
    """A line that keeps what it is told."""

    def __init__(self, said):
        super().__init__(1, Path("nowhere"))
        self.said = said

    def told(self, message):
        self.said.append(message)


def test_a_misspelt_parameter_lists_the_right_ones_before_anything_runs(book, notebooks, study, tmp_path):
    book("01_a", f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(
        UserError, match=r"^--set layr: no notebook of this run has that parameter; did you mean 'layer'\?$"
    ):
        run(study, settings=["layr=1"], notebooks=notebooks)
    with pytest.raises(UserError, match="known are code, heads, layer, sigma, widgets$"):
        run(study, settings=["zzz=1"], notebooks=notebooks)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("code=0012", "0012"),
        ("code=a=b", "a=b"),
        ("code=", ""),
        ("code=True", "True"),
        ("layer=12", 12),
        ("layer=-1", -1),
        ("widgets=true", True),
        ("widgets=No", False),
        ("sigma=1", 1.0),
        ("sigma=1e-3", 0.001),
        ("heads=[2]", [2]),
    ],
)
def test_values_have_the_type_of_the_default(book, setting, value):
    import papermill

    path = book("01_a")
    (got,) = parse_settings([setting], {path: papermill.inspect_notebook(path)}).values()
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("layer=first", r"--set layer=first: expected a int like the default 0"),
        ("layer=1.5", "expected a int"),
        ("widgets=maybe", "expected a bool like the default False"),
        ("sigma=much", "expected a float"),
        ("heads=2", "expected a list"),
        ("layer", "--set layer: expected key=value"),
        ("study=x.yaml", "the study is named by --study"),
    ],
)
def test_values_of_another_type_are_refused(book, setting, expected):
    import papermill

    path = book("01_a")
    with pytest.raises(UserError, match=expected):
        parse_settings([setting], {path: papermill.inspect_notebook(path)})


def test_a_parameter_without_a_default_takes_what_is_written():
    assert typed("x", "12", "None") == 12 and typed("x", "a b", "None") == "a b"


def test_a_parameter_reaches_only_the_notebooks_that_have_it(book, notebooks, study):
    book("01_a")
    book("02_b", parameters='study = "s"\ntop = 3')
    jobs = plan(load_study(study), study, (), ["top=5"], notebooks=notebooks)
    assert [job.parameters for job in jobs] == [{"study": str(study)}, {"study": str(study), "top": 5}]


def test_a_notebook_that_cannot_be_told_the_study(book, notebooks, study):
    book("01_a", parameters="x = 1")
    with pytest.raises(UserError, match="01_a.ipynb: has no parameter 'study'"):
        plan(load_study(study), study, (), (), notebooks=notebooks)


def test_only_picks_by_number_or_name(book, notebooks):
    for name in ("00_z", "01_a", "02_b", "06_f"):
        book(name)
    stems = lambda *only: [path.stem for path in select(only, notebooks, ("01", "02"))]  # noqa: E731
    assert stems() == ["01_a", "02_b"]
    assert stems("02", "1") == ["01_a", "02_b"] and stems("06,00") == ["00_z", "06_f"]
    assert stems("notebooks/02_b.ipynb") == ["02_b"]
    with pytest.raises(UserError, match="--only 7: no such notebook; known are 00_z, 01_a, 02_b, 06_f"):
        stems("7")
    with pytest.raises(UserError, match="holds no notebook of the study; expected 01, 02"):
        select((), notebooks.parent, ("01", "02"))


def test_two_runs_on_one_study(book, notebooks, study):
    book("01_a", "x = 1")
    with locked(load_study(study)), pytest.raises(UserError, match="'mine' is being run by another"):
        run(study, notebooks=notebooks)
    assert run(study, notebooks=notebooks)  # and is free again


def test_results_that_cannot_be_written(book, notebooks, runs, study):
    book("01_a")
    runs.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"runs/mine: cannot be written \(Not a directory\)"):
        run(study, notebooks=notebooks)


@pytest.mark.parametrize(
    ("number", "more"), [(signal.SIGINT, ["--workers", "2"]), (signal.SIGTERM, [])], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_run_leaves_the_old_output_and_no_kernel(book, notebooks, runs, study, tmp_path, number, more):
    pid_file = tmp_path / "pid"
    book("01_a", f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(120)")
    out = runs / "mine/notebooks/01_a.ipynb"
    out.parent.mkdir(parents=True)
    out.write_text("old")
    code = f"""
import sys; from pathlib import Path; from xai_utils import __main__
from xai_utils.study import run
run.run.__defaults__ = (*run.run.__defaults__[:-1], Path({str(notebooks)!r}))
sys.exit(__main__.main(["run", "--study", {str(study)!r}, *{more!r}]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 60
    while not pid_file.exists() or not pid_file.read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors and "leaked" not in errors
    first, last = errors.split("\n\n")  # the line of progress is ended first
    assert all(line.startswith("01_a (1 of 1), ") for line in first.splitlines())
    assert last == "stopped; what was computed is kept: run the same command again and it goes on\n"
    assert not psutil.wait_procs(started, timeout=SURVIVES)[1]
    assert process.returncode == 128 + number and not (runs / "mine/kernels").exists()
    assert [path.name for path in out.parent.iterdir()] == ["01_a.ipynb"] and out.read_text() == "old"


WRITES = """
import os, re
from pathlib import Path
home = Path(os.environ["XAI_RUNS"]) / "mine"
for label in re.findall(r"label: (\\w)", Path(study).read_text()):
    for file in (f"figs/{NUMBER}_kind.{label}.png", f"report/tables/{label}.json", f"data/scores/{label}.parquet"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).touch()
"""


def test_what_a_study_no_longer_has_goes_when_it_runs_again(book, notebooks, runs, study):
    for name in ("01_a", "02_b"):
        book(name, f"NUMBER = {name[:2]!r}{WRITES}")
    reads = "print(sorted(path.name for path in home.glob('data/*/*')))"  # before it writes its own
    book("05_e", f"NUMBER = '05'{WRITES.replace('for label', f'{reads}{chr(10)}for label')}")
    models = "models: [{label: a, model: m}, {label: b, model: m}]\ntexts: [{id: a, text: b}]\n"
    study.write_text(models)
    run(study, notebooks=notebooks)
    names = lambda folder: sorted(path.name for path in (runs / "mine" / folder).rglob("*.*"))  # noqa: E731
    assert names("figs") == [f"{number}_kind.{label}.png" for number in ("01", "02", "05") for label in "ab"]
    (runs / "mine/figs/notes.txt").write_text("somebody's own")
    (runs / "mine/figs/swap.png").touch()  # of an earlier report
    study.write_text(models.replace("{label: b, model: m}", "{label: c, model: m}"))
    run(study, only=["02"], notebooks=notebooks)
    left = ["01_kind.a.png", "01_kind.b.png", "02_kind.a.png", "02_kind.c.png", "05_kind.a.png", "05_kind.b.png"]
    assert names("figs") == [*left, "notes.txt", "swap.png"]
    assert names("report/tables") == ["a.json", "b.json", "c.json"]
    jobs = run(study, notebooks=notebooks)
    new = [f"{number}_kind.{label}.png" for number in ("01", "02", "05") for label in "ac"]
    assert names("figs") == [*new, "notes.txt"] and names("report/tables") == ["a.json", "c.json"]
    assert names("data") == ["a.parquet", "c.parquet"] and "['a.parquet', 'c.parquet']" in texts(jobs[-1].output)


def test_what_another_published_study_has_beside_it_stays(book, notebooks, runs, study):
    book("01_a")
    beside = [runs / "mine" / file for file in ("figs/lora/01_a.png", "report/tables/lora/a.csv")]
    for file in beside:
        file.parent.mkdir(parents=True)
        file.touch()
    run(study, notebooks=notebooks)
    assert all(file.exists() for file in beside)


def test_what_a_killed_process_has_left_goes(book, notebooks, runs, study):
    book("01_a")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folders = [runs / name for name in ("mine/data/scores", "mine/figs", "mine/notebooks", "mine/kernels", "cache/ab")]
    for folder in folders:
        folder.mkdir(parents=True)
        for pid in (gone.pid, os.getpid()):
            (folder / f".all-{pid}-x1y2.json").touch()
        (folder / ".all-mine-x1y2.json").touch()
    os.utime(folders[-1] / f".all-{gone.pid}-x1y2.json", (1, 1))
    (folders[-1] / f".new-{gone.pid}-x1y2.json").touch()  # of a machine that shares the folder, perhaps
    run(study, notebooks=notebooks)
    left = sorted(path.relative_to(runs) for path in runs.rglob(".*-*") if path.is_file())
    mine = [folder.relative_to(runs) / f".all-{who}-x1y2.json" for folder in folders for who in (os.getpid(), "mine")]
    kept = [file for file in mine if "kernels" not in file.parts]
    assert left == sorted([*kept, Path(f"cache/ab/.new-{gone.pid}-x1y2.json")])
    assert not (runs / "mine/kernels").exists()


WORKS = """
import os, time
from pathlib import Path
from xai_utils.files import write_text
home = Path(os.environ["XAI_RUNS"])
for place in range(20):
    kept = home / "cache" / f"{NUMBER}-{place}.json"
    if not kept.exists():
        time.sleep(0.05)
        write_text(kept, str(place) * 10000)
write_text(home / "mine/data/scores" / f"{NUMBER}.csv", str(range(1000)))
write_text(home / "mine/report/tables" / f"{NUMBER}.csv", str(range(1000)))
print(len(list((home / "cache").glob(f"{NUMBER}-*"))))
"""


def test_killed_at_random_moments_a_run_goes_on_and_ends_in_the_same_bytes(book, notebooks, study, tmp_path):
    """Light notebooks, so that five kills take seconds; `python -m tests.kills 50` does it with the kit's own."""
    for name in ("01_a", "02_b"):
        book(name, f"NUMBER = {name[:2]!r}{WORKS}")
    kills(study, tmp_path / "home", notebooks, 5, seed=20)


def test_the_file_that_is_written_is_named_as_what_goes(tmp_path):
    with whole(tmp_path / "a.b.json") as temporary:
        assert re.fullmatch(TEMPORARY, temporary.name)[1] == str(os.getpid())


def test_a_kernel_s_connection_is_the_study_s_and_goes_with_it(book, notebooks, runs, study):
    book("01_a", "import sys\nprint([name for name in sys.argv if name.endswith('.json')])")
    before = set(Path(jupyter_runtime_dir()).glob("kernel-*"))
    (job,) = run(study, notebooks=notebooks)
    assert f"{runs}/mine/kernels/" in texts(job.output)
    assert set(Path(jupyter_runtime_dir()).glob("kernel-*")) == before and not (runs / "mine/kernels").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("KeyError('x')", "error: KeyError: 'x'; --debug shows where"),
        (
            "RuntimeError('Error(s) in loading:\\n\\tsize mismatch')",
            "error: RuntimeError: Error(s) in loading: size mismatch; ",
        ),
        ("UserError('what; do')", "error: what; do"),
    ],
)
def test_an_error_is_one_line_and_its_rest_is_asked_for(monkeypatch, capsys, error, told):
    def fails(*_: object) -> None:
        raise eval(error)

    monkeypatch.setattr("xai_utils.models.convert.built_in", fails)
    assert main(["fetch"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(told)
    for arguments in (["fetch", "--debug"], ["--debug", "fetch"]):
        assert main(arguments) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("Traceback") and lines[-1].startswith(told.removesuffix("--debug shows where"))


def test_the_command_line_says_one_line_and_fails(tmp_path):
    command = [sys.executable, "-m", "xai_utils", "run", "--study", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: nowhere.yaml: no such study file; ") and done.stderr.count("\n") == 1


def test_the_command_line_lists_its_commands_and_the_methods():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0 and all(
        f"  {name} " in result.output for name in ("run", "report", "fetch", "methods")
    )
    lines = CliRunner().invoke(app, ["methods"]).output.splitlines()
    assert [line.split(":")[0].split()[0] for line in lines if not line.startswith(" ")] == list(METHODS)


def test_certificates_that_did_not_converge_are_counted_a_method(study):
    mine = load_study(study)
    assert not_converged(mine) == ""
    results.write_table(pd.DataFrame(), mine, "certificates", "none")
    assert not_converged(mine) == ""
    table = pd.DataFrame({"method": ["a", "a", "b", "b", "b"], "converged": [True, False, False, False, True]})
    results.write_table(table, mine, "certificates", "one")
    results.write_table(table[table["converged"]], mine, "certificates", "two")
    assert not_converged(mine) == "certificates not converged: 3 of 7 (b 2, a 1)"


def test_answers_that_no_model_gives_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    mine = load_study(ROOT / "studies" / "small.yaml")
    assert not_given(mine) == ""
    rows = [("a", 0.2), ("a", 0.001), ("b", 0.004), ("b", 0.001), ("c", None)]
    table = pd.DataFrame(rows, columns=["text", "probability"]).assign(model=["x", "y", "x", "y", "x"])
    results.write_table(table, mine, "behaviour")
    assert not_given(mine) == "answers that no model gives (probability below 0.01): b"


def test_plain_papermill_works_as_well(book, study, tmp_path):
    path, out = book("01_a", "print(study)"), tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(path), str(out), "-p", "study", str(study), "--kernel", "python3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["cells"][3]["outputs"][0]["text"] == [f"{study}\n"]
