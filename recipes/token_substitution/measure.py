"""How good a substituted model is: bits per character, tokens, and what a person sees.

Bits per character compare across tokenizers, since a character is the same for all. Text is read in windows of
characters, the same for every model: a document's first `WINDOW` characters, the next, and so on. The document start
token goes in front of each, so that the first token of a window is predicted too, and every character is counted
once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from recipes.token_substitution.corpus import Text

WINDOW = 600  # characters
LONGEST = 2048  # tokens of a batch


def windows(text: str, length: int = WINDOW) -> list[str]:
    """A text cut every `length` characters.

    >>> windows("abcde", 2)
    ['ab', 'cd', 'e']
    """
    return [text[start : start + length] for start in range(0, len(text), length)]


@dataclass(frozen=True)
class Reading:
    """What a model needed for some text: nats of surprise and tokens, over so many characters and words."""

    kind: str
    language: str
    nats: float
    tokens: int
    characters: int
    words: int


Surprise = Callable[[Tensor], Tensor]


def surprise_of(model: PreTrainedModel) -> Surprise:
    """-log p of every token but the first, float32, of a plain causal model.

    For int ids [sequence position] it gives nats [sequence position - 1].
    """

    def surprise(ids: Tensor) -> Tensor:
        logits = model(ids.to(model.device), use_cache=False).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:].to(model.device), reduction="none")

    return surprise


@torch.no_grad()
def read(surprise: Surprise, tokenizer: PreTrainedTokenizerFast, texts: list[Text], start: int) -> list[Reading]:
    """One reading a text, whole texts in windows; `start` is the id of the document start token."""
    pieces = [(place, window) for place, text in enumerate(texts) for window in windows(text.text)]
    coded = [
        [start, *ids] for ids in tokenizer([window for _, window in pieces], add_special_tokens=False)["input_ids"]
    ]
    nats, tokens = [0.0] * len(texts), [0] * len(texts)
    for group in _batches(coded):
        longest = max(len(coded[member]) for member in group)
        ids = torch.tensor([coded[member] + [start] * (longest - len(coded[member])) for member in group])
        own = surprise(ids)  # what is padded stands behind the text, where causal attention cannot see it
        for row, member in zip(own, group, strict=True):
            nats[pieces[member][0]] += float(row[: len(coded[member]) - 1].sum())
            tokens[pieces[member][0]] += len(coded[member]) - 1
    return [
        Reading(text.kind, text.language, nats[place], tokens[place], len(text.text), len(text.text.split()))
        for place, text in enumerate(texts)
    ]


def _batches(coded: list[list[int]]) -> Iterator[list[int]]:
    """Places of sequences of like length, up to `LONGEST` tokens together."""
    group: list[int] = []
    for place in sorted(range(len(coded)), key=lambda place: len(coded[place])):
        if group and (len(group) + 1) * len(coded[place]) > LONGEST:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def summary(readings: list[Reading], model: str) -> pd.DataFrame:
    """Bits per character, tokens per word and tokens by language and kind of text, with a row "all" for each
    language."""
    frame = pd.DataFrame([vars(reading) for reading in readings])
    parts = [frame, frame.assign(kind="all")]
    table = (
        pd.concat(parts).groupby(["language", "kind"], as_index=False)[["nats", "tokens", "characters", "words"]].sum()
    )
    table["bits_per_character"] = table["nats"] / math.log(2) / table["characters"]
    table["tokens_per_word"] = table["tokens"] / table["words"]
    table.insert(0, "model", model)
    return table.drop(columns="nats")


def against_base(table: pd.DataFrame, base: str = "base") -> pd.DataFrame:
    """The same table with each row's tokens and bits as a share of the base's."""
    own = table[table["model"] == base].set_index(["language", "kind"])
    index = pd.MultiIndex.from_frame(table[["language", "kind"]])
    shares = {
        f"{name}_of_base": table[name].to_numpy() / own.loc[index, name].to_numpy()
        for name in ("tokens", "bits_per_character")
    }
    return table.assign(**shares)


PROMPTS = (
    ("ru", "Чтобы открыть файл, выберите"),
    ("ru", "Сколько планет в Солнечной системе?"),
    ("ru", "Жизнь — это"),
    ("ru", "— Куда мы идём? — спросил"),
    ("ru", "Москва — столица"),
    ("en", "The capital of France is"),
    ("en", "To open a file, choose"),
)


@torch.no_grad()
def continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, start: int, characters: int = 120
) -> list[dict[str, str]]:
    """The likeliest continuation of each prompt, token by token, a little held back from repeating itself
    (penalty 1.2)."""
    rows = []
    for language, prompt in PROMPTS:
        ids = torch.tensor([[start, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]], device=model.device)
        new = cast(Any, model).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=96,
            do_sample=False,
            repetition_penalty=1.2,
            pad_token_id=start,
        )
        text = str(tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True))
        rows.append({"language": language, "prompt": prompt, "continuation": " ".join(text.split())[:characters]})
    return rows
