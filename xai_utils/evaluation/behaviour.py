"""What a model does with a prompt: how sure it is of the answer, and how it would go on by itself.

An explanation of an answer that the model would never give explains little, so this stands in front of every other
table.
"""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import Tensor

from xai_utils.attribution.continuation import greedy
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

VERSION = 1  # raise it when the table would come out different
CONTINUATION = 8  # tokens of the model's own continuation


def behaviour(model: LoadedModel, case: Case) -> pd.DataFrame:
    """One row of the table `behaviour`.

    `probability` is that of the answer's tokens one after the other, `rank` the place of its first token among all (1
    is the likeliest) and `margin` its log-probability minus that of the contrast (nats); they are missing where the
    case has no answer or contrast. `next_text` is the likeliest next token, `continuation` eight tokens, each the
    likeliest.
    """
    first = _log_probabilities(model, case.ids, 1)[0]
    best = int(first.argmax())
    row: dict[str, object] = {"answer": case.answer, "probability": None, "rank": None, "margin": None}
    if case.answer_ids:
        value = log_probability(model, case, case.answer_ids)
        row |= {"probability": math.exp(value), "rank": int((first > first[case.answer_ids[0]]).sum()) + 1}
        if case.contrast_ids:
            row["margin"] = value - log_probability(model, case, case.contrast_ids)
    row |= {
        "next_text": str(model.tokenizer.decode([best])),
        "next_probability": float(first[best].exp()),
        "continuation": str(model.tokenizer.decode(greedy(model, case, CONTINUATION), skip_special_tokens=True)),
    }
    return pd.DataFrame([row]).astype({"probability": float, "rank": "Int64", "margin": float})


def log_probability(model: LoadedModel, case: Case, ids: tuple[int, ...]) -> float:
    """Log-probability of a continuation of the prompt, its tokens' added (nats)."""
    rows = _log_probabilities(model, [*case.ids, *ids[:-1]], len(ids))
    return float(rows.gather(-1, torch.tensor(ids, device=rows.device)[:, None]).sum())


@torch.no_grad()
def _log_probabilities(model: LoadedModel, ids: list[int], keep: int) -> Tensor:
    """Of all tokens at the last `keep` positions, [keep, vocabulary]."""
    logits = model.model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=keep).logits[0]
    return logits.double().log_softmax(-1)
