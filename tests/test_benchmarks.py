"""The benchmark's arithmetic and its table, on measurements that are given; measuring itself is `make bench`."""

import pandas as pd
import pytest

from benchmarks import __main__ as bench

SECONDS = {"ours": [2.0, 9.0, 1.0], "batched": [4.0, 4.0, 8.0]}


@pytest.fixture
def results(monkeypatch):
    """Three rounds of two peers that ran and one that failed, on a machine of 10 operations a second."""
    rounds = {peer: iter(seconds) for peer, seconds in SECONDS.items()}

    def measured(kind, *job):
        if kind == "count":
            return {"operations": 5.0}
        if job[1] == "inseq":
            return {"failed": "ImportError: no inseq"}
        scores = [1.0, 2.0] if job[1] == "ours" else [1.0, 2.5]
        return {"seconds": next(rounds[job[1]]), "rate": 10.0, "peak_mb": 100.0, "error": None, "scores": scores}

    monkeypatch.setattr(bench, "measured", measured)
    jobs = [("ablation", peer, 16) for peer in ("ours", "batched", "inseq")]
    return pd.DataFrame(bench.rows_of(jobs, "float32", 3), columns=bench.COLUMNS).set_index("peer")


def test_medians_ratios_and_shares(results):
    assert results["seconds"].tolist()[:2] == [2.0, 4.0]
    assert results["ratio"].tolist()[:2] == [1.0, 0.5]
    assert results["share_of_limit"].tolist()[:2] == [0.25, 0.125]
    assert results.loc["batched", "error"] == 0.5  # the largest difference of scores that must be the same
    assert results.loc["inseq", "error"] == "ImportError: no inseq"
    assert pd.isna(results.loc["inseq", "seconds"])


def test_the_table_stands_between_the_marks(results, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{bench.START}\nold\n{bench.END}\nafter\n")
    monkeypatch.setattr(bench, "TABLE", readme)
    card = {"device": "a card", "model": "large", "work": "ablation", "tokens": 16, "peer": "ours", "dtype": "float32"}
    lines = [results.reset_index(), pd.DataFrame([card | {"seconds": 0.02851, "ratio": 1.0, "share_of_limit": 0.5}])]
    bench.show(pd.concat(lines, ignore_index=True))
    text = readme.read_text()
    assert text.startswith(f"before\n{bench.START}\n**") and text.endswith(f"{bench.END}\nafter\n")
    assert "| ablation | 16 | 2 s, 100 MB | 25% | batched 0.50, inseq failed |" in text
    assert "**a card, large**\n\n| work |" in text and "| ablation | 16 | 0.0285 s | 50% |  |" in text
    assert "old" not in text


def test_a_long_measurement_is_made_once(monkeypatch):
    monkeypatch.setattr(bench, "measured", lambda *job: {"seconds": 100.0 if job[2] == "slow" else 1.0})
    jobs = [("w", "slow", 16), ("w", "fast", 16)]
    made = [job[1] for job, _ in bench.sampled(jobs, "float32", 3)]
    assert made == ["slow", "fast", "fast", "fast"]


def test_a_process_that_fails_gives_its_last_line():
    assert bench.measured("peer", "no such work", "ours", "16", "float32")["failed"] == "KeyError: 'no such work'"


def test_lines_not_measured_again_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.csv")
    where = {"device": "2 cores", "model": "small", "peer": "ours", "dtype": "float32"}
    many, line = where | {"work": "a study of 20 texts"}, where | {"work": "ablation", "tokens": 16}
    bench.keep([line | {"seconds": 1.0}, line | {"tokens": 64, "seconds": 2.0}, many | {"seconds": 3.0}])
    bench.keep([line | {"seconds": 4.0, "error": "0.5"}, many | {"seconds": 5.0}])
    kept = pd.read_csv(tmp_path / "results.csv")
    assert kept["seconds"].tolist() == [4.0, 2.0, 5.0]
    bench.keep([line | {"device": "a card", "seconds": 6.0}])
    assert bench.keep([])["seconds"].tolist() == [4.0, 2.0, 5.0, 6.0]


@pytest.mark.parametrize(("error", "said"), [(0.2, "inseq 0.50 (gave up at an error of 20%)"), (0.005, "inseq 0.50")])
def test_a_rule_that_never_gets_there_says_so(error, said):
    line = pd.DataFrame([{"work": bench.TO_GOAL, "peer": "inseq", "ratio": 0.5, "error": error}])
    assert bench.beside(next(line.itertuples())) == said
