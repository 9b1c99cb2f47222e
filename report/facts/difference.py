"""Where the difference between two models sits: facts from swap attribution, its bridge, and the adapter path."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from report.facts.rows import rows
from xai_utils.study.tables import StudyTables

NAMED = 3  # parts or layers that are named
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
    texts: int
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


def swap(found: StudyTables, headline: str | None) -> Swap | None:
    """None without a table `swap`; `headline` is the text whose split is shown."""
    table = _of_pair(found, "swap")
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
        bridge=_bridge(found, headline),
    )


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


def _bridge(found: StudyTables, headline: str | None) -> tuple[Step, ...]:
    table = _of_pair(found, "bridge")
    steps = []
    for name, part in table.groupby("step", sort=False) if len(table) else ():
        here = part.loc[part["text"] == headline, "score"]
        steps.append(Step(str(name), float(here.iloc[0]) if len(here) else None, float(part["score"].mean())))
    return tuple(step for step in steps if step.mean or step.here)


@dataclass(frozen=True)
class Layer:
    layer: int
    score: float


@dataclass(frozen=True)
class Map:
    """The map of one text: its total, the layers that make up the most of it, and the word at which most comes in."""

    text: str
    total: float
    first: Layer
    top: tuple[Layer, ...]
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
    better: int  # texts on which the highest undo more than random ones
    texts: int


@dataclass(frozen=True)
class Layers:
    """The difference along the adapter's scale, shared among layers and words."""

    texts: int
    here: Map | None  # of the headline
    cancel: float  # sum of absolute scores over the difference, median over texts
    proof: PathProof
    removal: Removal | None


def layers(found: StudyTables, headline: str | None) -> Layers | None:
    """None without the tables of the adapter path."""
    table, proofs = (_of_pair(found, name) for name in ("adapter_path_words", "adapter_path_certificates"))
    if table.empty or proofs.empty:
        return None
    good = proofs[proofs["converged"].astype(bool)]
    errors = (good if len(good) else proofs)[["bound", "relative_delta"]].astype(float).max(axis=1)
    return Layers(
        texts=int(table["text"].nunique()),
        here=_map(found, table[table["text"] == headline]),
        cancel=float(proofs["cancellation"].median()),
        proof=PathProof(len(proofs), len(good), float(errors.max()), int(proofs["evaluations"].max())),
        removal=_removal(found),
    )


def _map(found: StudyTables, table: pd.DataFrame) -> Map | None:
    """The map of one text; None without its rows."""
    by_layer = sorted(rows(_sums(table.dropna(subset="layer"), ["layer"])), key=lambda row: -abs(row["score"]))
    if not by_layer:
        return None
    top = tuple(Layer(int(row["layer"]), float(row["score"])) for row in by_layer[:NAMED])
    word = max(rows(_sums(table, ["order", "word"])), key=lambda row: abs(row["score"]))
    text = next(entry.text for entry in found.study.texts if entry.id == table["text"].iloc[0])
    return Map(text, float(table["score"].sum()), top[0], top, str(word["word"]), float(word["score"]))


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
        better=int((table["highest"] > table["random"]).sum()),
        texts=len(table),
    )
