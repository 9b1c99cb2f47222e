"""Runs of a study that are killed at random moments, and the run after them: `python -m tests.kills 50`.

A runner or its kernel gets SIGKILL. No kernel may outlive its runner by more than seconds, a run after a kill goes on,
and in the end every file is, to the byte, what a run leaves that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from xai_utils.files import ROOT

SURVIVES = 10  # seconds that a kernel may outlive its runner
RUN = """
import sys
from pathlib import Path
from xai_utils.study import run
run.run.__defaults__ = (*run.run.__defaults__[:-2], True, Path(sys.argv[2]))
from xai_utils import __main__
sys.exit(__main__.main(["run", "--study", sys.argv[1]]))
"""  # the command `run`, on notebooks that lie elsewhere, and keeping those that are done as `report` does


@contextmanager
def running(study: Path, runs: Path, notebooks: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of a study in a process group of its own, all of which is gone afterwards."""
    runner = subprocess.Popen(
        [sys.executable, "-c", RUN, str(study), str(notebooks)],
        cwd=ROOT,
        env=os.environ | {"XAI_RUNS": str(runs), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield runner
    finally:
        runner.kill()
        runner.communicate()


def finished(study: Path, runs: Path, notebooks: Path) -> float:
    """A run to its end; the seconds that it took."""
    start = time.monotonic()
    with running(study, runs, notebooks) as runner:
        _, said = runner.communicate(timeout=600)
        assert runner.returncode == 0, said
    return time.monotonic() - start


def killed(study: Path, runs: Path, notebooks: Path, after: float, whom: str) -> bool:
    """A run that is killed after so many seconds, itself or its kernel, unless it has ended by then. Whether it was.

    A kernel that dies after its last cell is missed by nobody: such a run has ended.
    """
    with running(study, runs, notebooks) as runner:
        time.sleep(after)
        if runner.poll() is not None:
            return False
        kernels = psutil.Process(runner.pid).children(recursive=True)
        for process in [psutil.Process(runner.pid)] if whom == "runner" else kernels:
            with suppress(psutil.NoSuchProcess):  # a kernel that has just ended
                process.send_signal(signal.SIGKILL)
        _, said = runner.communicate(timeout=60)
        _, alive = psutil.wait_procs(kernels, timeout=SURVIVES)
        assert not alive, f"outlived its runner: {[process.cmdline() for process in alive]}"
        if whom == "kernel" and runner.returncode != 0:
            assert "the kernel" in said.splitlines()[-1] and "Traceback" not in said, said
        return runner.returncode != 0


def left(runs: Path) -> dict[str, bytes]:
    """Every file that a run has left, but the marks of its time and its locks."""
    files = [path for path in runs.rglob("*") if path.is_file() and path.name not in (".begun", ".lock")]
    return {path.relative_to(runs).as_posix(): path.read_bytes() for path in files}


def kills(study: Path, home: Path, notebooks: Path, count: int, seed: int) -> None:
    """`count` kills, one after the other, then a run to the end. Raises AssertionError where something else is left."""
    chance = random.Random(seed)
    seconds = finished(study, home / "whole", notebooks)
    for number in range(count):
        after, whom = chance.uniform(0.2, 1) * seconds, ("runner", "kernel")[number % 2]
        died = killed(study, home / "killed", notebooks, after, whom)
        if sys.stdout.isatty():
            print(f"{number + 1} of {count}: the {whom} after {after:.1f} s")
        if not died or number % 5 == 4:  # what is kept makes the next ones quick: begin again
            ended(study, home, notebooks)


def same(home: Path) -> None:
    whole, found = left(home / "whole"), left(home / "killed")
    assert found.keys() == whole.keys(), found.keys() ^ whole.keys()
    assert found == whole, [name for name in whole if found[name] != whole[name]]


def ended(study: Path, home: Path, notebooks: Path) -> None:
    """The run after some kills, or after one that has ended; its files go."""
    finished(study, home / "killed", notebooks)
    same(home)
    for path in sorted((home / "killed").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def real(home: Path) -> Path:
    """A study of two tiny models, for the notebooks as they are."""
    from tests.tiny import save_tiny

    models = [{"label": name, "model": save_tiny(home / name, seed=seed).name} for seed, name in enumerate("ab")]
    texts = [{"id": f"t{n}", "text": text, "answer": " Paris."} for n, text in enumerate(("The capital of", "Water"))]
    few = {"budget": 20, "draws": 3, "steps": 2, "continuation": 1, "tolerance": 0.5}
    study = home / "mine.yaml"
    study.write_text(json.dumps({"models": models, "texts": texts, "methods": ["ablation"], **few}))
    return study


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        kills(real(Path(folder)), Path(folder), ROOT / "notebooks", int(sys.argv[1]), seed=int(time.time()))
    print(f"{sys.argv[1]} kills: each run went on, and ended in the same bytes")
