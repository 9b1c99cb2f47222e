"""What a model does with a prompt: how sure it is of the answer, and how it would go on by itself.

An explanation of an answer that the model would never give explains little, so this stands in front of every other
table. A continuation can be explained itself, each token by the prompt and the tokens generated before it; together the
rows make the matrix continuation x input (as inseq shows it, arXiv 2302.13942).
"""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import torch
from torch import Tensor

from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case, Token
from xai_utils.text.tokenise import token_name

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


def _log_probabilities(model: LoadedModel, ids: list[int], keep: int) -> Tensor:
    """Of all tokens at the last `keep` positions, [keep, vocabulary]."""
    return model.logits(ids, keep).double().log_softmax(-1)


def greedy(model: LoadedModel, case: Case, steps: int) -> list[int]:
    """The most probable continuation of a prompt, at most `steps` tokens, up to the end of the text."""
    if steps < 1:
        raise UserError(f"continuation is {steps} tokens; expected at least 1")
    found: list[int] = []
    kept = None  # keys and values of what was read, where the model keeps any
    while len(found) < steps and model.tokenizer.eos_token_id not in found:
        ids = found[-1:] if kept is not None else [*case.ids, *found]
        given = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            output = model.model(input_ids=given, past_key_values=kept, use_cache=True, logits_to_keep=1)
        kept = output.get("past_key_values")
        found.append(int(output.logits[0, -1].argmax()))
    return found


def unrolled(model: LoadedModel, case: Case, generated: list[int]) -> list[tuple[Case, Target]]:
    """For each generated token the case that it continues (prompt and what was generated before) and its target."""
    labels = [token_name(model, token) for token in generated]
    tokens = [Token(token, label, None, None, "generated") for token, label in zip(generated, labels, strict=True)]
    return [
        (
            dataclasses.replace(case, tokens=(*case.tokens, *tokens[:step]), answer_ids=(token,), contrast_ids=()),
            Target("logprob", labels[step], (token,)),
        )
        for step, token in enumerate(generated)
    ]
