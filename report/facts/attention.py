"""What the heads attend to, and which of them the adaptation changed: facts from the tables of notebook 03."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from report.facts.rows import rows
from xai_utils.study.attention import NOTICEABLE, change_of_heads
from xai_utils.study.tables import StudyTables

HALF = 0.5


@dataclass(frozen=True)
class Change:
    """Heads that attend elsewhere under the adapted model by more than rewording a text makes them, in most texts."""

    heads: int
    changed: int
    texts: int
    alike: int  # texts that both models read alike to the last digit
    layer: int  # of the head that changed most
    head: int
    size: float  # its divergence, in nats
    floor: bool  # whether there is a rewording to compare with
    least: float = NOTICEABLE  # nats; less does not count


@dataclass(frozen=True)
class FirstHead:
    """The original's head, layer and head zero, under one model; means over texts."""

    model: str
    sink: float  # of the attention of later positions, the share on the first one
    even: float  # the same of attention that spreads evenly
    own: float  # attention to the own position
    texts: int


@dataclass(frozen=True)
class Rest:
    """The first position under the base: its share of all attention, and of what attention moves."""

    weight: float
    moved: float

    @property
    def idle(self) -> bool:
        return self.moved < self.weight / 2


@dataclass(frozen=True)
class Rollout:
    """Mass on the first position after the last layer, under the base and under uniform causal attention."""

    end: float
    even: float

    @property
    def drifts(self) -> bool:
        return min(self.end, self.even) > HALF


@dataclass(frozen=True)
class Attention:
    heads: int
    sinks: tuple[int, ...]  # heads that give most of their attention to the first position, a model each
    rest: Rest | None
    first: tuple[FirstHead, ...]
    rollout: Rollout | None
    change: Change | None


def attention(found: StudyTables) -> Attention | None:
    table = found.table("attention_heads")
    own = table[table["model"].isin(found.pair)] if len(table) else table
    if own.empty:
        return None
    means = own.groupby(["model", "layer", "head"])["sink"].mean()
    base = own[own["model"] == found.base]
    return Attention(
        heads=int(means[found.base].size),
        sinks=tuple(int((means[label] > HALF).sum()) for label in found.pair if label in means.index),
        rest=Rest(float(base["sink"].mean()), float(base["norm_sink"].mean())) if _moving(base) else None,
        first=tuple(_first(found, label) for label in found.pair if _has_first(found, label)),
        rollout=_end(found),
        change=_change(found),
    )


def _moving(heads: pd.DataFrame) -> bool:
    return "norm_sink" in heads and bool(heads["norm_sink"].notna().any())


def _has_first(found: StudyTables, label: str) -> bool:
    table = found.table("attention_first_head")
    return bool(len(table) and (table["model"] == label).any())


def _first(found: StudyTables, label: str) -> FirstHead:
    table = found.table("attention_first_head")
    own = table[table["model"] == label]
    heads = found.table("attention_heads")
    tokens = heads[heads["model"] == label].drop_duplicates("text")["tokens"]
    even = tokens.map(even_share).mean()
    return FirstHead(label, float(own["sink"].mean()), float(even), float(own["diagonal_mean"].mean()), len(own))


def even_share(tokens: int) -> float:
    """Mean share that uniform causal attention of the second and later queries gives to the first position.

    >>> even_share(3)  # (1/2 + 1/3) / 2
    0.41666...
    """
    return sum(1 / seen for seen in range(2, tokens + 1)) / max(tokens - 1, 1)


def _end(found: StudyTables) -> Rollout | None:
    table = found.table("attention_rollout")
    own = table[table["model"] == found.base] if len(table) else table
    if own.empty:
        return None
    last = own[own["layer"] == own["layer"].max()]
    return Rollout(float(last["rollout"].mean()), float(last["rollout_uniform"].mean()))


def _change(found: StudyTables) -> Change | None:
    table = found.table("attention_change")
    own = table[table["other"] == found.adapted] if len(table) else table
    if own.empty:
        return None
    heads = change_of_heads(own)
    top = max(rows(heads), key=lambda row: row["divergence"])
    return Change(
        heads=len(heads),
        changed=int(heads["beyond_floor"].fillna(False).sum()),
        texts=int(own["text"].nunique()),
        alike=int(heads["alike"].max()),
        layer=int(top["layer"]),
        head=int(top["head"]),
        size=float(top["divergence"]),
        floor=bool(heads["floor"].notna().any()),
    )


def table_of_heads(found: StudyTables) -> pd.DataFrame:
    """`change_of_heads` of the adapted model, for the figure; empty for one model."""
    table = found.table("attention_change")
    own = table[table["other"] == found.adapted] if len(table) else table
    return change_of_heads(own) if len(own) else own
