"""Processes that fill one cache: no result is computed twice, and a process that dies holds nobody up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xai_utils.errors import UserError
from xai_utils.study.sharing import Claims

HOLDER = """
import sys, time; from pathlib import Path; from xai_utils.study.sharing import Claims
claims = Claims()
assert claims.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
Path(sys.argv[1]).write_text("theirs")
claims.drop(Path(sys.argv[1]))
"""


@pytest.fixture
def result(tmp_path):
    return tmp_path / "ab" / "abc.json"


@pytest.fixture
def other(result):
    """Another process that holds a claim on the result until it reads a line, then has computed it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(result)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_what_another_process_computes_is_left_to_it(result, other):
    claims = Claims()
    assert not claims.take(result)
    other.stdin.write("go\n")
    other.stdin.flush()
    assert not claims.take(result, wait=True)
    assert result.read_text() == "theirs" and [path.name for path in result.parent.iterdir()] == ["abc.json"]


def test_a_process_that_was_killed_holds_nobody_up(result, other):
    claims = Claims()
    assert not claims.take(result)
    os.kill(other.pid, signal.SIGKILL)
    assert claims.take(result, wait=True) and not result.exists()
    claims.drop(result)
    assert list(result.parent.iterdir()) == []


def test_what_is_there_is_not_claimed(result):
    claims = Claims()
    assert claims.take(result)
    result.write_text("ours")
    claims.drop_all()
    assert not claims.take(result) and not claims.take(result, wait=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Claims().take(tmp_path / "file" / "a.json")


FILLER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import xai_utils.study.explainer as explain
log = Path(sys.argv[1]) / sys.argv[2]
def computed(jobs, models):
    for job in jobs:
        with log.open("a") as file:
            file.write(job.file.stem + "\\n")
        time.sleep(0.05)
        yield job, "done"
explain.computed = computed
book = SimpleNamespace(models={})
while not (Path(sys.argv[1]) / "go").exists():
    time.sleep(0.01)
jobs = [SimpleNamespace(file=Path(sys.argv[1]) / "cache" / f"{n}.json") for n in range(30)]
explain.Explainer.fill(book, jobs)
assert all(job.file.read_text() == "done" for job in jobs)
"""


def test_two_processes_with_the_same_work_do_each_case_once(tmp_path):
    fillers = [subprocess.Popen([sys.executable, "-c", FILLER, str(tmp_path), name]) for name in ("a", "b")]
    time.sleep(1)
    (tmp_path / "go").touch()
    assert [process.wait(timeout=120) for process in fillers] == [0, 0]
    done = [(tmp_path / name).read_text().split() if (tmp_path / name).exists() else [] for name in ("a", "b")]
    assert sorted(done[0] + done[1], key=int) == [str(n) for n in range(30)]
    assert not list(Path(tmp_path / "cache").glob("*.lock"))
