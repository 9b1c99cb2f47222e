"""From a study's text to what a model reads: normalised text, tokens with character spans, words.

A *token* is what the model reads, a *span* its character range in the normalised text, a *word* what a person reads
(words.py). Words depend on the text alone, so two tokenizers can be compared on them. Nothing here computes an
attribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xai_utils.errors import UserError
from xai_utils.text.entry import Reading, TextEntry
from xai_utils.text.tokenise import chat_ids, continuation_ids, labels, plain_ids, token_name
from xai_utils.text.words import Word, normalise, words

if TYPE_CHECKING:
    from xai_utils.models.loading import LoadedModel


@dataclass(frozen=True)
class Token:
    """One position of the prompt. `start` and `end` are None where the token stands for no character of the text."""

    id: int
    label: str
    start: int | None
    end: int | None
    kind: str  # text | special


@dataclass(frozen=True)
class Unit:
    """A row of the word view: a word, or a token that belongs to no word (special, white space)."""

    text: str
    start: int | None
    end: int | None
    tokens: tuple[int, ...]  # positions with a share in this unit; none where the tokenizer drops the word
    is_word: bool


@dataclass(frozen=True)
class Case:
    """One text of a study under one model, tokenised.

    `cut` counts the tokens lost to truncation, `padding` those missing to `max_tokens`.
    """

    study: str
    text_id: str
    model: str
    role: str
    text: str
    tokens: tuple[Token, ...]
    words: tuple[Word, ...]
    answer: str | None = None
    contrast: str | None = None
    answer_ids: tuple[int, ...] = ()
    contrast_ids: tuple[int, ...] = ()
    cut: int = 0
    padding: int = 0
    language: str | None = None
    group: str | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def labels(self) -> list[str]:
        return [token.label for token in self.tokens]

    def keys(self) -> dict[str, str]:
        """The key columns that every table starts with."""
        return {"study": self.study, "text": self.text_id, "model": self.model, "role": self.role}


def units(case: Case) -> list[Unit]:
    """The rows of the word view, in reading order: every word, and every token that covers no character of a word."""
    weights = _shares(case)
    rows = []
    for index, word in enumerate(case.words):
        rows.append(Unit(word.text, word.start, word.end, tuple(np.flatnonzero(weights[:, index]).tolist()), True))
    for position in np.flatnonzero(weights.sum(1) == 0):
        token = case.tokens[position]
        rows.append(Unit(token.label, token.start, token.end, (int(position),), False))
    return sorted(rows, key=lambda unit: (_place(unit, case), unit.start or 0))


def _place(unit: Unit, case: Case) -> int:
    """The first token of a unit; for a word that no token covers, since its tokenizer drops it, the next one's."""
    if unit.tokens:
        return unit.tokens[0]
    behind = (i for i, token in enumerate(case.tokens) if token.start is not None and token.start >= (unit.start or 0))
    return next(behind, len(case.tokens))


def _shares(case: Case) -> np.ndarray:
    """Share of each word in the characters of words that a token covers: [token, word]."""
    starts = np.array([word.start for word in case.words])
    ends = np.array([word.end for word in case.words])
    first = np.array([token.start if token.start is not None else 0 for token in case.tokens])
    last = np.array([token.end if token.end is not None else 0 for token in case.tokens])
    overlap = np.clip(np.minimum(last[:, None], ends) - np.maximum(first[:, None], starts), 0, None).astype(float)
    total = overlap.sum(1, keepdims=True)
    return np.divide(overlap, total, out=np.zeros_like(overlap), where=total > 0)


def word_weights(case: Case) -> np.ndarray:
    """Weights [token, unit] that carry token scores to `units(case)`; each row sums to 1, so sums are conserved."""
    shares = _shares(case)
    weights = np.zeros((len(case.tokens), len(units(case))))
    index = {word.start: column for column, word in enumerate(case.words)}
    for column, unit in enumerate(units(case)):
        word = index[unit.start] if unit.is_word and unit.start is not None else None
        if word is None:
            weights[unit.tokens[0], column] = 1.0
        else:
            weights[:, column] = shares[:, word]
    return weights


def pad(case: Case, length: int, pad_id: int) -> tuple[list[int], list[int]]:
    """Token ids padded on the right to `length`, and the attention mask (1 for real tokens)."""
    missing = max(length - len(case.tokens), 0)
    return case.ids + [pad_id] * missing, [1] * len(case.tokens) + [0] * missing


def prepare(model: LoadedModel, entry: TextEntry, reading: Reading, study: str = "") -> Case:
    """Tokenise one text for one model: prefix or chat template, truncation to `max_tokens`, answer apart.

    Raises UserError where the text does not fit the model's positions or an answer cannot be written in its vocabulary.
    """
    text = normalise(entry.text, reading.normalisation)
    ids, spans = chat_ids(model.tokenizer, text) if entry.chat else plain_ids(model, text, reading.prefix)
    cut = max(len(ids) - reading.max_tokens, 0)
    if cut:
        ids, spans = ids[: reading.max_tokens], spans[: reading.max_tokens]
    names = [token_name(model, i) for i in ids]
    readable = labels(text, spans, names)
    tokens = tuple(
        Token(i, label, None, None, "special") if span is None else Token(i, label, span[0], span[1], "text")
        for i, label, span in zip(ids, readable, spans, strict=True)
    )
    reach = max((span[1] for span in spans if span), default=0) if cut else len(text)
    if not reach:
        raise UserError(
            f"text '{entry.id}': max_tokens {reading.max_tokens} leaves nothing of it for model '{model.label}', whose "
            f"prompt starts with tokens of its own; expected {len(ids) + cut} for all of it; raise max_tokens"
        )
    case = Case(
        study=study,
        text_id=entry.id,
        model=model.label,
        role=model.role,
        text=text,
        tokens=tokens,
        words=tuple(word for word in words(text) if word.start < reach),
        answer=entry.answer,
        contrast=entry.contrast,
        answer_ids=continuation_ids(model.tokenizer, ids, entry.answer, entry.chat, f"text '{entry.id}', answer"),
        contrast_ids=continuation_ids(model.tokenizer, ids, entry.contrast, entry.chat, f"text '{entry.id}', contrast"),
        cut=cut,
        padding=max(reading.max_tokens - len(ids), 0),
        language=entry.language,
        group=entry.group,
    )
    _check_positions(model, case)
    return case


def _check_positions(model: LoadedModel, case: Case) -> None:
    limit = getattr(model.model.config, "max_position_embeddings", None)
    needed = len(case.tokens) + max(len(case.answer_ids), len(case.contrast_ids))
    if limit is not None and needed > limit:
        raise UserError(
            f"text '{case.text_id}' needs {needed} positions with its answer and model '{case.model}' has {limit}; "
            "lower max_tokens or shorten the text"
        )
