"""What became of the original study's claims: facts from the table `questions`, for studies that name the claims."""

from __future__ import annotations

from dataclasses import dataclass

from report.facts.rows import Row, rows
from xai_utils.evaluation.statistics import UNDECIDED
from xai_utils.study.questions import FAILS, HOLDS
from xai_utils.study.tables import StudyTables


@dataclass(frozen=True)
class Verdict:
    """One test of a claim: `outcome` is holds, does not hold, or cannot be decided."""

    outcome: str
    texts: int  # or translation pairs
    base: float | None  # the mean under the base, of a claim that compares two models
    value: float  # the mean under the adapted model, or under both


@dataclass(frozen=True)
class Claim:
    name: str
    own: Verdict  # by the original's own method
    other: Verdict | None  # by a method that the deletion tests prefer, or that is certified


@dataclass(frozen=True)
class Claims:
    """All claims that were put to a test, and how many came out how, by the better of their methods."""

    claims: tuple[Claim, ...]
    hold: int
    fail: int
    undecided: int

    @property
    def count(self) -> int:
        return len(self.claims)


def claims(found: StudyTables) -> Claims | None:
    """None for a study that does not name the original's claims, or whose questions were not put."""
    table = found.table("questions")
    asked = table[table["claim"].fillna("") != ""] if len(table) and "claim" in table else table
    if asked.empty or found.study.claims is None:
        return None
    every = tuple(_claim(str(name), rows(part)) for name, part in asked.groupby("claim", sort=False))
    outcomes = [(claim.other or claim.own).outcome for claim in every]
    return Claims(every, *(outcomes.count(outcome) for outcome in (HOLDS, FAILS, UNDECIDED)))


def _claim(name: str, tests: list[Row]) -> Claim:
    """The tests of one claim, that by the original's own method last (questions.py)."""
    *others, own = map(_verdict, tests)
    return Claim(name, own, others[0] if others else None)


def _verdict(row: Row) -> Verdict:
    base = float(row["mean_base"]) if row["paired"] else None
    return Verdict(str(row["verdict"]), int(row["n"]), base, float(row["mean_other"]))
