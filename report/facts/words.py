"""Which words each model leans on, which of these scores stand, and where two models differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from report.facts.rows import Row, known, rows
from xai_utils.evaluation.agreement import one_setting
from xai_utils.evaluation.statistics import certified
from xai_utils.study.tables import StudyTables, preferred
from xai_utils.text.words import told_apart

NAMED = 3  # differences that are named
VOTERS = 3  # methods, fewer of which are no majority
SHIFTS = 2  # of these on one text, in a title
Rows = dict[str, dict[int, Row]]  # of one text, by model and by where a word starts


@dataclass(frozen=True)
class Range:
    """The least and the greatest score of a word over the panel."""

    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """One model's score of a word; without a panel there is no range, and nothing is known of whether it stands."""

    score: float
    range: Range | None
    stands: bool | None


@dataclass(frozen=True)
class Word:
    word: str
    start: int
    scores: tuple[Score, ...]  # of the base, then of the adapted model
    apart: bool | None  # whether the two ranges do not meet, beyond what the controls show; None where not known


@dataclass(frozen=True)
class Sentence:
    id: str
    text: str
    answer: str | None
    words: tuple[Word, ...]
    top: tuple[str | None, ...]  # each model's highest word that stands


@dataclass(frozen=True)
class Difference:
    text: str
    word: str
    base: float
    other: float
    size: float

    @property
    def rises(self) -> bool:
        return self.size > 0


@dataclass(frozen=True)
class Votes:
    """How many methods name one word the most important under one model."""

    model: str
    word: str
    count: int


@dataclass(frozen=True)
class Words:
    method: str
    unit: str
    sentences: tuple[Sentence, ...]
    here: Sentence  # the headline, or else the study's first text
    words: int  # over all texts, counted once a model
    panel: bool  # whether ranges are known
    stand: tuple[int, ...]  # words that stand, a model each
    topped: int  # texts whose answer moved and on which both models have a highest word that stands
    same_top: int  # of these, texts on which it is the same
    compared: int  # words of the texts whose answer moved
    apart: int
    largest: tuple[Difference, ...]
    shifts: tuple[Difference, ...]  # the largest on the text `here`
    votes: tuple[Votes, ...]  # on the text `here`
    asked: int  # methods that voted

    @property
    def voted(self) -> bool:
        return self.asked >= VOTERS

    @property
    def some_fall(self) -> bool:
        return any(count < self.words for count in self.stand)


def words(found: StudyTables, headline: str | None, moved: Sequence[str]) -> Words | None:
    """None where no score of the preferred method is there; models are compared on the texts `moved`."""
    method = preferred(found)
    scored = found.words(method).dropna(subset="score") if method else pd.DataFrame()
    if method is None or scored.empty:
        return None
    sentences = tuple(one for entry in found.study.texts if (one := _sentence(found, scored, entry.id)) is not None)
    if not sentences:
        return None
    every = [(one, word) for one in sentences for word in one.words]
    compared = [(one, word) for one, word in every if word.apart is not None and one.id in moved]
    apart = [(one, word) for one, word in compared if word.apart]
    changes = sorted((_difference(*pair) for pair in apart), key=lambda one: -abs(one.size))
    tops = [one.top for one in sentences if len(one.top) == 2 and all(one.top) and one.id in moved]
    here = next((one for one in sentences if one.id == headline), sentences[0])
    votes, asked = _votes(found, here.id)
    return Words(
        method=method,
        unit=str(scored["unit"].iloc[0]),
        sentences=sentences,
        here=here,
        words=len(every),
        panel=any(score.stands is not None for _, word in every for score in word.scores),
        stand=tuple(
            sum(bool(word.scores[place].stands) for _, word in every) for place in range(len(sentences[0].top))
        ),
        topped=len(tops),
        same_top=sum(base == other for base, other in tops),
        compared=len(compared),
        apart=len(apart),
        largest=tuple(changes[:NAMED]),
        shifts=tuple(one for one in changes if one.text == here.text)[:SHIFTS],
        votes=votes,
        asked=asked,
    )


def _sentence(found: StudyTables, scored: pd.DataFrame, text: str) -> Sentence | None:
    """None where a model of the pair has no score."""
    entry = next(entry for entry in found.study.texts if entry.id == text)
    own = scored[scored["text"] == text].sort_values("start")
    of: Rows = {label: {row["start"]: row for row in rows(own[own["model"] == label])} for label in found.labels}
    if not all(of[label] for label in found.pair):
        return None
    names = _names(own[own["model"] == found.base])
    starts = [start for start in names if all(start in of[label] for label in found.pair)]
    paired = tuple(_word(found, of, start, names[start], text in found.answered) for start in starts)
    return Sentence(text, entry.text, entry.answer, paired, tuple(_top(paired, n) for n in range(len(found.pair))))


def _names(words: pd.DataFrame) -> dict[int, str]:
    """What each word of a text is called, by the character at which it begins: repeated ones are numbered."""
    once = words.drop_duplicates("start").sort_values("start")
    return dict(zip(once["start"], told_apart(once["word"].astype(str).tolist()), strict=True))


def _word(found: StudyTables, of: Rows, start: int, name: str, comparable: bool) -> Word:
    scores = tuple(_score(of[label][start]) for label in found.pair)
    changes = [
        abs(float(of[model.label][start]["score"]) - scores[0].score)
        for model in found.study.models
        if model.role == "control" and start in of[model.label]
    ]
    apart = _apart(*scores, max(changes, default=0.0)) if len(scores) == 2 and comparable else None
    return Word(name, int(start), scores, apart)


def _score(row: Row) -> Score:
    low, high, stands = known(row.get("low")), known(row.get("high")), row.get("stands")
    over = Range(low, high) if low is not None and high is not None else None
    return Score(float(row["score"]), over, None if pd.isna(stands) else bool(stands))


def _apart(base: Score, other: Score, shown_by_controls: float) -> bool | None:
    """Whether the ranges over the panel do not meet, and the scores differ by more than a control's does."""
    if base.range is None or other.range is None:
        return None
    gap = max(other.range.low - base.range.high, base.range.low - other.range.high)
    return bool(gap > 0 and abs(other.score - base.score) > shown_by_controls)


def _top(paired: tuple[Word, ...], place: int) -> str | None:
    standing = [word for word in paired if word.scores[place].stands is not False]
    best = max(standing, key=lambda word: word.scores[place].score, default=None)
    return best.word if best is not None and best.scores[place].score > 0 else None


def _difference(sentence: Sentence, word: Word) -> Difference:
    base, other = (score.score for score in word.scores)
    return Difference(sentence.text, word.word, base, other, other - base)


def _votes(found: StudyTables, text: str) -> tuple[tuple[Votes, ...], int]:
    """The word that most methods name the most important, a model each; certified scores alone have a vote."""
    every = found.explained("word_scores")
    own = every[(every["text"] == text) & every["is_word"].astype(bool) & every["method"].isin(found.study.methods)]
    own = certified(one_setting(own, found.study.baseline), found.table("certificates")).dropna(subset="score")
    votes, asked, called = [], 0, _names(own)
    for label in found.pair:
        ranked = own[own["model"] == label].sort_values("score", ascending=False, kind="stable")
        names = ranked.drop_duplicates("method")["start"].map(called)
        asked = max(asked, len(names))
        if len(names):
            word, count = Counter(names).most_common(1)[0]
            votes.append(Votes(label, word, count))
    return tuple(votes), asked
