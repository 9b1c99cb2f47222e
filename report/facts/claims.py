"""What became of the original study's claims: facts from the table `questions`, for studies that name the claims."""

from __future__ import annotations

from dataclasses import dataclass

from report.facts.rows import Row, rows
from xai_utils.study.tables import Measured


@dataclass(frozen=True)
class Verdict:
    """One test of a claim: `outcome` is holds, does not hold, or cannot be decided."""

    method: str  # empty where the claim is not about a method's scores
    outcome: str
    texts: int  # or translation pairs
    base: float | None  # the mean under the base, of a claim that compares two models
    value: float  # the mean under the adapted model, or under both
    low: float  # interval of the change, or of the value
    high: float
    against: float  # the mark that the claim asks for


@dataclass(frozen=True)
class Claim:
    name: str
    paired: bool
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Claims:
    """All claims that were put to a test, and how many came out how, by the first of each claim's tests."""

    claims: tuple[Claim, ...]
    hold: int
    fail: int
    undecided: int

    @property
    def count(self) -> int:
        return len(self.claims)


def claims(found: Measured) -> Claims | None:
    """None for a study that does not name the original's claims, or whose questions were not put."""
    table = found.table("questions")
    asked = table[table["claim"].fillna("") != ""] if len(table) and "claim" in table else table
    if asked.empty or found.study.claims is None:
        return None
    every = tuple(
        Claim(str(name), bool(part["paired"].iloc[0]), tuple(map(_verdict, rows(part))))
        for name, part in asked.groupby("claim", sort=False)
    )
    first = [claim.verdicts[0].outcome for claim in every]
    return Claims(every, first.count("holds"), first.count("does not hold"), first.count("cannot be decided"))


def _verdict(values: Row) -> Verdict:
    shift = 0.0 if values["paired"] else float(values["against"])
    return Verdict(
        method=str(values["method"]),
        outcome=str(values["verdict"]),
        texts=int(values["n"]),
        base=float(values["mean_base"]) if values["paired"] else None,
        value=float(values["mean_other"]),
        low=float(values["low"]) + shift,
        high=float(values["high"]) + shift,
        against=float(values["against"]),
    )
