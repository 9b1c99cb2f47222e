"""Attention between words, and what an adaptation changed in it, head by head, against a floor.

Words depend on the text alone, so two tokenizers can be compared on them: queries are averaged over a word's tokens,
keys summed. Two models' rows are compared by the Jensen-Shannon divergence (nats, at most ln 2 = 0.693). The floor is
the same divergence of one model between the text and a rewording of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.special import rel_entr

from xai_utils.attention.layers import Layer, pool, stream
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case, units, word_weights

START, OTHER = "‹start›", "‹other›"  # what stands in front of the text, and whatever else is no word


@dataclass(frozen=True)
class WordAttention:
    """Attention from each word (row) to `columns`: START, all words, OTHER; rows sum to 1."""

    case: Case
    words: tuple[str, ...]
    starts: tuple[int, ...]  # the character at which each word begins
    weights: Float[np.ndarray, "layer head word column"]

    @property
    def columns(self) -> tuple[str, ...]:
        return (START, *self.words, OTHER)


def word_attention(model: LoadedModel, case: Case) -> WordAttention:
    """Attention between the words of a case, from one streamed pass.

    START gathers the special tokens in front of the text, OTHER the tokens of white space and the special ones behind;
    neither has a row. A first word that no start token precedes keeps the sink's mass, under its own name. Words that
    the tokenizer drops are left out. Raises UserError where no word is left.
    """
    rows = units(case)
    membership = torch.from_numpy(word_weights(case))
    words = [index for index, unit in enumerate(rows) if unit.is_word and unit.tokens]
    if not words:
        raise UserError(
            f"text '{case.text_id}': '{case.model}' reads no word of it; expected one or more; use another text"
        )
    first = rows[words[0]].tokens[0]
    start = [index for index, unit in enumerate(rows) if not unit.is_word and unit.tokens[0] < first]
    other = [index for index in range(len(rows)) if index not in {*words, *start}]
    found: list[np.ndarray] = []

    def reduce(layer: Layer) -> None:
        part = pool(layer.weights.double(), membership.to(layer.weights.device))[:, words].cpu().numpy()
        front, rest = (part[..., columns].sum(-1, keepdims=True) for columns in (start, other))
        found.append(np.concatenate([front, part[..., words], rest], -1))

    stream(model, case.ids, reduce)
    starts = tuple(rows[index].start or 0 for index in words)
    return WordAttention(case, tuple(rows[index].text for index in words), starts, np.stack(found))


def divergence(
    first: Float[np.ndarray, "layer head word column"], second: Float[np.ndarray, "layer head word column"]
) -> Float[np.ndarray, "layer head"]:
    """Jensen-Shannon divergence of two models' rows in nats, averaged over the words.

    >>> same, other = np.array([[[[1.0, 0.0]]]]), np.array([[[[0.0, 1.0]]]])
    >>> divergence(same, same).item(), round(divergence(same, other).item(), 4)
    (0.0, 0.6931)
    """
    middle = (first + second) / 2
    both = rel_entr(first, middle).sum(-1) + rel_entr(second, middle).sum(-1)
    return (both / 2).clip(0).mean(-1)  # rounding can take a divergence of nothing below zero


def shared_words(first: Sequence[str], second: Sequence[str]) -> tuple[list[int], list[int]]:
    """Positions of the words that two texts have in common, in order, each used once; case is ignored.

    >>> shared_words(["Сколько", "планет", "там", "?"], ["Каково", "число", "планет", "?"])
    ([1, 3], [2, 3])
    """
    matcher = SequenceMatcher(None, [word.casefold() for word in first], [word.casefold() for word in second], False)
    pairs = [(block.a + i, block.b + i) for block in matcher.get_matching_blocks() for i in range(block.size)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _restricted(attention: WordAttention, words: list[int]) -> Float[np.ndarray, "layer head word column"]:
    """Rows and columns of the given words alone; the other words' columns go to OTHER, so that rows keep their sum."""
    weights = attention.weights[:, :, words]
    columns = [0, *(word + 1 for word in words)]
    others = [column for column in range(weights.shape[-1]) if column not in columns]
    return np.concatenate([weights[..., columns], weights[..., others].sum(-1, keepdims=True)], -1)


def _common(first: WordAttention, second: WordAttention) -> list[WordAttention]:
    """Two models' attention over the words of one text that both read: one may have been cut, or drop a character."""
    both = set(first.starts) & set(second.starts)
    found = []
    for each in (first, second):
        kept = [index for index, start in enumerate(each.starts) if start in both]
        words = tuple(each.words[index] for index in kept)
        found.append(WordAttention(each.case, words, tuple(each.starts[i] for i in kept), _restricted(each, kept)))
    return found


def attention_change(
    base: WordAttention, other: WordAttention, rewordings: Sequence[tuple[WordAttention, WordAttention]] = ()
) -> pd.DataFrame:
    """What differs between two models on one text, a row a head.

    `divergence` is over all words that both read. The floor needs texts whose words differ, so it is taken over the
    words that text and rewording share, the others gathered in one column: a row stays a distribution, and the head is
    still asked where *these words* look, which profiles of distances would not do. Gathering columns can only lower a
    divergence; so `shared`, the models' divergence, is taken over the same columns as `floor`, the larger of the two
    models' changes under the rewording. Both are means over the rewordings; `beyond_floor` asks for shared > floor
    under each of them, and is empty where no rewording shares two words with the text.

    `rewordings` holds pairs (base, other) of the same rewording. Raises UserError where heads or words do not match.
    """
    _check_comparable(base, other)
    base, other = _common(base, other)
    layers, heads = base.weights.shape[:2]
    layer, head = np.divmod(np.arange(layers * heads), heads)
    keys = {"study": base.case.study, "text": base.case.text_id, "base": base.case.model, "other": other.case.model}
    table = pd.DataFrame(keys | {"layer": layer, "head": head})
    table["divergence"] = divergence(base.weights, other.weights).ravel()
    between, floors = [], []
    for pair in (_common(*each) for each in rewordings):
        own, reworded = shared_words(base.words, pair[0].words)
        if len(own) < 2:
            continue
        between.append(divergence(_restricted(base, own), _restricted(other, own)).ravel())
        changes = [
            divergence(_restricted(text, own), _restricted(again, reworded))
            for text, again in zip((base, other), pair, strict=True)
        ]
        floors.append(np.maximum(*changes).ravel())
    table["shared"] = np.mean(between, axis=0) if between else np.nan
    table["floor"] = np.mean(floors, axis=0) if floors else np.nan
    table["beyond_floor"] = pd.Series(np.greater(between, floors).all(0) if floors else None, table.index, "boolean")
    return table


def _check_comparable(base: WordAttention, other: WordAttention) -> None:
    if not set(base.starts) & set(other.starts):
        raise UserError(
            f"text '{base.case.text_id}': '{base.case.model}' and '{other.case.model}' read no word in common; "
            "expected one or more; raise max_tokens, or use another text"
        )
    if base.weights.shape[:2] != other.weights.shape[:2]:
        shapes = [" x ".join(map(str, each.weights.shape[:2])) for each in (base, other)]
        raise UserError(
            f"'{base.case.model}' has {shapes[0]} heads and '{other.case.model}' {shapes[1]}; expected a twin of the "
            "same shape to compare head by head; compare their statistics instead"
        )


def most_changed(change: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """The heads whose attention differs most, largest divergence first."""
    return change.nlargest(count, "divergence")
