"""Does an attribution depend on what the model has learnt? Cascading randomisation (Adebayo et al. 2018, 1810.03292).

The weights are re-randomised layer by layer from the top, each tensor with its own mean and spread so that activations
keep their size, and the same target is explained again. A method whose ranking of words survives that explains the
text, not the model. One text has too few words for a rank correlation: words of all texts are pooled, each text by
ranks of its own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import nn

from xai_utils.attribution.result import Attribution
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.models.watch import decoder_layers
from xai_utils.text.cases import Case, units

VERSION = 1  # raise it when results would come out different
WordScores = Float[np.ndarray, " word"]


def layers(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder layers, first to last. Raises UserError where the architecture has no one such stack."""
    found = decoder_layers(model)
    if found is None:
        raise UserError(
            f"architecture {type(model).__name__} has no list of its layers; expected one, which randomising from the "
            "top needs; leave the sanity check out for this model"
        )
    return found[1]


def randomised(model: LoadedModel, stages: Sequence[int], seed: int = 0) -> Iterator[tuple[int, LoadedModel]]:
    """The model with its top layers re-randomised, one model a stage: how many layers, and that model.

    The model itself is not touched. Embeddings and the output head stay, in most models one tensor, since words could
    not be told apart without them. A yielded model is valid until the next one is asked for: they share weights.
    """
    module = copy.deepcopy(model.model)
    stack = list(layers(module))
    generator = torch.Generator().manual_seed(seed)
    done = 0
    for stage in sorted(set(stages)):
        if not 1 <= stage <= len(stack):
            raise UserError(f"stage {stage} is out of range; expected layers to randomise from 1 to {len(stack)}")
        while done < stage:
            done += 1
            _randomise(stack[-done], generator)
        yield stage, dataclasses.replace(model, model=module, revision=f"{model.revision}+random:{stage}:{seed}")


@torch.no_grad()
def _randomise(layer: nn.Module, generator: torch.Generator) -> None:
    for parameter in layer.parameters():
        values = parameter.float()
        spread = values.std(correction=0)
        fresh = torch.randn(parameter.shape, generator=generator).to(values)
        parameter.copy_(values.mean() + spread * fresh)


def randomisation(
    model: LoadedModel,
    cases: Sequence[tuple[Case, Target]],
    method: Callable[[LoadedModel, Case, Target], Attribution],
    name: str,
    stages: Sequence[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Table `sanity`: how a method's ranking of words fares as layers are randomised from the top, a row a stage.

    Columns: study, model, role, method, layers (randomised), share (of all layers), texts, words, correlation (pooled
    over texts) and its bootstrap 95 % interval over texts, low and high. The default stages are one layer, a quarter,
    half, and all of them. The correlation should fall towards 0. Scores that did not converge take no part.
    """
    count = len(layers(model.model))
    stages = stages or sorted({1, -(-count // 4), -(-count // 2), count})
    true = [_words(method(model, case, target), case) for case, target in cases]
    rows = []
    for stage, broken in randomised(model, stages, seed):
        pairs = [
            (before, _words(method(broken, case, target), case))
            for before, (case, target) in zip(true, cases, strict=True)
        ]
        correlation, low, high = pooled_correlation(pairs, seed)
        shared = [known for known in (int((~np.isnan(a) & ~np.isnan(b)).sum()) for a, b in pairs) if known]
        keys = {"study": cases[0][0].study, "model": model.label, "role": model.role, "method": name}
        rows.append(
            keys
            | {"layers": stage, "share": stage / count, "texts": len(shared), "words": sum(shared)}
            | {"correlation": correlation, "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def pooled_correlation(pairs: Sequence[tuple[WordScores, WordScores]], seed: int = 0) -> tuple[float, float, float]:
    """Rank correlation pooled over texts, with its bootstrap 95 % interval over texts (percentile).

    Each text's words are ranked among themselves and the ranks centred, so that differences between texts don't count;
    the products are then summed over all texts. With one text this is Spearman's correlation.

    >>> pooled_correlation([(np.array([1.0, 2, 3]), np.array([10.0, 30, 20]))])[0]
    0.5
    """
    moments = np.array([_moments(a, b) for a, b in pairs])  # [text, (ab, aa, bb)]

    def correlation(index: np.ndarray, axis: int = -1) -> np.ndarray:
        ab, aa, bb = np.moveaxis(moments[index].sum(axis), -1, 0)
        return np.divide(ab, np.sqrt(aa * bb), out=np.full_like(ab, np.nan), where=aa * bb > 0)

    texts = np.arange(len(pairs))
    found = float(correlation(texts, 0))
    if len(pairs) < 2:
        return found, np.nan, np.nan
    draws = np.random.default_rng(seed).choice(texts, (5000, len(texts)))
    low, high = np.nanquantile(correlation(draws, 1), [0.025, 0.975])
    return found, float(low), float(high)


def _moments(a: WordScores, b: WordScores) -> tuple[float, float, float]:
    """Sums of products of two methods' centred ranks over the words that both score."""
    both = ~(np.isnan(a) | np.isnan(b))
    ranks = [stats.rankdata(scores[both]) - (both.sum() + 1) / 2 for scores in (a, b)]
    return float(ranks[0] @ ranks[1]), float(ranks[0] @ ranks[0]), float(ranks[1] @ ranks[1])


def _words(found: Attribution, case: Case) -> WordScores:
    """A score a word; none of them known where the attribution did not converge."""
    scores = found.word_scores[[unit.is_word for unit in units(case)]]
    return scores if found.certified else np.full_like(scores, np.nan)
