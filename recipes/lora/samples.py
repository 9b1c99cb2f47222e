"""What two models say, prompt by prompt: the likeliest continuation and how sure they are of its first word.

`HELP` are beginnings of help, `ELSEWHERE` plain English: out of them the texts of a study can be chosen, and whether
the adapter left the rest alone can be seen.
"""

import re
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
    "To save the document, press",
    "To close the window, click",
    "To print the page, choose",
    "To undo the last action, press",
    "To delete a row, choose",
    "To insert a table, choose",
    "To change the font, select the text and choose",
    "To copy the selected text, press",
    "To rename the file, press",
    "To cancel the operation, press",
    "To select several files, hold down",
    "To add a new column, right-click the",
    "To move the image, drag",
    "To see your photos, open the",
    "To connect to a network, click the",
    "To turn off notifications, open the",
    "To remove the program, run",
    "To install the package, type",
    "To edit the chart, double-click",
    "To apply the style, double-click",
    "To resize the picture, drag",
    "Right-click the",
    "In the File menu, select",
    "Click the button to open the",
    "Press Enter to",
    "Select the cell and press",
    "Double-click the icon to",
    "Choose the printer from the",
    "Enter your password and click",
    "Type a name for the new",
    "Hold down the Shift key and",
    "Open the Activities overview and start typing",
    "Specifies the name of the",
    "Opens a dialog where you can",
    "Use the arrow keys to",
    "The default value is",
    "The toolbar is at the top of the",
    "If the screen is too dark, change the",
    "If you forget your password,",
    "The spreadsheet has three",
    "The table has two",
    "The formula returns the",
    "The system will ask you for a",
)
ELSEWHERE = (
    "The capital of France is",
    "The cat sat on the",
    "Once upon a time there was a",
    "She opened the door and saw a",
    "Water boils at a temperature of",
    "The president of the United States lives in the",
    "Two plus two is",
    "He was born in the city of",
    "Romeo and",
    "The opposite of hot is",
    "A dog is man's best",
    "The sun rises in the",
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
    rows = []
    for prompt in prompts:
        row: dict[str, object] = {"prompt": prompt}
        said = {name: continuation(model, prompt) for name, model in (("base", base), ("twin", twin))}
        for word, text in zip(("old", "new"), said.values(), strict=True):
            row[word] = first_word(text)
            for name, model in (("base", base), ("twin", twin)):
                row[f"{word}_under_{name}"] = probability(model, prompt, first_word(text))
        rows.append(row | {f"{name}_says": text for name, text in said.items()})
    return pd.DataFrame(rows)


def first_word(text: str) -> str:
    """A text's first word or mark with the space in front of it.

    >>> first_word(" File - Open."), first_word(", then"), first_word("")
    (' File', ',', '')
    """
    found = _WORD.match(text)
    return found.group() if found else ""


@torch.no_grad()
def continuation(model: LoadedModel, prompt: str, tokens: int = TOKENS) -> str:
    """The likeliest next tokens, one by one."""
    ids = _coded(model, prompt)
    length = ids.shape[1]
    for _ in range(tokens):
        likeliest = model.model(ids, use_cache=False).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, likeliest], 1)
    return str(model.tokenizer.decode(ids[0, length:], skip_special_tokens=True))


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
