"""What the new rows are before training.

`random`    a normal distribution of the spread of all base rows, as the original study has it
`mean`      the mean of the rows of the pieces that the base's tokenizer cuts the token into (Gee et al. 2022, Fast
            Vocabulary Transfer)

What mixes the mean with the rows of translations is in translate.py. These two need the base's weights and the two
tokenizers alone, so the untrained control can be had at any time. The mean is what the shipped model started from.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from recipes.token_substitution.vocabulary import unspelled
from xai_utils.errors import UserError

Rows = Float[Tensor, "rows hidden"]


def pieces(base: PreTrainedTokenizerFast, token: str) -> list[int]:
    """The base's ids for a byte-level token's text; a space in front stays in front."""
    text = unspelled(token)
    if text is None:
        raise UserError(f"token {token!r} is a part of a character; expected new tokens that are whole text")
    return base(text, add_special_tokens=False)["input_ids"]


def mean_rows(embedding: Float[Tensor, "vocabulary hidden"], base: PreTrainedTokenizerFast, tokens: list[str]) -> Rows:
    """For each token the mean of its old pieces' rows, float32."""
    return torch.stack([embedding[pieces(base, token)].float().mean(0) for token in tokens])


def random_rows(embedding: Float[Tensor, "vocabulary hidden"], number: int, seed: int) -> Rows:
    """Normal rows with the mean and spread of all entries of the base's rows, float32."""
    generator = torch.Generator().manual_seed(seed)
    return embedding.float().mean() + embedding.float().std() * torch.randn(
        number, embedding.shape[1], generator=generator
    )


def initial_rows(
    embedding: Float[Tensor, "vocabulary hidden"],
    base: PreTrainedTokenizerFast,
    adapted: PreTrainedTokenizerFast,
    rows: list[int],
) -> Rows:
    """The untrained control: the rows `rows` of a substituted tokenizer as they were before any training.

    `embedding` and `base` are the base model's; `adapted` is the tokenizer of the checkpoint, `rows` its trained
                token ids.
    """
    return mean_rows(embedding, base, [str(adapted.convert_ids_to_tokens(row)) for row in rows])


def shuffled_rows(trained: Rows, seed: int = 0) -> Rows:
    """The shuffled control: the trained rows permuted among themselves, so that no row stays where it was (Sattolo
    1986).

    >>> rows = torch.arange(5.0)[:, None]
    >>> sorted(shuffled_rows(rows)[:, 0].tolist()) == [0, 1, 2, 3, 4], bool((shuffled_rows(rows) == rows).any())
    (True, False)
    """
    generator = torch.Generator().manual_seed(seed)
    order = list(range(len(trained)))
    for last in range(len(order) - 1, 0, -1):
        other = int(torch.randint(last, (1,), generator=generator))
        order[last], order[other] = order[other], order[last]
    return trained[order]
