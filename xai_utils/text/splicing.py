"""Where two tokenisations of one text can be exchanged: between characters at which both begin a token.

A prompt may then be read by one tokenizer up to such a character and by the other behind it, and stays well formed: no
character is read twice, in part or not at all. Words that one token of either tokenizer joins are exchanged together.
"""

from __future__ import annotations

from dataclasses import dataclass

from xai_utils.errors import UserError
from xai_utils.text.cases import Case


@dataclass(frozen=True)
class Segment:
    """A stretch of the prompt that can be read by either tokenizer: whole words, with the white space in front.

    `start` and `end` are characters of the words, None for special tokens in front of or behind the text. `positions`
    are those of the tokens in the two prompts, the base's first; either may be empty.
    """

    name: str
    start: int | None
    end: int | None
    positions: tuple[range, range]


def segments(base: Case, other: Case) -> list[Segment]:
    """The whole prompt as readings, in order. Raises UserError for two texts, or one that was cut to `max_tokens`."""
    if base.text != other.text:
        raise UserError(f"text '{base.text_id}' differs between '{base.model}' and '{other.model}'; expected one text")
    for case in (base, other):
        if case.cut:
            raise UserError(
                f"text '{case.text_id}' lost {case.cut} tokens under '{case.model}', so the models read different "
                "texts; raise max_tokens or shorten the text"
            )
    cuts = [_cuts(case) for case in (base, other)]
    words = [(word.start, word.end) for word in base.words]
    common = [at for at in sorted(cuts[0].keys() & cuts[1].keys()) if not any(start < at < end for start, end in words)]
    inner = [
        _between(base, start, end, (range(cuts[0][start], cuts[0][end]), range(cuts[1][start], cuts[1][end])))
        for start, end in _joined(common, base.text)
    ]
    ends = [(min(places.values()), max(places.values())) for places in cuts]
    front = _special("document start", range(ends[0][0]), range(ends[1][0]))
    back = _special("behind the text", range(ends[0][1], len(base.tokens)), range(ends[1][1], len(other.tokens)))
    return [*front, *inner, *back]


def _cuts(case: Case) -> dict[int, int]:
    """Characters at which a token begins and all earlier ones have ended, with the position of that token."""
    text = [place for place, token in enumerate(case.tokens) if token.start is not None]
    first, last = (text[0], text[-1] + 1) if text else (len(case.tokens), len(case.tokens))
    cuts = {0: first}
    ended = 0
    for place in range(first, last):
        start, end = case.tokens[place].start, case.tokens[place].end
        start, end = (ended, ended) if start is None or end is None else (start, end)
        if start >= ended:
            cuts.setdefault(ended, place)
            cuts.setdefault(start, place)  # another one where the tokenizer dropped characters
        ended = max(ended, end)
    return cuts | {len(case.text): last}


def _joined(cuts: list[int], text: str) -> list[tuple[int, int]]:
    """Neighbouring cuts as pairs; white space alone goes with what follows it."""
    kept = [0, *(end for start, end in zip(cuts, cuts[1:], strict=False) if not text[start:end].isspace())]
    return list(zip(kept, kept[1:], strict=False))


def _between(case: Case, start: int, end: int, positions: tuple[range, range]) -> Segment:
    inside = [word for word in case.words if start <= word.start and word.end <= end]
    first, last = inside[0].start, inside[-1].end
    return Segment(case.text[first:last], first, last, positions)


def _special(name: str, one: range, two: range) -> list[Segment]:
    """Special tokens as one reading, none where there are none."""
    return [Segment(name, None, None, (one, two))] if one or two else []
