"""A model's own continuation, token by token: which parts of the prompt made it write what it wrote.

Each generated token is explained by the log-probability it had when it was written, over the prompt and the tokens
generated before it; together the rows make the matrix continuation x input (as inseq shows it, arXiv 2302.13942).
"""

from __future__ import annotations

import dataclasses

import torch

from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case, Token
from xai_utils.text.tokenise import token_name


@torch.no_grad()
def greedy(model: LoadedModel, case: Case, steps: int) -> list[int]:
    """The most probable continuation of a prompt, at most `steps` tokens, up to the end of the text."""
    if steps < 1:
        raise UserError(f"continuation is {steps} tokens; expected at least 1")
    ids = list(case.ids)
    for _ in range(steps):
        logits = model.model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=1).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    return ids[len(case.ids) :]


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
