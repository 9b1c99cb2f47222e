"""`python -m benchmarks`: time and peak memory of the same work here and in other tools; writes results.csv and tables.

On a GPU (`--device cuda`, card.py) models are measured by their shapes. On a CPU every measurement is a process of its
own, and repeats are interleaved, so that a machine that slows down slows all of them; the median is kept.
`share_of_limit` is the least number of floating-point operations known for the work (those that ours makes), over the
time, over the rate of a large matrix product of the same dtype and threads, measured in the same process.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from benchmarks import GOAL, TEXTS, TO_GOAL
from xai_utils.errors import UserError
from xai_utils.files import ROOT, write_text, write_whole
from xai_utils.study.results import rounded

FOLDER = Path(__file__).resolve().parent
RESULTS, REHEARSAL = FOLDER / "results.csv", FOLDER / "rehearsal.csv"
TABLE = FOLDER / "README.md"
START, END = "<!-- table -->", "<!-- /table -->"
MODEL = "SmolLM2-135M"  # of a CPU's table
COLUMNS = [
    "device",
    "model",
    "work",
    "tokens",
    "peer",
    "dtype",
    "seconds",
    "ratio",
    "peak_mb",
    "share_of_limit",
    "error",
]
LONG = 60.0  # seconds after which a measurement is not repeated
SAME_SCORES = ("ablation", "sensitivity", "attention")

Job = tuple[str, str, int]


def measured(*arguments: object) -> dict[str, Any]:
    """What one fresh process printed, or {"failed": its last line}."""
    command = [sys.executable, "-m", "benchmarks.one", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"XAI_HEADLESS": "1"})
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def sampled(jobs: list[Job], dtype: str, repeats: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Every job's measurements, the repeats of all jobs interleaved."""
    slow: set[Job] = set()
    for repeat in range(repeats):
        for job in jobs:
            if job in slow:
                continue
            found = measured("peer", *job, dtype)
            print(repeat + 1, *job, found.get("failed") or f"{found['seconds']:.2f} s", file=sys.stderr, flush=True)
            if "failed" in found or found["seconds"] > LONG:
                slow.add(job)
            yield job, found


def row(job: Job, dtype: str, runs: list[dict[str, Any]], mine: dict[str, Any]) -> dict[str, Any]:
    """One line of results.csv; a peer that failed has its reason in place of numbers."""
    work, peer, tokens = job
    keys = {"device": cores(), "model": MODEL, "work": work, "tokens": tokens, "peer": peer, "dtype": dtype}
    if any("failed" in run for run in runs):
        return keys | {"error": next(run["failed"] for run in runs if "failed" in run)}
    seconds = statistics.median(run["seconds"] for run in runs)
    error = runs[0]["error"]
    if work in SAME_SCORES and peer != "ours":
        error = max(abs(one - other) for one, other in zip(runs[0]["scores"], mine["scores"], strict=True))
    return keys | {
        "seconds": seconds,
        "ratio": mine["median"] / seconds,
        "peak_mb": statistics.median(run["peak_mb"] for run in runs),
        "share_of_limit": mine["operations"] / statistics.median(run["seconds"] * run["rate"] for run in runs),
        "error": error,
    }


def cores() -> str:
    """The device of a CPU's lines."""
    count = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    return f"{count} core{'s' * (count > 1)}"


def rows_of(jobs: list[Job], dtype: str, repeats: int) -> list[dict[str, Any]]:
    """The lines of one work at one length, all measured in one go."""
    runs: dict[Job, list[dict[str, Any]]] = {job: [] for job in jobs}
    for job, found in sampled(jobs, dtype, repeats):
        runs[job].append(found)
    work, _, tokens = jobs[0]
    own = runs[work, "ours", tokens]
    mine = own[0] | measured("count", work, "ours", tokens, dtype)
    if "failed" in mine:
        raise UserError(f"{work} at {tokens} tokens: ours failed: {mine['failed']}; mend it and run again")
    mine["median"] = statistics.median(run["seconds"] for run in own)
    return [row(job, dtype, runs[job], mine) for job in jobs]


def keep(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Put lines into results.csv in place of older ones of the same device, model, work, length and dtype.

    Gives all lines back.
    """
    new = pd.DataFrame(rows, columns=COLUMNS)
    if RESULTS.exists():
        old, keys = pd.read_csv(RESULTS), ["device", "model", "work", "tokens", "dtype"]
        stale = pd.MultiIndex.from_frame(old[keys]).isin(pd.MultiIndex.from_frame(new[keys]))
        new = pd.concat([old[~stale], new], ignore_index=True)
    order = {name: pd.factorize(new[name])[0] for name in ("device", "model", "work")}
    new = new.assign(**{f"{name}_order": values for name, values in order.items()})  # what belongs together stands so
    by = [*(f"{name}_order" for name in order), "tokens"]
    new = new.sort_values(by, kind="stable", ignore_index=True)[COLUMNS]
    write_whole(
        RESULTS,
        lambda file: new.map(rounded).astype({"tokens": "Int64"}).to_csv(file, index=False, lineterminator="\n"),
    )
    return new


def texts(repeats: int) -> list[dict[str, Any]]:
    """Memory over the number of texts, from an empty cache: peak and time of the larger over those of the smaller."""
    found = {count: [measured("texts", count) for _ in range(repeats)] for count in TEXTS}
    if failed := [run["failed"] for runs in found.values() for run in runs if "failed" in run]:
        raise UserError(f"a study of many texts failed: {failed[0]}; mend it and run again")
    middle = {
        count: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "peak_mb")}
        for count, runs in found.items()
    }
    return [
        {"device": cores(), "model": "tiny", "work": f"a study of {count} texts", "peer": "ours", "dtype": "float32"}
        | middle[count]
        | {"ratio": middle[count]["peak_mb"] / middle[TEXTS[0]]["peak_mb"]}
        for count in TEXTS
    ]


def beside(line: Any) -> str:
    """A peer and our time over its own, and how far from the goal it gave up where it did."""
    if pd.isna(line.ratio):
        return f"{line.peer} failed"
    missed = line.work == TO_GOAL and float(line.error) > GOAL
    return f"{line.peer} {line.ratio:.2f}" + (f" (gave up at an error of {float(line.error):.0%})" if missed else "")


def table(results: pd.DataFrame) -> str:
    """A table for each device and model: a row a work and length, ours, and our time over each peer's."""
    works, parts = results[results["tokens"].notna()], []
    for (device, model), mine in works.groupby(["device", "model"], sort=False):
        parts.append(f"**{device}, {model}**\n\n{_rows(mine)}")
    many = results[results["tokens"].isna()]
    told = "; ".join(f"{line.work}: {line.seconds:.0f} s, {line.peak_mb:.0f} MB" for line in many.itertuples())
    return "\n\n".join([*parts, *([f"Memory over texts (a tiny model, three methods): {told}."] if told else [])])


def _rows(works: pd.DataFrame) -> str:
    lines = ["| work | tokens | ours | share of the limit | our time over a peer's |", "|---|---|---|---|---|"]
    for (work, tokens), part in works.groupby(["work", "tokens"], sort=False):
        mine = part[part["peer"] == "ours"].iloc[0]
        peers = [beside(line) for line in part[part["peer"] != "ours"].itertuples()]
        memory = "" if pd.isna(mine["peak_mb"]) else f", {mine['peak_mb']:.0f} MB"
        share = f"{mine['share_of_limit']:.0%}"
        lines.append(f"| {work} | {tokens:.0f} | {seconds(mine['seconds'])}{memory} | {share} | {', '.join(peers)} |")
    return "\n".join(lines)


def seconds(value: float) -> str:
    """
    >>> seconds(12.345), seconds(0.0285)
    ('12.3 s', '0.0285 s')
    """
    return f"{float(f'{value:.3g}'):g} s"


def rehearsed() -> str:
    """What each rehearsal took, nothing before there was one."""
    lines = pd.read_csv(REHEARSAL).itertuples() if REHEARSAL.exists() else ()
    told = (f"{line.models}, {line.dtype}, {line.device}: {line.minutes:.1f} min, {line.peak_gb} GB" for line in lines)
    return "".join(f"\n\nRehearsal: {line}." for line in told)


def show(results: pd.DataFrame) -> None:
    """Put the tables between the marks of benchmarks/README.md."""
    text = TABLE.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise UserError(f"{TABLE} has no {START} and {END} to put the tables between; put both into it")
    before, rest = text.split(START, 1)
    write_text(TABLE, f"{before}{START}\n{table(results)}{rehearsed()}\n{END}{rest.split(END, 1)[1]}")


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="lengths of the prompt; may be given again")] = None,
    work: Annotated[list[str] | None, typer.Option(help="works to measure; all of them")] = None,
    dtype: str = "float32",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Measure, write benchmarks/results.csv work by work, and put its tables into benchmarks/README.md.

    Devices, works, lengths and dtypes that are not asked for keep the lines they have.
    """
    from benchmarks import card, shapes
    from benchmarks.works import WORKS

    lengths, works = tokens or [16, 64, 128], work or list(WORKS)
    if device == "cuda":
        for lines in card.measure(device, list(shapes.SHAPES), works, lengths, dtype, repeats):
            keep(lines)
        results = keep([])
    else:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        for length in lengths:
            for name in works:
                keep(rows_of([(name, peer, length) for peer in WORKS[name]], dtype, repeats))
        results = keep([] if work else texts(min(repeats, 3)))
    show(results)
    print(results.drop(columns="dtype").to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
