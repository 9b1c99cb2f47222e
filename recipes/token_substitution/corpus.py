"""The corpus: documents cleaned, repetition taken out, split by document into train and held-out, without a leak.

A whole document is held out, in both languages at once. Translated manuals repeat sentences from page to page, so
parting documents is not enough: a training sentence that is in the held-out text, or nearly so, is taken out of the
training text (`overlap`; of its word 4-grams, half or more occur in held-out text; n-gram containment as in Broder
1997). What this does not do: part authors or subjects, so held-out text is of the same kinds as the training text.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from recipes.token_substitution.sources import SOURCES, Document, documents, fetch_package
from xai_utils.errors import UserError

HELD_OUT_SHARE = 0.02
HELD_OUT_LEAST = 3  # documents of a kind
HELD_OUT_LIMIT = 10_000  # characters of one document that are kept; the rest of a held-out document is used nowhere
LEAST_RUSSIAN = 5_000_000
GRAM = 4

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff]")
_LETTER = re.compile(r"[^\W\d_]")
_CYRILLIC = re.compile("[А-Яа-яЁё]")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|\n+")


@dataclass(frozen=True)
class Text:
    """One document of the corpus: its paragraphs, a line each."""

    kind: str
    package: str
    name: str
    language: str
    split: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Training and held-out texts, and what each package gave."""

    texts: tuple[Text, ...]
    packages: tuple[dict[str, str | int], ...]

    def select(self, split: str, language: str) -> list[Text]:
        return [text for text in self.texts if (text.split, text.language) == (split, language)]


def clean(paragraph: str) -> str:
    """One line in NFC without invisible characters and runs of white space.

    >>> clean(" Два\\u00adсло́ва \\n и  ещё ")
    'Двасло́ва и ещё'
    """
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", paragraph))
    return " ".join(
        "".join(character if character.isprintable() or character.isspace() else " " for character in text).split()
    )


def belongs(paragraph: str, language: str) -> bool:
    """Whether a cleaned paragraph is prose of `language`: at least three words, mostly letters, of the right
    alphabet."""
    letters = _LETTER.findall(paragraph)
    if len(letters) < 12 or len(paragraph.split()) < 3 or len(letters) < 0.65 * len(paragraph.replace(" ", "")):
        return False
    cyrillic = len(_CYRILLIC.findall(paragraph)) / len(letters)
    return cyrillic >= 0.7 if language == "ru" else cyrillic == 0


def key_of(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, digits made alike: what counts as the same sentence.

    >>> key_of("Файл №12 — открыт!")
    ('файл', '0', 'открыт')
    """
    return tuple(re.findall(r"\w+", re.sub(r"\d+", "0", text.lower().replace("ё", "е"))))


def grams(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    """All runs of `GRAM` words; a sentence of fewer (but more than one) is one run itself."""
    if len(words) < 2:
        return set()
    return {words[start : start + GRAM] for start in range(max(1, len(words) - GRAM + 1))}


def overlap(sentence: str, known: set[tuple[str, ...]]) -> float:
    """The share of a sentence's word 4-grams that are in `known`, 0 for a single word."""
    own = grams(key_of(sentence))
    return len(own & known) / len(own) if own else 0.0


def sentences(text: str) -> list[str]:
    """A text cut after sentence ends and at line ends."""
    return [part for part in _SENTENCE_END.split(text) if part.strip()]


def held_out_names(names: Iterable[str], share: float = HELD_OUT_SHARE) -> set[str]:
    """The documents to hold out: those whose name's hash is in the lowest `share`, and at least `HELD_OUT_LEAST` of
    them."""
    order = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    chosen = [name for name in order if int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < share * 2**64]
    return set(order[: max(len(chosen), min(HELD_OUT_LEAST, len(order) - 1))])


def split(found: list[Document], share: float = HELD_OUT_SHARE) -> list[Text]:
    """Clean, choose what is held out, take repeated paragraphs out (held-out documents first) and close the leaks."""
    by_group: dict[str, list[str]] = {}
    for document in found:
        by_group.setdefault(document.kind, []).append(document.name)
    held = {kind: held_out_names(names, share) for kind, names in by_group.items()}
    ordered = sorted(found, key=lambda document: document.name not in held[document.kind])
    seen: set[tuple[str, tuple[str, ...]]] = set()
    known: set[tuple[str, ...]] = set()
    texts = []
    for document in ordered:
        out = document.name in held[document.kind]
        lines = list(_fresh(document, seen))
        if out:
            text = _first("\n".join(lines), HELD_OUT_LIMIT)
            known.update(*(grams(key_of(sentence)) for sentence in sentences(text)))
        else:
            text = "\n".join(filter(None, (_without(line, known) for line in lines)))
        if text:
            texts.append(
                Text(
                    document.kind,
                    document.package,
                    document.name,
                    document.language,
                    "held-out" if out else "train",
                    text,
                )
            )
    return texts


def _fresh(document: Document, seen: set[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    for paragraph in document.paragraphs:
        line = clean(paragraph)
        mark = (document.language, key_of(line))
        if belongs(line, document.language) and mark not in seen:
            seen.add(mark)
            yield line


def _first(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: text.rfind("\n", 0, limit) if "\n" in text[:limit] else limit]


def _without(line: str, known: set[tuple[str, ...]]) -> str:
    return " ".join(sentence for sentence in sentences(line) if overlap(sentence, known) < 0.5)


def collect(folder: Path) -> tuple[list[Document], list[dict[str, str | int]]]:
    """Documents of all packages, and a row for each package; one that cannot be had is left out with one line."""
    found: list[Document] = []
    rows: list[dict[str, str | int]] = []
    for source in SOURCES:
        for package in source.packages:
            try:
                file = fetch_package(package, folder)
                own = list(documents(source, package, file))
            except UserError as error:
                print(f"left out: {error}")
                continue
            found += own
            version = file.name.split("_")[1].replace("%3a", ":")
            rows.append({"package": package, "version": version, "kind": source.kind, "licence": source.licence})
    return found, rows


def build(folder: Path) -> Corpus:
    """The corpus under `folder`, made on first use. Raises UserError where too little Russian could be had."""
    stored = folder / "corpus.json"
    if not stored.exists():
        found, rows = collect(folder / "packages")
        texts = split(found)
        counts = Counter((text.package, f"{text.language} {text.split}") for text in texts for _ in text.text)
        for row in rows:
            row |= {
                name: counts[str(row["package"]), name]
                for name in ("ru train", "ru held-out", "en train", "en held-out")
            }
        russian = sum(len(text.text) for text in texts if text.language == "ru")
        if russian < LEAST_RUSSIAN:
            raise UserError(
                f"only {russian} characters of Russian were found; expected {LEAST_RUSSIAN}; "
                "the packages left out are named above"
            )
        partial = stored.with_suffix(".partial")
        partial.write_text(
            json.dumps({"packages": rows, "texts": [asdict(text) for text in texts]}, ensure_ascii=False)
        )
        partial.replace(stored)
    data = json.loads(stored.read_text())
    return Corpus(tuple(Text(**text) for text in data["texts"]), tuple(data["packages"]))
