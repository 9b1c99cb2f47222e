"""From a study's text to what a model reads: normalised text, tokens with character spans, words.

A *token* is what the model reads, a *span* its character range in the normalised text, a *word* what a person reads:
a run between Unicode word boundaries (UAX #29, by `uniseg`), white space left out. Words depend on the text alone, so
two tokenizers can be compared on them. Nothing here computes an attribution.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from uniseg.wordbreak import words as unicode_words

from xai_utils.errors import UserError
from xai_utils.text.entry import Reading, TextEntry

if TYPE_CHECKING:
    from xai_utils.models.loading import LoadedModel

SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
VISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"})
JOINERS = "\u200c\u200d"  # unprintable by themselves, but part of words and of emoji


@dataclass(frozen=True)
class Word:
    """A word of the normalised text: characters `start` to `end` (end excluded)."""

    text: str
    start: int
    end: int


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


def visible(text: str) -> str:
    r"""A text on one line with what cannot be seen, or turns the writing direction, made visible.

    >>> visible("a\n\u202eb")
    'a⏎‹U+202E›b'
    >>> visible("  ")
    '␣␣'
    """
    shown = text.translate(VISIBLE) if text.strip(" ") else "␣" * len(text)
    return "".join(c if c.isprintable() or c in JOINERS else f"‹U+{ord(c):04X}›" for c in shown)


def told_apart(words: Sequence[str]) -> list[str]:
    """Words as labels, in reading order: those that come several times are numbered.

    >>> told_apart(["Tom", "met", "Anna", ",", "then", "Anna"])
    ['Tom', 'met', 'Anna (1)', ',', 'then', 'Anna (2)']
    """
    total, seen = Counter(words), Counter[str]()
    labels = []
    for word in words:
        seen[word] += 1
        labels.append(word if total[word] == 1 else f"{word} ({seen[word]})")
    return labels


def normalise(text: str, form: Literal["NFC", "NFKC", "none"] = "NFC") -> str:
    r"""Trim white space and apply a Unicode normal form (`NFC`, `NFKC` or `none`).

    >>> normalise(" и\u0306од ")
    'йод'
    """
    trimmed = text.strip()
    return trimmed if form == "none" else unicodedata.normalize(form, trimmed).strip()


def words(text: str) -> list[Word]:
    """The words of a normalised text (UAX #29), punctuation marks words of their own, white space left out.

    >>> [word.text for word in words("Don't stop, мир!")]
    ["Don't", 'stop', ',', 'мир', '!']
    """
    found, start = [], 0
    for piece in unicode_words(text):
        end = start + len(piece)
        if not piece.isspace():
            found.append(Word(piece, start, end))
        start = end
    return found


def _spans(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Give each token the white space in front of it, which some tokenizers leave out of their offsets."""
    spans, covered = [], 0
    for start, end in offsets:
        if end > start >= covered and text[covered:start].isspace():
            start = covered
        spans.append((start, end))
        covered = max(covered, end)
    return spans


def _labels(text: str, spans: list[tuple[int, int] | None], names: list[str]) -> list[str]:
    """Readable labels: the source characters; tokens that share a character are told apart by a subscript."""
    readers: dict[int, list[int]] = {}
    for position, span in enumerate(spans):
        for character in range(*(span or (0, 0))):
            readers.setdefault(character, []).append(position)
    part: dict[int, int] = {}
    for sharing in readers.values():
        if len(sharing) > 1:
            for position in sharing:
                part.setdefault(position, part.get(position - 1, 0) + 1 if position - 1 in sharing else 1)
    labels = []
    for position, span in enumerate(spans):
        if span is None or span[0] == span[1]:
            labels.append(names[position])
        else:
            mark = str(part[position]).translate(SUBSCRIPT) if position in part else ""
            labels.append(text[slice(*span)].translate(VISIBLE) + mark)
    return labels


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
    ids, spans = _chat(model.tokenizer, text) if entry.chat else _plain(model, text, reading.prefix)
    cut = max(len(ids) - reading.max_tokens, 0)
    if cut:
        ids, spans = ids[: reading.max_tokens], spans[: reading.max_tokens]
    names = [token_name(model, i) for i in ids]
    labels = _labels(text, spans, names)
    tokens = tuple(
        Token(i, label, None, None, "special") if span is None else Token(i, label, span[0], span[1], "text")
        for i, label, span in zip(ids, labels, spans, strict=True)
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


def token_name(model: LoadedModel, token: int) -> str:
    """What a token that stands for no character of the text is called: its own text, white space made visible."""
    return str(model.tokenizer.decode([token])).translate(VISIBLE)


def _plain(model: LoadedModel, text: str, prefix: str) -> tuple[list[int], list[tuple[int, int] | None]]:
    encoded = model.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, special = list(encoded["input_ids"]), encoded["special_tokens_mask"]
    real = [i for i, mark in enumerate(special) if not mark]
    spans: list[tuple[int, int] | None] = [None] * len(ids)
    for i, span in zip(real, _spans(text, [encoded["offset_mapping"][i] for i in real]), strict=True):
        spans[i] = span
    while special and special[-1]:  # an end-of-sequence token behind the prompt would cut the answer off
        ids, spans, special = ids[:-1], spans[:-1], special[:-1]
    if prefix == "document_start" and model.document_start is not None:
        ids, spans = [model.document_start, *ids], [None, *spans]
    return ids, spans


def _chat(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int] | None]]:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "this model's tokenizer has no chat template; expected one because a text says chat: true; "
            "set chat: false for that text or name another tokenizer"
        )
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    at = rendered.rfind(text)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    spans: list[tuple[int, int] | None] = []
    for start, end in _spans(rendered, encoded["offset_mapping"]):
        first, last = max(start - at, 0), min(end - at, len(text))
        spans.append((first, last) if at >= 0 and last > first else None)
    return list(encoded["input_ids"]), spans


def continuation_ids(
    tokenizer: Any, prompt: list[int], text: str | None, chat: bool = False, what: str = "answer"
) -> tuple[int, ...]:
    """Token ids of a continuation, tokenised apart from the prompt, that reads back as the text behind the prompt.

    SentencePiece tokenizers put a space in front of whatever they read, so there the text goes in without its own.
    After a chat template the reply starts a line: its leading space is dropped. Raises UserError if no way reads back.
    """
    if text is None:
        return ()
    wanted = text.lstrip(" ") if chat else text
    prefix = tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
    for candidate in dict.fromkeys((wanted, wanted.lstrip(" "))):
        ids = tokenizer(candidate, add_special_tokens=False)["input_ids"]
        if tokenizer.unk_token_id in ids and tokenizer.decode([tokenizer.unk_token_id]) not in wanted:
            continue
        if ids and tokenizer.decode([*prompt, *ids], clean_up_tokenization_spaces=False) == prefix + wanted:
            return tuple(ids)
    raise UserError(
        f"{what} {text!r} cannot be written in the vocabulary of this model; expected a text that its tokenizer "
        "reads back unchanged; choose another answer or leave it out"
    )


def _check_positions(model: LoadedModel, case: Case) -> None:
    limit = getattr(model.model.config, "max_position_embeddings", None)
    needed = len(case.tokens) + max(len(case.answer_ids), len(case.contrast_ids))
    if limit is not None and needed > limit:
        raise UserError(
            f"text '{case.text_id}' needs {needed} positions with its answer and model '{case.model}' has {limit}; "
            "lower max_tokens or shorten the text"
        )
