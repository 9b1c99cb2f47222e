"""What each model reads, as tables: tokens, how many a word takes, what was cut, and that padding changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch

from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case, pad


def token_table(cases: Iterable[Case]) -> pd.DataFrame:
    """One row a token: position, id, readable label, span in the normalised text (empty for special tokens), kind."""
    rows: list[dict[str, Any]] = [
        {**case.keys()}
        | {
            "position": position,
            "id": token.id,
            "token": token.label,
            "start": token.start,
            "end": token.end,
            "kind": token.kind,
        }
        for case in cases
        for position, token in enumerate(case.tokens)
    ]
    return pd.DataFrame(rows).astype({"start": "Int64", "end": "Int64"})


def tokenization_table(cases: Iterable[Case]) -> pd.DataFrame:
    """One row a case: how its text was cut up.

    `tokens` counts all that the model reads, `special` those of them that stand for no character; `tokens_per_word`
    leaves these out. `truncated` counts tokens lost at the study's `max_tokens`, `padded` those missing to it.
    """
    rows: list[dict[str, Any]] = []
    for case in cases:
        special = sum(token.kind == "special" for token in case.tokens)
        rows.append(
            {**case.keys()}
            | {
                "language": case.language,
                "group": case.group,
                "tokens": len(case.tokens),
                "special": special,
                "words": len(case.words),
                "tokens_per_word": (len(case.tokens) - special) / len(case.words),
                "characters": len(case.text),
                "truncated": case.cut,
                "padded": case.padding,
            }
        )
    return pd.DataFrame(rows)


def cut_warnings(table: pd.DataFrame) -> list[str]:
    """A sentence for every text that lost tokens, out of `tokenization_table`."""
    return [
        f"Warning: text '{row.text}' was cut for model '{row.model}': {row.truncated} tokens lost, {row.tokens} kept."
        for row in table[table["truncated"] > 0].itertuples()
    ]


@torch.no_grad()
def padding_effect(model: LoadedModel, case: Case, length: int) -> dict[str, Any]:
    """Largest difference that padding to `length` makes to the log-probabilities of the next token (nats)."""
    tokenizer = model.tokenizer
    filler = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    ids, mask = (torch.tensor([row], device=model.device) for row in pad(case, length, filler))
    padded = model.model(input_ids=ids, attention_mask=mask).logits[0, len(case.tokens) - 1]
    plain = model.model(input_ids=ids[:, : len(case.tokens)]).logits[0, -1]
    difference = (padded.log_softmax(-1) - plain.log_softmax(-1)).abs().max()
    return {**case.keys()} | {
        "tokens": len(case.tokens),
        "positions": int(ids.shape[1]),
        "difference": float(difference),
    }
