"""What a person reads: the normalised text, its words, and how it is shown on one line.

A word is a run between Unicode word boundaries (UAX #29, by `uniseg`), white space left out.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from uniseg.wordbreak import words as unicode_words

VISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"})
JOINERS = "\u200c\u200d"  # unprintable by themselves, but part of words and of emoji


@dataclass(frozen=True)
class Word:
    """A word of the normalised text: characters `start` to `end` (end excluded)."""

    text: str
    start: int
    end: int


def visible(text: str) -> str:
    r"""A text on one line with what cannot be seen, or turns the writing direction, made visible.

    >>> visible("a\n\u202eb")
    'a⏎‹U+202E›b'
    >>> visible("  ")
    '␣␣'
    """
    return characters(text) if text.strip(" ") else "␣" * len(text)


def characters(text: str) -> str:
    """As `visible`, with spaces as they are."""
    shown = text.translate(VISIBLE)
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
