"""What "absent" means, named by meaning and never by token id, so that models with other vocabularies agree on it.

Five absences put another embedding in a token's place; a path can start there (`BASELINES`). Two change what the model
reads: `dropped` leaves tokens out, `hidden` keeps later positions from attending to them. All seven serve whatever
removes words and reads F again (masking.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xai_utils.errors import UserError, nearest
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

ABSENCES = {
    "dropped": "the tokens are not in the prompt; later positions move up",
    "hidden": "no later position attends to the tokens; their own embedding is the mean",
    "mean": "mean of the embedding rows that all models of the study share",
    "sampled": "random tokens of the vocabulary, averaged over draws",
    "eos": "the end-of-sequence token",
    "space": "a single space",
    "zero": "the zero vector",
}
BASELINES = {name: ABSENCES[name] for name in ("mean", "sampled", "eos", "space", "zero")}
PANEL = ("mean", "dropped", "eos", "zero")  # chosen by report/evidence/panels.csv; the first where one is asked for
DRAWS = 4  # of random tokens: each costs a pass, and their standard error is about a fifth of a word's score


def shared_mean(models: Sequence[LoadedModel]) -> Float[Tensor, " hidden"]:
    """One mean embedding for all models of a comparison: over the tokens that stand in every vocabulary.

    Where an adaptation left a token's row alone, all models agree on it; where it changed the rows, the models' means
    are averaged. Raises UserError when widths differ or no token is shared; a model alone has its own mean.
    """
    if len({model.embedding.shape[1] for model in models}) > 1:
        raise UserError("the models' embeddings differ in width, so they have no common mean; compare equal widths")
    vocabularies = [model.tokenizer.get_vocab() for model in models]
    names = sorted(set(vocabularies[0]).intersection(*vocabularies[1:]))
    if not names:
        raise UserError(f"models {', '.join(model.label for model in models)} share no token, so no common mean")
    means = [
        model.embedding.detach()[[vocabulary[name] for name in names]].mean(0, dtype=torch.float64).cpu()
        for model, vocabulary in zip(models, vocabularies, strict=True)
    ]
    return torch.stack(means).mean(0).float()


def with_common_mean(models: Sequence[LoadedModel]) -> list[LoadedModel]:
    """The models, those of one width with the mean embedding that they have in common."""
    alike: dict[int, list[LoadedModel]] = {}
    for model in models:
        alike.setdefault(model.embedding.shape[1], []).append(model)
    means = {width: shared_mean(group) for width, group in alike.items()}
    return [dataclasses.replace(model, reference=means[model.embedding.shape[1]]) for model in models]


def moved(case: Case, keep_sink: bool) -> Bool[Tensor, " position"]:
    """Which positions a method may move: all, or all but the first and a chat template's own."""
    mask = torch.ones(len(case.tokens), dtype=torch.bool)
    if keep_sink:
        mask[0] = False
        mask &= torch.tensor([token.kind != "special" for token in case.tokens])
    return mask


def baseline_rows(
    model: LoadedModel, case: Case, name: str, keep_sink: bool, seed: int = 0, draws: int = DRAWS
) -> Float[Tensor, "draw position hidden"]:
    """Baseline embeddings of a case's prompt: one draw, several for `sampled`; kept positions hold their own embedding.

    Raises UserError for an unknown name and for a baseline that equals the input.
    """
    inputs = model.embed(torch.tensor(case.ids, device=model.device))
    absent = _absent(model, name, len(case.tokens), seed, draws).to(inputs)
    keep = ~moved(case, keep_sink).to(inputs.device)
    rows = torch.where(keep[None, :, None], inputs[None], absent)
    if torch.equal(rows[0], inputs):
        raise UserError(
            f"text '{case.text_id}': baseline '{name}' equals the input, so there is nothing to explain; expected "
            "at least one token that the method may move; use keep_sink: false, another baseline, or a longer text"
        )
    return rows


def _absent(model: LoadedModel, name: str, length: int, seed: int, draws: int) -> Tensor:
    table = model.embedding
    if name == "zero":
        return torch.zeros(1, length, table.shape[1])
    if name == "mean":
        return model.mean_embedding.expand(1, length, -1)
    if name == "eos":
        ids = [model.tokenizer.eos_token_id]
        if ids[0] is None:
            raise UserError(f"model '{model.label}' has no end-of-sequence token; choose another baseline than eos")
        return table[ids].expand(1, length, -1)
    if name == "space":
        ids = model.tokenizer(" ", add_special_tokens=False)["input_ids"]
        return table[ids].mean(0).expand(1, length, -1)
    if name == "sampled":
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(min(len(model.tokenizer), len(table)), (draws, length), generator=generator)
        return model.embed(rows.to(table.device))
    if name in ABSENCES:
        raise UserError(f"absence '{name}' has no embedding, so no path starts there; expected {', '.join(BASELINES)}")
    raise UserError(f"unknown baseline {name!r}; {nearest(name, BASELINES)}")
