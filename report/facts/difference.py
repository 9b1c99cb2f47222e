"""Where the difference between two models sits: facts from swap attribution, its bridge, and the adapter path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from report.facts.rows import rows
from xai_utils.study.tables import StudyTables

NAMED = 3  # parts that are named
PLACES = ("first", "middle", "last")  # of the thirds that the layers are told in
KINDS = ("reading", "writing", "layers")


@dataclass(frozen=True)
class Part:
    """A part in which two models differ, and what swapping it is worth, in nats."""

    name: str
    kind: str
    score: float


@dataclass(frozen=True)
class Split:
    """The difference on one text, shared among the parts; `total` is their sum."""

    text: str
    total: float
    reading: float
    writing: float
    layers: float
    largest: tuple[Part, ...]

    @property
    def writing_leads(self) -> bool:
        return abs(self.writing) > max(abs(self.reading), abs(self.layers))

    @property
    def reading_leads(self) -> bool:
        return abs(self.reading) > max(abs(self.writing), abs(self.layers))


@dataclass(frozen=True)
class Step:
    """One step of the bridge: what it adds on the text of the headline, and on the mean of all texts, in nats."""

    name: str
    here: float | None
    mean: float


@dataclass(frozen=True)
class Swap:
    texts: int  # those whose answer moved: counts and means are over these
    here: Split | None  # the text of the headline
    total: float  # means over texts from here on
    reading: float
    writing: float
    layers: float
    writing_leads: int  # texts on which the writing moves more than the reading and the layers
    reading_leads: int
    layers_lead: int
    has_writing: bool
    has_reading: bool
    has_layers: bool
    bridge: tuple[Step, ...]

    @property
    def tokenizer_hurts(self) -> bool:
        """Whether the new tokenizer with untrained rows makes answers less likely, and training makes up for it."""
        steps = {step.name: step.mean for step in self.bridge}
        return steps.get("tokenizer", 0.0) < 0 < sum(steps.values())


def swap(found: StudyTables, headline: str | None, moved: Sequence[str]) -> Swap | None:
    """None without a table `swap` of the texts `moved`; `headline` is the text whose split is shown."""
    table = _over(moved, _of_pair(found, "swap"))
    if table.empty:
        return None
    sums = table.pivot_table(index="text", columns="kind", values="score", aggfunc="sum").reindex(columns=list(KINDS))
    reading, writing, layers = (float(sums[kind].fillna(0).mean()) for kind in KINDS)
    leads = sums.fillna(0).abs().idxmax(axis=1)
    here = table[table["text"] == headline]
    return Swap(
        texts=len(sums),
        here=_split(here, next(text.text for text in found.study.texts if text.id == headline)) if len(here) else None,
        total=reading + writing + layers,
        reading=reading,
        writing=writing,
        layers=layers,
        reading_leads=int((leads == "reading").sum()),
        writing_leads=int((leads == "writing").sum()),
        layers_lead=int((leads == "layers").sum()),
        has_reading=bool(sums["reading"].notna().any()),
        has_writing=bool(sums["writing"].notna().any()),
        has_layers=bool(sums["layers"].notna().any()),
        bridge=_bridge(_over(moved, _of_pair(found, "bridge")), headline),
    )


def _over(texts: Sequence[str], table: pd.DataFrame) -> pd.DataFrame:
    return table[table["text"].isin(texts)] if len(table) else table


def _of_pair(found: StudyTables, name: str) -> pd.DataFrame:
    table = found.table(name)
    if table.empty or "other" not in table:
        return table
    return table[(table["base"] == found.base) & (table["other"] == found.adapted)]


def _split(table: pd.DataFrame, text: str) -> Split:
    order = table.sort_values("score", key=abs, ascending=False, kind="stable").head(NAMED)
    largest = tuple(Part(str(row["part"]), str(row["kind"]), float(row["score"])) for row in rows(order))
    reading, writing, layers = (float(table.loc[table["kind"] == kind, "score"].sum()) for kind in KINDS)
    return Split(text, float(table["score"].sum()), reading, writing, layers, largest)


def _bridge(table: pd.DataFrame, headline: str | None) -> tuple[Step, ...]:
    """A text that a step does not change has no row of it."""
    steps = []
    for name, part in table.groupby("step", sort=False) if len(table) else ():
        here = part.loc[part["text"] == headline, "score"]
        mean = float(part["score"].sum()) / table["text"].nunique()
        steps.append(Step(str(name), float(here.iloc[0]) if len(here) else None, mean))
    return tuple(step for step in steps if step.mean or step.here)


@dataclass(frozen=True)
class Layer:
    layer: int
    score: float


@dataclass(frozen=True)
class Third:
    """A third of the layers, by the place that it has among them, and the sum of their scores in nats."""

    place: str
    score: float


@dataclass(frozen=True)
class Map:
    """Where the difference sits among the layers, on one text or on the mean of some."""

    total: float
    first: Layer  # the highest of all
    thirds: tuple[Third, ...]  # of fewer layers than three none

    @property
    def most(self) -> Third | None:
        return max(self.thirds, key=lambda third: abs(third.score), default=None)


@dataclass(frozen=True)
class TextMap(Map):
    """The map of one text, and the word at which most of the difference comes in."""

    text: str
    word: str
    word_score: float


@dataclass(frozen=True)
class PathProof:
    """The adapter paths' certificates: how many converged, the largest error among these, the most evaluations."""

    paths: int
    converged: int
    error: float  # a share of the total
    evaluations: int

    @property
    def all(self) -> bool:
        return self.converged == self.paths


@dataclass(frozen=True)
class Removal:
    """The map's own deletion test: shares of the difference that go when the adapter is removed from some layers."""

    layers: int  # how many are removed
    highest: float  # share undone by those that the map ranks highest, mean over texts
    random: float  # by random ones
    better: int  # texts on which the highest undo more than this share of random ones
    texts: int
    chance: float = 0.95


@dataclass(frozen=True)
class Layers:
    """The difference along the adapter's scale, shared among layers and words."""

    texts: int  # those whose answer moved
    here: TextMap | None  # of the headline
    over: Map  # the mean over texts
    cancel: float  # sum of absolute scores over the difference, median over texts
    proof: PathProof
    removal: Removal | None


def layers(found: StudyTables, headline: str | None, moved: Sequence[str]) -> Layers | None:
    """None without the tables of the adapter path on the texts `moved`."""
    names = ("adapter_path_words", "adapter_path_certificates")
    table, proofs = (_over(moved, _of_pair(found, name)) for name in names)
    if table.empty or proofs.empty:
        return None
    good = proofs[proofs["converged"].astype(bool)]
    errors = (good if len(good) else proofs)[["bound", "relative_delta"]].astype(float).max(axis=1)
    return Layers(
        texts=int(table["text"].nunique()),
        here=_text_map(found, table[table["text"] == headline]),
        over=_map(table),
        cancel=float(proofs["cancellation"].median()),
        proof=PathProof(len(proofs), len(good), float(errors.max()), int(proofs["evaluations"].max())),
        removal=_removal(found),
    )


def _map(table: pd.DataFrame) -> Map:
    """Means over the texts of a table."""
    inner, texts = table.dropna(subset="layer"), table["text"].nunique()
    by_layer = inner.groupby("layer")["score"].sum() / texts
    scores = by_layer.reindex(range(int(by_layer.index.max()) + 1), fill_value=0.0)
    parts = np.array_split(scores.to_numpy(), len(PLACES)) if len(scores) >= len(PLACES) else []
    thirds = tuple(Third(place, float(part.sum())) for place, part in zip(PLACES, parts, strict=False))
    first = int(np.abs(scores.to_numpy()).argmax())
    return Map(float(table["score"].sum()) / texts, Layer(first, float(scores[first])), thirds)


def _text_map(found: StudyTables, table: pd.DataFrame) -> TextMap | None:
    """The map of one text; None without its rows."""
    if table.empty:
        return None
    word = max(rows(_sums(table, ["order", "word"])), key=lambda row: abs(row["score"]))
    text = next(entry.text for entry in found.study.texts if entry.id == table["text"].iloc[0])
    return TextMap(**vars(_map(table)), text=text, word=str(word["word"]), word_score=float(word["score"]))


def _sums(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    return table.groupby(by)["score"].sum().reset_index()


def _removal(found: StudyTables) -> Removal | None:
    table = _of_pair(found, "layer_deletion")
    if table.empty:
        return None
    return Removal(
        layers=int(table["removed"].iloc[0]),
        highest=float(table["highest"].mean()),
        random=float(table["random"].mean()),
        better=int((table["highest"] > table["random_95"]).sum()),
        texts=len(table),
    )
