"""How much the target scatters under noise: Gaussian noise on the embedding of one token, or of one whole word.

*Sensitivity* is the standard deviation of F over draws of the noise. Of a word all positions are noised at once: pieces
are not summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from xai_utils.attribution.masking import Positions, groups_of, of_groups, players
from xai_utils.attribution.result import Attribution
from xai_utils.attribution.target import Objective, Target
from xai_utils.attribution.versions import evaluate
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case, units

VERSION = 1  # raise it when results would come out different


def sensitivity(
    model: LoadedModel,
    case: Case,
    target: Target,
    *,
    sigma: float = 0.1,
    relative: bool = False,
    draws: int = 30,
    keep_sink: bool = True,
    seed: int = 0,
) -> Attribution:
    """Standard deviation of F under Gaussian noise on one token, or one word, with its standard error.

    `sigma` is in embedding units, or with `relative` in units of the root mean square of the embedding matrix. The
    original's setting is `sigma=0.1, draws=30, keep_sink=False`. Raises UserError for a sigma or draws out of range.
    """
    groups = groups_of(case, keep_sink)
    noisy = _noised(Objective(model, case, target), groups, _sigma(model, sigma, relative), draws, seed)
    deviation, error = deviation_with_error(noisy.values)
    return of_groups("sensitivity", case, target, groups, deviation, error, keep_sink=keep_sink)


def dose_response(
    model: LoadedModel,
    case: Case,
    target: Target,
    sigmas: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    *,
    relative: bool = False,
    draws: int = 30,
    keep_sink: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Response to noise of growing size, one row a sigma and unit of the word view.

    Columns beside the keys: sigma (embedding units), relative_sigma (of the embeddings' root mean square), word, start,
    end, deviation and mean_change with their standard errors, and keeps_prediction: the share of draws after which the
    model's own next token is what it was. The draws of all sigmas are the same noise, scaled.
    """
    objective, rows = Objective(model, case, target), units(case)
    chosen = players(case, keep_sink)
    table, rms = [], embedding_rms(model)
    for given in sigmas:
        sigma = _sigma(model, given, relative)
        noisy = _noised(objective, [player.positions for player in chosen], sigma, draws, seed)
        deviation, deviation_error = deviation_with_error(noisy.values)
        change = np.abs(noisy.values - noisy.clean)
        for row, player in enumerate(chosen):
            unit = rows[player.unit]
            table.append(
                case.keys()
                | target.keys()
                | {
                    "unit": target.unit,
                    "sigma": sigma,
                    "relative_sigma": sigma / rms,
                    "word": unit.text,
                    "start": unit.start,
                    "end": unit.end,
                    "deviation": deviation[row],
                    "deviation_error": deviation_error[row],
                    "mean_change": change[row].mean(),
                    "mean_change_error": change[row].std(ddof=1) / np.sqrt(draws),
                    "keeps_prediction": noisy.kept[row].mean(),
                }
            )
    return pd.DataFrame(table).astype({"start": "Int64", "end": "Int64"})


def embedding_rms(model: LoadedModel) -> float:
    """Root mean square over all entries of the embedding matrix."""
    return float(model.embedding.detach().double().square().mean().sqrt())


def deviation_with_error(values: Float[np.ndarray, "group draw"]) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation over draws (n - 1 in the denominator) and its standard error by the delete-one jackknife.

    >>> deviation, error = deviation_with_error(np.array([[1.0, 2.0, 4.0]]))
    >>> deviation.round(4).tolist(), error.round(4).tolist()
    ([1.5275], [0.8165])
    """
    count = values.shape[1]
    left_out = np.stack([np.delete(values, draw, axis=1).std(1, ddof=1) for draw in range(count)], axis=1)
    error = np.sqrt((count - 1) * left_out.var(1))
    return values.std(1, ddof=1), error


@dataclass(frozen=True)
class _Noisy:
    """Outcomes under noise."""

    values: Float[np.ndarray, "group draw"]
    kept: Bool[np.ndarray, "group draw"]  # whether the model's own next token is what it was
    clean: float


def _noised(objective: Objective, groups: Sequence[Positions], sigma: float, draws: int, seed: int) -> _Noisy:
    """F with noise on one group of positions at a time.

    A position's noise depends on the seed and the position alone: not on the batch, on the group, or on the model.
    """
    if draws < 3:
        raise UserError(f"draws is {draws}; expected at least 3, which a standard deviation with its error needs")
    inputs = objective.inputs
    noise = {
        position: np.random.default_rng([seed, position]).standard_normal((draws, inputs.shape[1]), dtype=np.float32)
        for position in {position for group in groups for position in group}
    }

    def build(rows: Int[np.ndarray, " row"]) -> torch.Tensor:
        embeds = inputs.repeat(len(rows), 1, 1)
        for place, row in enumerate(rows):
            for position in groups[row // draws] if row < len(groups) * draws else ():
                embeds[place, position] += sigma * torch.from_numpy(noise[position][row % draws]).to(inputs)
        return embeds

    since = np.append(np.repeat([min(group) for group in groups], draws), len(inputs) - 1)
    values, own = evaluate(objective, since, build)
    kept = (own[:-1] == own[-1]).reshape(len(groups), draws)
    return _Noisy(values[:-1].reshape(len(groups), draws), kept, float(values[-1]))


def _sigma(model: LoadedModel, sigma: float, relative: bool) -> float:
    if not (sigma > 0 and np.isfinite(sigma)):
        raise UserError(f"sigma is {sigma}; expected a positive number, the standard deviation of the noise; use 0.1")
    return sigma * embedding_rms(model) if relative else sigma
