"""Ablation: what the target loses when one token, or one whole word, is removed.

A removed word is absent as a whole: nothing here is additive, so pieces are not summed. All subsets of words are what
shapley.py asks for; noise is in noise.py.
"""

from __future__ import annotations

import numpy as np

from xai_utils.attribution.absence import PANEL
from xai_utils.attribution.masking import Removal, draw_error, groups_of, of_groups
from xai_utils.attribution.result import Attribution
from xai_utils.attribution.target import Target
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

VERSION = 2  # raise it when results would come out different


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
