"""From the corpus to what training reads: the substituted tokenizer, and windows of tokens.

Each kind of text gives the same number of Russian windows, whatever its size, so that no kind drowns the others (the
manuals alone would be a third); a kind that runs out begins again. English windows stand among them against
forgetting.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from recipes.token_substitution import vocabulary
from recipes.token_substitution.corpus import Corpus, Text

OF_LOADING = ("is_local", "local_files_only")


def tokenizer(base: PreTrainedTokenizerFast, texts: Corpus, folder: Path) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """The substituted tokenizer under `folder` and its new rows in ascending order, made on first use."""
    stored = folder / "tokenizer"
    if not (stored / "rows.json").exists():
        merges = vocabulary.train_russian(text.text for text in texts.select("train", "ru"))
        counts = vocabulary.count_tokens(base, (text.text for text in texts.select("train", "en")))
        made = vocabulary.substitute(base, merges, counts)
        save_tokenizer(made.tokenizer, stored)
        note = {
            "rows": list(made.rows),
            "gone": [[token, counts[base.get_vocab()[token]]] for token in made.gone],
        }
        (stored / "rows.json").write_text(json.dumps(note))
    found = PreTrainedTokenizerFast.from_pretrained(stored)
    return found, json.loads((stored / "rows.json").read_text())["rows"]


def save_tokenizer(made: PreTrainedTokenizerFast, folder: Path) -> None:
    """The tokenizer's files, its large one without the indentation that doubles its size, and without what says how
    this one was loaded."""
    made.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    kept = {name: value for name, value in json.loads(config.read_text()).items() if name not in OF_LOADING}
    config.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False, separators=(",", ":")))


def _endless(
    texts: list[Text], made: PreTrainedTokenizerFast, length: int, start: int, random_: random.Random
) -> Iterator[list[int]]:
    """Windows of `length` tokens out of whole documents in random order, again and again; a start token in front of
    each window, where a study's texts and the evaluation have it, and of each document."""
    documents = made([text.text for text in texts], add_special_tokens=False)["input_ids"]
    rest: list[int] = []
    while True:
        for document in random_.sample(documents, len(documents)):
            rest += [start, *document]
            while len(rest) >= length:
                if rest[0] != start:
                    rest.insert(0, start)
                yield rest[:length]
                rest = rest[length:]


def training_windows(
    texts: Corpus,
    made: PreTrainedTokenizerFast,
    number: int,
    length: int,
    start: int,
    seed: int,
    english_share: float,
) -> Int[Tensor, "window position"]:
    """`number` windows, the kinds of Russian text in turn, an English window wherever their share asks for one."""
    random_ = random.Random(seed)
    streams = {}
    for language in ("ru", "en"):
        own = texts.select("train", language)
        for kind in sorted({text.kind for text in own}):
            streams[language, kind] = _endless(
                [text for text in own if text.kind == kind], made, length, start, random_
            )
    turns = {
        language: [stream for (spoken, _), stream in streams.items() if spoken == language] for language in ("ru", "en")
    }
    windows, english = [], 0
    for place in range(number):
        language = "en" if english < english_share * (place + 1) - 0.5 else "ru"
        turn = english if language == "en" else place - english
        english += language == "en"
        windows.append(next(turns[language][turn % len(turns[language])]))
    return torch.tensor(windows)
