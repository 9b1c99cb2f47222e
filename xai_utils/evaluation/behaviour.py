"""What a model does with a prompt: how sure it is of the answer, and how it would go on by itself.

An explanation of an answer that the model would never give explains little, so this stands in front of every other
table. A continuation can be explained itself, each token by the prompt and the tokens generated before it; together the
rows make the matrix continuation x input (as inseq shows it, arXiv 2302.13942).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case, Token
from xai_utils.text.tokenise import token_name

VERSION = 3  # raise it when the table would come out different
CONTINUATION = 8  # tokens of the model's own continuation


def behaviour(model: LoadedModel, case: Case) -> pd.DataFrame:
    """One row of the table `behaviour`.

    `probability` is that of the answer's tokens one after the other, `rank` the place of its first token among all (1
    is the likeliest) and `margin` its log-probability minus that of the contrast (nats); they are missing where the
    case has no answer or contrast. `next_text` is the likeliest next token, `continuation` eight tokens, each the
    likeliest.
    """
    logits, kept = _read(model, case.ids)
    first = logits[-1].double().log_softmax(-1)
    best = int(first.argmax())
    row: dict[str, object] = {"answer": case.answer, "probability": None, "rank": None, "margin": None}
    if case.answer_ids:
        value = _log_probability(model, case, case.answer_ids, first)
        row |= {"probability": math.exp(value), "rank": int((first > first[case.answer_ids[0]]).sum()) + 1}
        if case.contrast_ids:
            row["margin"] = value - _log_probability(model, case, case.contrast_ids, first)
    row |= {
        "next_text": str(model.tokenizer.decode([best])),
        "next_probability": float(first[best].exp()),
        "continuation": str(
            model.tokenizer.decode(_onwards(model, case, CONTINUATION, logits, kept), skip_special_tokens=True)
        ),
    }
    return pd.DataFrame([row]).astype({"probability": float, "rank": "Int64", "margin": float})


@torch.no_grad()
def _read(model: LoadedModel, ids: Sequence[int], kept: Any = None) -> tuple[Tensor, Any]:
    """Logits behind the last of some tokens, [1, vocabulary], and keys and values of all that was read.

    What `kept` holds stands before the tokens; None is held by a model that keeps nothing.
    """
    given = torch.tensor([list(ids)], device=model.device)
    output = model.model(input_ids=given, past_key_values=kept, use_cache=True, logits_to_keep=1)
    return output.logits[0], output.get("past_key_values")


def _log_probability(model: LoadedModel, case: Case, ids: tuple[int, ...], first: Tensor) -> float:
    """Log-probability of a continuation of the prompt, its tokens' added (nats); `first` is that of all next tokens.

    Further tokens are read in a whole pass: not every architecture takes several of them behind what it has kept.
    """
    value = float(first[ids[0]])
    if len(ids) > 1:
        rows = model.logits([*case.ids, *ids[:-1]], len(ids) - 1).double().log_softmax(-1)
        value += float(rows[torch.arange(len(rows)), list(ids[1:])].sum())
    return value


def greedy(model: LoadedModel, case: Case, steps: int) -> list[int]:
    """The most probable continuation of a prompt, at most `steps` tokens, up to the end of the text."""
    if steps < 1:
        raise UserError(f"continuation is {steps} tokens; expected at least 1")
    return _onwards(model, case, steps, *_read(model, case.ids))


def _onwards(model: LoadedModel, case: Case, steps: int, logits: Tensor, kept: Any) -> list[int]:
    """What `greedy` gives, from the logits and kept values of the prompt."""
    found = [int(logits[-1].argmax())]
    while len(found) < steps and model.tokenizer.eos_token_id not in found:
        logits, kept = _read(model, found[-1:] if kept is not None else [*case.ids, *found], kept)
        found.append(int(logits[-1].argmax()))
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
