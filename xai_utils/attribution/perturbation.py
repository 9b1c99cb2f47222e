"""Ablation: what the target loses when one token, or one whole word, is removed.

A removed word is absent as a whole: nothing here is additive, so pieces are not summed. All subsets of words are what
shapley.py asks for; noise is in noise.py.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from xai_utils.attribution.absence import PANEL, moved
from xai_utils.attribution.masking import Removal, draw_error, players
from xai_utils.attribution.result import Attribution, from_words
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

VERSION = 2  # raise it when results would come out different
Positions = tuple[int, ...]


def ablation(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    absence: str = PANEL[0],
    keep_sink: bool = True,
    seed: int = 0,
) -> Attribution:
    """F(x) - F(x without one token, or one word); positive where its presence supports the target.

    The original's setting is `absence="zero", keep_sink=False`. The error is that of the draws of `sampled`. Raises
    UserError for an absence that the model cannot do and where nothing can be removed.
    """
    groups = groups_of(case, keep_sink)
    removal = Removal(model, case, target, absence, keep_sink, seed)
    removed = np.zeros((len(groups) + 1, len(case.tokens)), dtype=bool)
    for row, positions in enumerate(groups):
        removed[row, list(positions)] = True
    values = removal.values(removed)
    scores = values[-1] - values[:-1]
    means, errors = scores.mean(-1), draw_error(scores)
    return of_groups("ablation", case, target, groups, means, errors, baseline=absence, keep_sink=keep_sink)


def groups_of(case: Case, keep_sink: bool) -> list[Positions]:
    """What is perturbed at a time: every free position, and every unit of several positions."""
    free = np.flatnonzero(moved(case, keep_sink).numpy())
    if not len(free):
        raise UserError(
            f"text '{case.text_id}' has one token and the first position is kept, so there is nothing to perturb; "
            "expected at least one token that may be moved; use keep_sink: false, prefix: document_start, or more text"
        )
    whole = [player.positions for player in players(case, keep_sink)]
    return list(dict.fromkeys([(int(position),) for position in free] + whole))


def of_groups(
    method: str,
    case: Case,
    target: Target,
    groups: list[Positions],
    scores: Float[np.ndarray, " group"],
    errors: Float[np.ndarray, " group"],
    *,
    baseline: str = "",
    keep_sink: bool,
) -> Attribution:
    """Scores of groups as token scores and, for the whole word, word scores."""
    both = dict(zip(groups, np.stack([scores, errors], axis=1), strict=True))
    chosen, nothing = players(case, keep_sink), np.full(2, np.nan)
    tokens = np.stack([both.get((position,), nothing) for position in range(len(case.tokens))], axis=1)
    words = np.stack([both[player.positions] for player in chosen], axis=1)
    return from_words(
        method,
        case,
        target,
        chosen,
        *words,
        baseline=baseline,
        keep_sink=keep_sink,
        additive=False,
        tokens=tokens,
    )
