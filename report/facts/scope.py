"""What a study is about: its models, texts and what was trained, read from the study file and the adapter's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from report.facts.rows import Row, rows
from xai_utils.errors import UserError
from xai_utils.evaluation.statistics import decidable
from xai_utils.files import locate
from xai_utils.models.entry import ModelEntry
from xai_utils.study.tables import StudyTables

SEEN = 0.02  # a change of tokens or bits by this share of them is worth a sentence


@dataclass(frozen=True)
class Cut:
    """A text that was cut to the study's most tokens, and how many it lost."""

    text: str
    model: str
    lost: int


@dataclass(frozen=True)
class Scope:
    study: str
    published: bool
    base: str
    other: str | None  # the adapted model, where there is one
    pair: tuple[str, ...]  # both, or the base alone
    controls: tuple[str, ...]
    models: int
    texts: int
    answered: int  # texts with an answer that a person wrote
    contrasted: int  # texts with a contrast
    reworded: int  # texts with a rewording
    languages: tuple[str, ...]
    methods: tuple[str, ...]
    absences: int
    claims: bool  # whether the study names the original's claims
    chosen: str | None  # how texts and answers were chosen, in words of the study
    tolerance: float
    most_tokens: int
    cuts: tuple[Cut, ...]
    needed: int  # prompts on which something must change before a test can find it

    @property
    def unanswered(self) -> int:
        return self.texts - self.answered

    @property
    def uncontrasted(self) -> int:
        return self.answered - self.contrasted

    @property
    def method_count(self) -> int:
        return len(self.methods)


@dataclass(frozen=True)
class Quality:
    """The adapted model against its base on held-out text: 0.61 fewer tokens, 0.29 fewer bits a character."""

    language: str
    kind: str
    tokens: float
    bits: float

    @property
    def cheaper(self) -> bool:
        return self.tokens >= SEEN and self.bits >= SEEN

    @property
    def better(self) -> bool:
        return self.bits >= SEEN and not self.cheaper

    @property
    def worse(self) -> bool:
        return self.bits <= -SEEN

    @property
    def dearer(self) -> bool:
        return -SEEN < self.bits < 0

    @property
    def loss(self) -> float:
        return -self.bits


@dataclass(frozen=True)
class Adaptation:
    """How the adapted model was made: `rows` of the embedding were trained, or a LoRA of some `rank`; either is 0."""

    rows: int
    rank: int
    whole: tuple[Quality, ...]  # a language each
    parts: tuple[Quality, ...]  # a language and kind of text each


def scope(found: StudyTables) -> Scope:
    study = found.study
    return Scope(
        study=study.name,
        published=study.published,
        base=found.base,
        other=found.adapted,
        pair=tuple(found.pair),
        controls=tuple(model.label for model in study.models if model.role == "control"),
        models=len(study.models),
        texts=len(study.texts),
        answered=len(found.answered),
        contrasted=sum(text.contrast is not None for text in study.texts),
        reworded=sum(bool(text.rewordings) for text in study.texts),
        languages=tuple(dict.fromkeys(text.language for text in study.texts if text.language)),
        methods=study.methods,
        absences=len(study.absences),
        claims=study.claims is not None,
        chosen=study.chosen,
        tolerance=study.tolerance,
        most_tokens=study.max_tokens,
        cuts=tuple(_cuts(found)),
        needed=next(count for count in range(1, 99) if decidable([count])[0]),
    )


def _cuts(found: StudyTables) -> Iterator[Cut]:
    table = found.table("tokenization")
    for row in rows(table[table["truncated"] > 0]) if len(table) else ():
        yield Cut(row["text"], row["model"], int(row["truncated"]))


def adaptation(found: StudyTables) -> Adaptation | None:
    """None without an adapted model that has an adapter on disk."""
    entry = next((model for model in found.study.models if model.label == found.adapted), None)
    if entry is None or not entry.adapter:
        return None
    config = _config(entry)
    table = found.table("evaluation")
    own = table[(table["label"] == entry.label) & (table["model"] == "trained")] if len(table) else table
    every = [_quality(row) for row in rows(own)]
    return Adaptation(
        rows=len(config.get("token_indices") or ()),
        rank=int(config.get("r") or 0) if config.get("peft_type") == "LORA" else 0,
        whole=tuple(one for one in every if one.kind == "all"),
        parts=tuple(one for one in every if one.kind != "all"),
    )


def _config(entry: ModelEntry) -> Row:
    try:
        file = locate(str(entry.adapter)) / "adapter_config.json"
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, UserError):  # an adapter on the Hub
        return {}


def _quality(row: Row) -> Quality:
    saved = (1 - float(row[name]) for name in ("tokens_of_base", "bits_per_character_of_base"))
    return Quality(str(row["language"]), str(row["kind"]), *saved)
