"""Token substitution in a byte-level BPE tokenizer: rare tokens go, Russian ones come, the size stays.

A token may go when no merge that stays needs it (a leaf), when it is neither special nor a single byte, and when it
is rare in real English text; among equally rare ones the latest merge goes first, since merge order is frequency
order in the text that the tokenizer was trained on. Leaving out the merge of a leaf changes only texts that used the
leaf: BPE applies one merge after the other, and a merge that never fires changes nothing. So other English tokenises
exactly as before.

What comes is a BPE of Russian words, trained on letters and not on bytes, so that no token is half a letter. Its
merges stand before the old ones; they join Cyrillic letters (and a space before one) alone, so they cannot fire in
English. The base's own few Cyrillic tokens belong to the old way of cutting Russian: they go too, and come again, in
the same places, where the Russian BPE wants them.

The file is edited as JSON: the tokenizers library has no call to take a token out, and `tokenizerchanger`, which
edits that JSON as well, deletes merges by token but keeps no order between old and new merges, on which all of the
above rests.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

LETTERS = "абвгдеёжзийклмнопрстуфхцчшщъыьэюяАБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ"
ROWS = 4096

Merge = tuple[str, str]


@dataclass(frozen=True)
class Substitution:
    """The new tokenizer, and which ids carry another token than before or carry it in another way."""

    tokenizer: PreTrainedTokenizerFast
    rows: tuple[int, ...]
    gone: tuple[str, ...]
    come: tuple[str, ...]


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte, the alphabet of byte-level BPE files.

    >>> byte_letters()[65], byte_letters()[32], byte_letters()[208]
    ('A', 'Ġ', 'Ð')
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(rest)}


_LETTER_OF = byte_letters()
_BYTE_OF = {letter: byte for byte, letter in _LETTER_OF.items()}


def spelled(text: str) -> str:
    """A text as byte-level BPE files spell it.

    >>> spelled(" да")
    'ĠÐ´Ð°'
    """
    return "".join(_LETTER_OF[byte] for byte in text.encode())


def unspelled(token: str) -> str | None:
    """The text of a token, None where its bytes are no whole characters or where it is no byte-level token."""
    try:
        return bytes(_BYTE_OF[letter] for letter in token).decode()
    except (KeyError, UnicodeDecodeError):
        return None


def russian_words(texts: Iterable[str]) -> Iterator[str]:
    """Runs of Russian letters with the space before them, as the pre-tokeniser of the base cuts them."""
    for text in texts:
        yield from re.findall(f" ?[{LETTERS}]+", text)


def train_russian(texts: Iterable[str], rows: int = ROWS) -> list[Merge]:
    """Merges of a BPE over the letters of Russian words, as many as fill `rows` tokens together with the letters."""
    tokenizer = Tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=rows + 1, initial_alphabet=[" ", *LETTERS], limit_alphabet=len(LETTERS) + 1, show_progress=False
    )
    tokenizer.train_from_iterator(russian_words(texts), trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def count_tokens(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Counter[int]:
    """How often each id occurs in the texts."""
    lists = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return Counter(identifier for identifiers in lists for identifier in identifiers)


def is_cyrillic(token: str) -> bool:
    text = unspelled(token)
    return bool(text and re.search(f"[{LETTERS}]", text))


def choose_leaving(model: dict, special: set[str], counts: Counter[int], number: int) -> list[str]:
    """The `number` rarest tokens that may go, rarest first; the base's Cyrillic tokens stand apart and are not among
    them.

    `model` is the "model" part of a tokenizer file. Raises ValueError where fewer than `number` may go.
    """
    needed = {part for merge in model["merges"] for part in merge if not is_cyrillic("".join(merge))}
    free = [
        (counts[identifier], -identifier, token)
        for token, identifier in model["vocab"].items()
        if token not in needed and token not in special and len(token) > 1 and not is_cyrillic(token)
    ]
    if not 0 <= number <= len(free):
        raise ValueError(f"{number} tokens are to go, and 0 to {len(free)} may")
    return [token for *_, token in sorted(free)[:number]]


def substitute(base: PreTrainedTokenizerFast, merges: list[Merge], counts: Counter[int]) -> Substitution:
    """The tokenizer with the tokens of `merges` (in letters) and all Russian letters in the place of rare ones."""
    file = json.loads(base.backend_tokenizer.to_str())
    model = file["model"]
    old_merges = [tuple(merge) for merge in model["merges"]]
    come = [spelled(text) for text in [*LETTERS, *("".join(merge) for merge in merges)]]
    old_cyrillic = [token for token in model["vocab"] if is_cyrillic(token)]
    fresh = [token for token in come if token not in model["vocab"]]
    unwanted = [token for token in old_cyrillic if token not in set(come)]
    special = {token["content"] for token in file["added_tokens"]}
    gone = unwanted + choose_leaving(model | {"merges": old_merges}, special, counts, len(fresh) - len(unwanted))
    places = sorted(model["vocab"].pop(token) for token in gone)
    model["vocab"] |= dict(zip(fresh, places, strict=True))
    leaving = {*gone, *old_cyrillic}
    byte_merges = [(_LETTER_OF[first], _LETTER_OF[second]) for first, second in (letter.encode() for letter in LETTERS)]
    new_merges = byte_merges + [(spelled(left), spelled(right)) for left, right in merges]
    model["merges"] = [
        list(merge) for merge in new_merges + [merge for merge in old_merges if "".join(merge) not in leaving]
    ]
    tokenizer = type(base)(tokenizer_object=Tokenizer.from_str(json.dumps(file)), **_settings(base))
    rows = sorted(model["vocab"][token] for token in come)
    return Substitution(tokenizer, tuple(rows), tuple(gone), tuple(come))


def _settings(base: PreTrainedTokenizerFast) -> dict:
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return {name: getattr(base, name) for name in names} | {
        "chat_template": base.chat_template,
        "model_max_length": base.model_max_length,
    }
