"""How far explanations can be trusted: faithfulness, proof, stability and controls, as facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from report.facts.rows import known, rows
from xai_utils.attribution.absence import ABSENCES
from xai_utils.evaluation.agreement import neutral
from xai_utils.study.from_tables import cards_of
from xai_utils.study.tables import CEILING, IG, ORIGINAL, PANEL_METHOD, StudyTables, board, preferred

HALF = 0.5
LEVELS = ("passes", "doubtful", "fails", "unknown")


@dataclass(frozen=True)
class Rank:
    """A method's share of what is possible in deletion tests: 0 is a random order of the words, 1 the best order."""

    method: str
    other: float | None  # mean under absences that no method uses itself, the same for all
    own: float | None  # mean under its own
    cases: int
    control: bool  # an order by position alone


@dataclass(frozen=True)
class Proof:
    """Certificates of integrated gradients: how many of how many runs converged, and at what cost."""

    runs: int
    converged: int
    evaluations: int  # median
    baseline: str


@dataclass(frozen=True)
class Fixed:
    """The original's rule: a fixed number of steps from zero."""

    steps: int
    runs: int
    converged: int
    error: float  # completeness error, a share of what is explained; median
    worst: float


@dataclass(frozen=True)
class Stability:
    """How alike the absences of the panel rank the words; means over cases."""

    cases: int
    rank: float
    one_sign: float
    same_top: float

    @property
    def top_differs(self) -> bool:
        return self.same_top < HALF


@dataclass(frozen=True)
class Sanity:
    """Rank correlation of a method's scores with those under random weights: 0 is what should be left."""

    method: str
    correlation: float
    texts: int

    @property
    def stuck(self) -> bool:
        return self.correlation >= HALF


@dataclass(frozen=True)
class Elsewhere:
    """The panel on prompts that the page does not hold: shares of the best order on absences not its own."""

    texts: int
    share: float
    position: float  # of the better order by position, on the same absences
    of_ceiling: float
    sure: float  # where the model is sure of its answer
    unsure: float
    stands_sure: float  # share of words that stand
    stands_unsure: float
    better: bool  # whether the share rises with the answer's probability, beyond chance
    fewer: bool  # whether the share of words that stand falls with it, beyond chance


@dataclass(frozen=True)
class Card:
    """The checks of one explanation that pass, are doubtful, fail or are unknown, by name."""

    model: str
    passed: tuple[str, ...]
    doubtful: tuple[str, ...]
    failed: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Trust:
    cards: tuple[Card, ...]  # of the headline's explanation, a model each
    board: tuple[Rank, ...]
    best: Rank | None  # of the methods
    position: Rank | None  # the better of the orders by position
    gradients: Rank | None  # integrated gradients
    ceiling: float | None  # the best single order
    judged: tuple[str, ...]  # the absences that no method uses
    proof: Proof | None
    fixed: Fixed | None
    stability: Stability | None
    sanity: tuple[Sanity, ...]
    insensitive: Sanity | None  # the method that random weights change least
    elsewhere: Elsewhere | None

    @property
    def beaten(self) -> bool:
        """Whether integrated gradients do worse than an order by position, on absences that are not their own."""
        own, order = (rank.other if rank else None for rank in (self.gradients, self.position))
        return own is not None and order is not None and own < order


def trust(found: StudyTables, evidence: Mapping[str, pd.DataFrame], headline: str | None = None) -> Trust:
    """`headline` is the text whose trust cards are shown, `evidence` the tables of the long studies."""
    every = [
        Rank(str(row["method"]), known(row["other"]), known(row["own"]), int(row["cases"]), bool(row["control"]))
        for row in rows(board(found))
    ]
    methods = [rank for rank in every if not rank.control]
    orders = [rank for rank in every if rank.control]
    table = found.table("faithfulness")
    sane = sanity(evidence)
    return Trust(
        cards=_cards(found, headline),
        board=tuple(every),
        best=methods[0] if methods else None,
        position=orders[0] if orders else None,
        gradients=next((rank for rank in methods if rank.method == IG), None),
        ceiling=_ceiling(found),
        judged=tuple(sorted(set(table.loc[neutral(table), "absence"]))) if len(table) else (),
        proof=_proof(found),
        fixed=_fixed(found),
        stability=_stability(found),
        sanity=sane,
        insensitive=max(sane, key=lambda one: one.correlation, default=None),
        elsewhere=_elsewhere(evidence),
    )


def _cards(found: StudyTables, headline: str | None) -> tuple[Card, ...]:
    method = preferred(found)
    made = cards_of(found, headline, method) if headline and method else {}
    return tuple(
        Card(label, *(tuple(name for name, own in card.levels.items() if own == level) for level in LEVELS))
        for label, card in made.items()
    )


def _ceiling(found: StudyTables) -> float | None:
    table = found.table("faithfulness")
    own = (
        table[(table["method"] == CEILING) & neutral(table) & table["model"].isin(found.pair)] if len(table) else table
    )
    return known(own["share"].mean()) if len(own) else None


def _proof(found: StudyTables) -> Proof | None:
    own = found.chosen("certificates", IG)
    own = own[own["model"].isin(found.pair)] if len(own) else own
    if own.empty:
        return None
    return Proof(len(own), int(own["converged"].sum()), int(own["evaluations"].median()), str(own["baseline"].iloc[0]))


def _fixed(found: StudyTables) -> Fixed | None:
    own = found.explained("certificates")
    own = own[(own["method"] == ORIGINAL) & own["model"].isin(found.pair)] if len(own) else own
    if own.empty:
        return None
    errors = own["relative_delta"].astype(float)
    return Fixed(found.study.steps, len(own), int(own["converged"].sum()), float(errors.median()), float(errors.max()))


def _stability(found: StudyTables) -> Stability | None:
    table = found.table("stability")
    own = table[table["model"].isin(found.pair) & (table["method"] == PANEL_METHOD)] if len(table) else table
    own = own.dropna(subset=["rank_correlation", "one_sign", "same_top"]) if len(own) else own
    if own.empty:
        return None
    means = own[["rank_correlation", "one_sign", "same_top"]].astype(float).mean()
    return Stability(len(own), *map(float, means))


def sanity(evidence: Mapping[str, pd.DataFrame]) -> tuple[Sanity, ...]:
    """What is left of each method's ranking when all weights are re-randomised, over the models of the pair."""
    table = evidence.get("sanity", pd.DataFrame())
    if table.empty:
        return ()
    own = table[(table["share"] == table["share"].max()) & (table["role"] != "control")].dropna(subset="correlation")
    return tuple(
        Sanity(str(method), float(part["correlation"].mean()), int(part["texts"].max()))
        for method, part in own.groupby("method", sort=False)
    )


def _elsewhere(evidence: Mapping[str, pd.DataFrame]) -> Elsewhere | None:
    if not {"panels", "panel_methods", "panel_confidence"} <= evidence.keys():
        return None
    panel = evidence["panels"].query("chosen").iloc[0]
    orders = evidence["panel_methods"].query("method in ['first_to_last', 'last_to_first']")
    outside = [name for name in ABSENCES if name not in panel["panel"].split(" + ")]
    by = evidence["panel_confidence"].set_index("measure").astype(float).to_dict("index")
    share, stands = by["share_other"], by["stands"]
    return Elsewhere(
        texts=int(panel["texts"]),
        share=float(panel["share_other"]),
        position=float(orders[outside].mean(axis=1).max()),
        of_ceiling=float(panel["of_ceiling"]),
        sure=share["sure"],
        unsure=share["unsure"],
        stands_sure=stands["sure"],
        stands_unsure=stands["unsure"],
        better=share["low"] > 0,
        fewer=stands["high"] < 0,
    )
