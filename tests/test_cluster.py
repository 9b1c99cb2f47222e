"""Cases on a cluster of two processes: the local loop's tables, the cost of a lost worker, a failing case."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.tiny import save_tiny
from xai_utils.attribution.methods import METHODS, Method
from xai_utils.attribution.result import Attribution, from_tokens
from xai_utils.errors import UserError
from xai_utils.study import cluster
from xai_utils.study.config import Study
from xai_utils.study.explainer import Explainer

METHOD_NAMES = ["integrated_gradients", "ablation", "sensitivity"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Here as on the workers: sums of floats depend on how many threads share them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two_workers(one_thread):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.os, "cpu_count", lambda: 2)
        with cluster.scheduler(workers=2):
            yield os.environ[cluster.SCHEDULER]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return [save_tiny(home / name, seed=seed) for seed, name in enumerate(("base", "twin"))]


@pytest.fixture
def book(folders, tmp_path, monkeypatch):
    """A study of two models and six texts with an empty cache, computed here unless a test says otherwise."""
    monkeypatch.delenv(cluster.SCHEDULER, raising=False)
    monkeypatch.setenv("XAI_RUNS", str(tmp_path / "here"))
    texts = ["The capital of France is", "Сколько планет в Солнечной системе?", "The cat sat on", "Water boils", "Ice"]
    study = {
        "name": "many",
        "models": [{"label": folder.name, "model": str(folder)} for folder in folders],
        "texts": [{"id": f"t{number}", "text": text, "answer": " Paris."} for number, text in enumerate(texts)],
        "draws": 4,
        "budget": 60,
    }
    return Explainer(Study.model_validate(study))


def told(case, log: str, where: str) -> None:
    with Path(log).open("a") as file:
        file.write(f"{os.getpid()} {where} {case.model} {case.text_id}\n")


def slow(model, case, target, *, log: str, fails: str = "", seed: int = 0) -> Attribution:
    """Scores that are the token ids; says in `log` when it begins and ends; fails on one text."""
    told(case, log, "begun")
    time.sleep(0.4)
    if case.text_id == fails:
        raise RuntimeError(f"cannot explain {case.text!r}")
    told(case, log, "done")
    scores = np.array(case.ids, dtype=float)
    return from_tokens("slow", case, target, scores, 0 * scores, baseline="zero", keep_sink=False)


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def test_tables_and_cache_are_those_of_the_local_loop(book, two_workers, tmp_path, monkeypatch):
    here = book.write(METHOD_NAMES, part="all")
    monkeypatch.setenv(cluster.SCHEDULER, two_workers)
    monkeypatch.setenv("XAI_RUNS", str(tmp_path / "there"))
    monkeypatch.setattr(cluster, "_here", None)
    there = Explainer(book.study).write(METHOD_NAMES, part="all")
    for name, table in here.items():
        pd.testing.assert_frame_equal(there[name], table, check_exact=True)
    own = {path.relative_to(tmp_path / "here"): path.read_bytes() for path in (tmp_path / "here").rglob("*.*")}
    its = {path.relative_to(tmp_path / "there"): path.read_bytes() for path in (tmp_path / "there").rglob("*.*")}
    assert len(own) == 2 * 5 * 3 + 3
    assert own == its


def test_a_lost_worker_costs_at_most_the_cases_it_held(book, two_workers, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setitem(METHODS, "slow", Method(slow, ""))
    monkeypatch.setenv(cluster.SCHEDULER, two_workers)
    killed: list[str] = []

    def kill_half_way() -> None:
        while not killed:
            seen = lines(log)
            if sum(where == "done" for _, where, *_ in seen) >= 5:
                killed.append(seen[-1][0])
                os.kill(int(killed[0]), signal.SIGKILL)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    tables = book.tables(["slow"], log=str(log))
    killer.join()
    assert tables["attributions"].groupby(["model", "text"]).ngroups == 10
    for (label, text), rows in tables["attributions"].groupby(["model", "text"]):
        assert rows["score"].tolist() == book.case(str(label), str(text)).ids
    begun = [(pid, tuple(case)) for pid, where, *case in lines(log) if where == "begun"]
    again = [case for number, (_, case) in enumerate(begun) if case in [other for _, other in begun[:number]]]
    assert all((killed[0], case) in begun for case in again)
    assert {pid for pid, _ in begun} - set(killed)
    assert len(again) <= cluster.AHEAD


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_failing_case_is_named_and_the_others_are_there(book, two_workers, tmp_path, monkeypatch, capsys, where):
    log = tmp_path / "log"
    monkeypatch.setitem(METHODS, "slow", Method(slow, ""))
    if where == "there":
        monkeypatch.setenv(cluster.SCHEDULER, two_workers)
    with pytest.raises(UserError) as caught:
        book.tables(["slow"], log=str(log), fails="t1")
    message = str(caught.value)
    assert message.startswith("2 of 10 cases failed: ")
    assert {"base/t1/slow", "twin/t1/slow"} == set(message.split(": ")[1].split(", "))
    assert "RuntimeError: cannot explain" in message and "\n" not in message
    assert capsys.readouterr().err.count("failed: ") == 2
    assert len(list(book.folders.cache.rglob("*.json"))) == 8
    monkeypatch.delenv(cluster.SCHEDULER, raising=False)
    assert len(book.tables(["slow"], ["t0", "t4"], log=str(log), fails="t1")["attributions"])
    assert len(lines(log)) == 2 * 8 + 2  # what was kept is not computed again


def test_a_worker_with_other_weights_is_refused(book, two_workers, monkeypatch):
    monkeypatch.setenv(cluster.SCHEDULER, two_workers)
    job = book._method("ablation", "base", "t0", None, {})
    object.__setattr__(job, "makers", ({**job.makers[0], "weights": "others"},))
    ((_, outcome),) = cluster.computed(iter([job]), book.models)
    assert "the worker's weights differ" in str(outcome)


def test_what_is_cached_needs_no_scheduler(book, monkeypatch):
    first = book.tables(["ablation"], ["t0"])
    monkeypatch.setenv(cluster.SCHEDULER, "tcp://127.0.0.1:9")
    pd.testing.assert_frame_equal(book.tables(["ablation"], ["t0"])["attributions"], first["attributions"])


def test_no_client_is_made_for_an_address_that_cannot_be_read(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a client that cannot start stays half open, and its collection can lock the next one")

    monkeypatch.setattr("distributed.Client", refuse)
    for address in ("nonsense", "http://127.0.0.1:9", "tcp://127.0.0.1:port"):
        with pytest.raises(UserError, match="no answer from it"), cluster.scheduler(address):
            raise AssertionError("not reached")


def test_a_scheduler_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    for address in ("tcp://127.0.0.1:9", "nonsense", "http://127.0.0.1:9"):
        with (
            pytest.raises(UserError, match="expected the address of a running dask scheduler"),
            cluster.scheduler(address),
        ):
            raise AssertionError("not reached")
    with pytest.raises(UserError, match="both are given"), cluster.scheduler("tcp://127.0.0.1:9", 2):
        raise AssertionError("not reached")
