"""How each model goes on, and how sure it is of the answers: facts from the table `behaviour`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from report.facts.rows import Row, rows
from xai_utils.evaluation.panels import COMPETENT
from xai_utils.evaluation.trust import SURE
from xai_utils.study.tables import StudyTables

NOTICED = 0.1  # a change of an answer's probability by this share of itself; less is not called another behaviour
STEADY = math.log1p(NOTICED)  # the same in nats
SHOWN = 3  # prompts in the table of the page


@dataclass(frozen=True)
class Voice:
    """One model on one prompt."""

    model: str
    probability: float | None  # of the answer; None without one
    next_text: str
    next_probability: float
    continuation: str


@dataclass(frozen=True)
class Prompt:
    id: str
    text: str
    answer: str | None
    language: str | None
    voices: tuple[Voice, ...]  # of the base, then of the adapted model
    change: float | None  # of the answer's log-probability, in nats

    @property
    def sure(self) -> bool:
        return any((voice.probability or 0) >= SURE for voice in self.voices)

    @property
    def given(self) -> bool:
        return any((voice.probability or 0) >= COMPETENT for voice in self.voices)


@dataclass(frozen=True)
class Headline:
    """A prompt that is spoken of by itself, with the probability of its answer."""

    id: str
    text: str
    answer: str
    base: float
    other: float | None


@dataclass(frozen=True)
class Behaviour:
    prompts: tuple[Prompt, ...]
    shown: tuple[Prompt, ...]
    answered: int  # prompts with an answer
    sure: tuple[int, ...]  # of these, how many each model gives at SURE or more
    likelier: int
    unlikelier: int
    steady: tuple[Prompt, ...]
    most_steady_change: float  # the largest change of probability among the steady
    other_next: int  # prompts whose likeliest next token differs
    not_given: tuple[Prompt, ...]  # answers that no model gives at COMPETENT
    headline: Headline | None  # the prompt that may carry a claim: a model is sure of its answer
    original: Headline | None  # the original's prompt, where no model gives its answer
    level: float = SURE
    least: float = COMPETENT
    noticed: float = NOTICED

    @property
    def count(self) -> int:
        return len(self.prompts)

    @property
    def moved(self) -> tuple[Prompt, ...]:
        """The prompts whose answer became likelier or less likely; all of them where none did."""
        return tuple(prompt for prompt in self.prompts if prompt.answer and prompt not in self.steady) or self.prompts

    @property
    def some_stayed(self) -> bool:
        """Whether `moved` leaves prompts out."""
        return len(self.moved) < self.count

    @property
    def steady_count(self) -> int:
        return len(self.steady)

    @property
    def not_given_count(self) -> int:
        return len(self.not_given)


def behaviour(found: StudyTables) -> Behaviour | None:
    table = found.table("behaviour")
    if table.empty:
        return None
    prompts = tuple(prompt for text in found.study.texts if (prompt := _prompt(found, table, text.id)))
    if not prompts:
        return None
    asked = [prompt for prompt in prompts if prompt.answer]
    changes = [prompt for prompt in asked if prompt.change is not None]
    steady = tuple(prompt for prompt in changes if abs(prompt.change or 0) < STEADY)
    return Behaviour(
        prompts=prompts,
        shown=_shown(prompts, found),
        answered=len(asked),
        sure=tuple(
            sum((prompt.voices[place].probability or 0) >= SURE for prompt in asked)
            for place in range(len(prompts[0].voices))
        ),
        likelier=sum((prompt.change or 0) >= STEADY for prompt in changes),
        unlikelier=sum((prompt.change or 0) <= -STEADY for prompt in changes),
        steady=steady,
        most_steady_change=max((_moved(prompt) for prompt in steady), default=0.0),
        other_next=sum(len({voice.next_text for voice in prompt.voices}) > 1 for prompt in prompts),
        not_given=tuple(prompt for prompt in asked if not prompt.given),
        headline=_headline(clearest(prompts)),
        original=_headline(prompts[0] if found.study.claims and prompts[0] in asked and not prompts[0].given else None),
    )


def _headline(prompt: Prompt | None) -> Headline | None:
    if prompt is None:
        return None
    values = [voice.probability or 0.0 for voice in prompt.voices]
    return Headline(prompt.id, prompt.text, str(prompt.answer), values[0], values[1] if len(values) > 1 else None)


def clearest(prompts: tuple[Prompt, ...]) -> Prompt | None:
    """Of the prompts that one of the models is sure of, the one whose answer changed most."""
    sure = [prompt for prompt in prompts if prompt.answer and prompt.sure]
    return max(sure, key=lambda prompt: abs(prompt.change or 0), default=None)


def _prompt(found: StudyTables, table: pd.DataFrame, text: str) -> Prompt | None:
    entry = next(entry for entry in found.study.texts if entry.id == text)
    of = {row["model"]: row for row in rows(table[table["text"] == text])}
    if not set(found.pair) <= set(of):
        return None
    voices = tuple(_voice(label, of[label]) for label in found.pair)
    both = [voice.probability for voice in voices if voice.probability]
    change = math.log(both[1]) - math.log(both[0]) if len(both) == 2 else None
    return Prompt(text, entry.text, entry.answer, entry.language, voices, change)


def _voice(label: str, row: Row) -> Voice:
    asked = bool(pd.notna(row["answer"]) and pd.notna(row["probability"]))
    return Voice(
        label,
        float(row["probability"]) if asked else None,
        str(row["next_text"]),
        float(row["next_probability"]),
        str(row["continuation"]),
    )


def _moved(prompt: Prompt) -> float:
    base, other = (voice.probability or 0.0 for voice in prompt.voices)
    return abs(other - base)


def _shown(prompts: tuple[Prompt, ...], found: StudyTables) -> tuple[Prompt, ...]:
    """The headline, the least changed of the other sure ones, and the study's first; in the study's order."""
    chosen = [clearest(prompts), prompts[0]]
    rest = [prompt for prompt in prompts if prompt.sure and prompt not in chosen]
    chosen.insert(1, min(rest, key=lambda prompt: abs(prompt.change or 0), default=None))
    kept = [prompt for prompt in chosen if prompt is not None]
    kept += [prompt for prompt in prompts if prompt not in kept]
    return tuple(prompt for prompt in prompts if prompt in kept[:SHOWN])
