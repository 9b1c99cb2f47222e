"""What two models say, prompt by prompt: the likeliest continuation and how sure they are of its first word.

`HELP` are beginnings of help, `ELSEWHERE` plain English: out of them the texts of a study can be chosen, and whether
the adapter left the rest alone can be seen.
"""

import re
from collections import defaultdict
from collections.abc import Collection

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from xai_utils.models.loading import LoadedModel

TOKENS = 8
_WORD = re.compile(r"\s*(?:\w+|[^\w\s]+)")

HELP = (
    "To open a file, choose",
    "To close the window, click",
    "To open your letter, choose",
    "To open a photo, choose",
    "To open an old report, choose",
    "To save your letter, choose",
    "To save this recipe, choose",
    "To save your drawing, press",
    "To print your letter, choose",
    "To print the poem, choose",
    "To close this letter, choose",
    "To quit the program, choose",
    "To undo your mistake, press",
    "To undo a typing mistake, choose",
    "To cut a sentence, press",
    "To copy a sentence, press",
    "To copy the poem, press",
    "To paste the sentence, press",
    "To paste the address, choose",
    "To sort these names, choose",
    "To filter the names, choose",
    "To find a name, choose",
    "To check your spelling, choose",
    "To number your chapters, choose",
    "To protect your letter, choose",
    "To rotate the picture, choose",
    "To align the picture, choose",
    "To enlarge the drawing, choose",
    "To merge two cells, choose",
    "To insert a picture, choose",
    "To hide these rows, choose",
    "To show the ruler, choose",
    "To show the grid, choose",
    "To change the colors, choose",
    "To make a word bold, press",
    "To make words italic, press",
    "To select several photos, hold down",
    "To select two pictures, hold down",
    "To rename a photo, press",
    "To rename the sheet, double-click",
    "To edit the picture, double-click",
    "To widen the column, drag",
    "To switch between two programs, press",
    "To take a screenshot, press",
    "To turn the sound off, click",
    "To change the wallpaper, open",
    "To connect a printer, open",
    "To add a printer, open",
    "To pair your headphones, open",
    "To hear louder sound, open",
    "To install a program, type",
    "To list the packages, type",
    "Right-click the column and choose",
    "Select both pictures and choose",
    "Select the poem and press",
    "Enter your name and press",
)
ELSEWHERE = (
    "The capital of France is",
    "Paris is the capital of",
    "The opposite of hot is",
    "The sun rises in the",
    "The cat sat on the",
    "Two plus two is",
    "The Earth revolves around the",
    "Roses are red, violets are",
    "Shakespeare wrote Romeo and",
    "Cows give us fresh",
    "Dogs bark, and cats",
    "The first month is called",
    "Snow is white and coal is",
    "Monday comes right before",
    "She opened the door and saw a",
    "My favorite fruit is the",
)


def candidates(base: LoadedModel, twin: LoadedModel, known: Collection[str] = ()) -> pd.DataFrame:
    """`compared` for all prompts, with their group, and whether they are among those `known` from training."""
    parts = [
        compared(base, twin, prompts).assign(group=name) for name, prompts in (("help", HELP), ("other", ELSEWHERE))
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(in_training=table["prompt"].isin(list(known)))


def compared(base: LoadedModel, twin: LoadedModel, prompts: Collection[str]) -> pd.DataFrame:
    """For each prompt both models' likeliest continuation, and the probability of either one's first word under both.

    `old` is the base's first word, `new` the twin's; both models must share a tokenizer.
    """
    models = {"base": base, "twin": twin}
    said = {name: continuations(model, prompts) for name, model in models.items()}
    rows = []
    for prompt in prompts:
        row: dict[str, object] = {"prompt": prompt}
        for word, speaker in (("old", "base"), ("new", "twin")):
            row[word] = first_word(said[speaker][prompt])
            for name, model in models.items():
                row[f"{word}_under_{name}"] = probability(model, prompt, str(row[word]))
        rows.append(row | {f"{name}_says": texts[prompt] for name, texts in said.items()})
    return pd.DataFrame(rows)


def first_word(text: str) -> str:
    """A text's first word or mark with the space in front of it.

    >>> first_word(" File - Open."), first_word(", then"), first_word("")
    (' File', ',', '')
    """
    found = _WORD.match(text)
    return found.group() if found else ""


@torch.no_grad()
def continuations(model: LoadedModel, prompts: Collection[str], tokens: int = TOKENS) -> dict[str, str]:
    """The likeliest next tokens after each prompt, one by one; those of equal length together."""
    groups = defaultdict[int, list[str]](list)
    for prompt in prompts:
        groups[_coded(model, prompt).shape[1]].append(prompt)
    said = dict[str, str]()
    for length, group in groups.items():
        ids = torch.cat([_coded(model, prompt) for prompt in group])
        for _ in range(tokens):
            ids = torch.cat([ids, model.model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        said |= zip(group, model.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True), strict=True)
    return said


@torch.no_grad()
def probability(model: LoadedModel, prompt: str, answer: str) -> float:
    """How likely the answer's tokens are right after the prompt; 1 for an empty answer."""
    ids, own = _coded(model, prompt), model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    whole = torch.cat([ids, ids.new_tensor([own])], 1) if own else ids
    logs = model.model(whole, use_cache=False).logits[0, ids.shape[1] - 1 : -1].float().log_softmax(-1)
    return float(logs.gather(1, whole[0, ids.shape[1] :, None]).sum().exp())


def _coded(model: LoadedModel, prompt: str) -> Int[Tensor, "1 position"]:
    start = [] if model.document_start is None else [model.document_start]
    return torch.tensor([start + model.tokenizer(prompt, add_special_tokens=False)["input_ids"]], device=model.device)
