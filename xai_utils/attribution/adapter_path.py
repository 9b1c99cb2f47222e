"""The adapter path: the difference between two models, shared among their modules at each position.

Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) along weights in place of embeddings: theta(alpha) =
base + alpha * (other - base), with F the score of the answer. Every module that differs has a scale of its own at every
position, y = base(x) + alpha[m, p] * (other(x) - base(x)), and score(m, p) is the integral of dF/dalpha[m, p] while all
scales go from 0 to 1 together. So the scores sum to F_other - F_base, and one backward pass has all of them. For a LoRA
alpha is the adapter's own scaling; any two checkpoints of one shape go the same way, by their difference.

The line passes through models that nobody trained, and where modules undo each other's work their scores cancel:
`cancellation` says how much. No paper is known to us that integrates along an adapter per module and position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xai_utils.attribution.mixture import token_scores
from xai_utils.attribution.parts import Pair, make_pair
from xai_utils.attribution.path import integrate
from xai_utils.attribution.result import Certificate, Piece
from xai_utils.errors import UserError
from xai_utils.models.batching import in_passes, positions
from xai_utils.models.blend import Place, blend
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case, units, word_weights
from xai_utils.text.tokenise import token_name

VERSION = 1  # raise it when the method would give other numbers
INPUT = Place("input rows", None, "input_rows", "input")


class WeightPath:
    """F and the densities of all modules at all positions between two models, for path.py's engine.

    Columns are the prompt's positions, then those of the answer's tokens that are read again, of each continuation.
    Raises UserError where the two do not read and write the same tokens, or no weight differs.
    """

    def __init__(self, both: Pair):
        self.both = both
        self.blend = blend(both.base.model, both.other.model)
        if both.base.case.ids != both.other.case.ids or both.base.continuations != both.other.continuations:
            raise UserError(
                f"text '{both.base.case.text_id}': '{both.base.model.label}' and '{both.other.model.label}' read or "
                "write it in different tokens, and a path along weights needs the same ones; use swap attribution"
            )
        prompt = both.base.case.ids
        self.ids = [[*prompt, *ids[:-1]] for _, ids in both.base.continuations]
        self._rows = [[side.embed(ids) for side in both.sides] for ids in self.ids]
        moved = any(not torch.equal(*rows) for rows in self._rows)
        self.modules = (*((INPUT,) if moved else ()), *self.blend.places)
        if not self.modules:
            raise UserError(
                f"'{both.base.model.label}' and '{both.other.model.label}' have the same weights wherever text "
                f"'{both.base.case.text_id}' passes; expected a model and its adapted twin"
            )
        fed = np.cumsum([len(prompt), *(len(ids) - len(prompt) for ids in self.ids)])
        self._columns = [
            np.r_[0 : len(prompt), start:end] for start, end in zip(fed[:-1].tolist(), fed[1:].tolist(), strict=True)
        ]
        self.width = int(fed[-1])

    def values(self, alphas: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        """F at some points, without gradients."""
        signs = [sign for sign, _ in self.both.base.continuations]
        return np.sum([sign * self._passed(alphas, index, False)[0] for index, sign in enumerate(signs)], axis=0)

    def densities(
        self, alphas: Float[np.ndarray, " point"]
    ) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, "point part"]]:
        """F, and dF/dalpha of each module at each position, flattened [module, position]."""
        values, slopes = np.zeros(len(alphas)), np.zeros((len(alphas), len(self.modules), self.width))
        for index, (sign, _) in enumerate(self.both.base.continuations):
            value, slope = self._passed(alphas, index, True)
            values += sign * value
            slopes[:, :, self._columns[index]] += sign * slope
        return values, slopes.reshape(len(alphas), -1)

    def _passed(self, alphas: np.ndarray, index: int, graded: bool) -> tuple[np.ndarray, np.ndarray]:
        """The score of one continuation at some points, and its slopes [point, module, position] if asked for."""
        mine, theirs = self._rows[index]
        points = torch.tensor(alphas, device=mine.device, dtype=mine.dtype)
        embeds = mine.expand(len(alphas), -1, -1)

        def part(rows: slice) -> tuple[Tensor, Tensor]:
            with torch.set_grad_enabled(graded):
                scales = [
                    points[rows, None].repeat(1, len(mine)).requires_grad_(graded) for _ in range(len(self.modules))
                ]
                score = self._score(scales, index)
                slopes = torch.autograd.grad(score.sum(), scales, materialize_grads=True) if graded else scales[:0]
            return score.detach(), torch.stack(slopes, 1) if graded else score.detach()

        batch_size = max(positions(self.both.base.model) // (2 * len(mine)), 1)  # a pass keeps what both models compute
        scores, slopes = (torch.cat(column) for column in zip(*in_passes(part, embeds, batch_size), strict=True))
        if not slopes.isfinite().all():
            raise UserError(
                f"the gradient between '{self.both.base.model.label}' and '{self.both.other.model.label}' is not "
                "finite; expected finite numbers; use dtype: float32"
            )
        return scores.double().cpu().numpy(), slopes.double().cpu().numpy()

    def _score(self, scales: list[Tensor], index: int) -> Float[Tensor, " point"]:
        """The score of one continuation with these scales [point, position] of the modules."""
        mine, theirs = self._rows[index]
        ids = self.both.base.continuations[index][1]
        inner = scales[len(scales) - len(self.blend.places) :]
        embeds = mine.expand(len(scales[0]), -1, -1)
        if len(inner) < len(scales):
            embeds = embeds + scales[0][..., None] * (theirs - mine)
        with self.blend.at(inner) as model:
            logits = model(inputs_embeds=embeds, use_cache=False, logits_to_keep=len(ids)).logits
        return token_scores(logits, torch.tensor(ids, device=mine.device), self.both.base.target.kind).sum(1)


@dataclass(frozen=True)
class AdapterPath:
    """Scores [module, position] that sum to F_other - F_base, with their quadrature errors and certificate.

    Positions are the prompt's, then the answer's tokens that are read again (those of the contrast behind them). The
    certificate's f_baseline is F_base and its f_input F_other.
    """

    keys: dict[str, str]  # study, text, base, other, target, target_text, unit
    modules: tuple[Place, ...]
    tokens: tuple[str, ...]
    scores: Float[np.ndarray, "module position"]
    errors: Float[np.ndarray, "module position"]
    certificate: Certificate
    path: tuple[Piece, ...]
    words: tuple[tuple[str, int | None, int | None], ...]  # with their characters; None for what is no word
    weights: Float[np.ndarray, "position word"]

    @property
    def cancellation(self) -> float:
        """Sum of the scores without sign over the size of the difference: 1 where nothing cancels."""
        return float(np.abs(self.scores).sum() / self.certificate.scale)

    @cached_property
    def by_word(self) -> Float[np.ndarray, "module word"]:
        """The scores summed over the positions of each word."""
        return self.scores @ self.weights

    def by_layer(self, layers: int) -> Float[np.ndarray, " layer"]:
        """The scores of each layer, modules outside the layers left out."""
        sums = np.zeros(layers)
        for place, score in zip(self.modules, self.scores.sum(1), strict=True):
            if place.layer is not None:
                sums[place.layer] += score
        return sums

    def rows(self) -> list[dict[str, Any]]:
        """One row a module and position, of the table `adapter_path`."""
        return [
            self.keys
            | {"layer": place.layer, "module": place.module, "half": place.half}
            | {"position": at, "token": token, "score": float(score), "error": float(error)}
            for place, scores, errors in zip(self.modules, self.scores, self.errors, strict=True)
            for at, (token, score, error) in enumerate(zip(self.tokens, scores, errors, strict=True))
        ]

    def word_rows(self) -> list[dict[str, Any]]:
        """The same by word: one row a module and word, words in reading order."""
        return [
            self.keys
            | {"layer": place.layer, "module": place.module, "half": place.half}
            | {"order": order, "word": word, "start": start, "end": end, "score": float(score)}
            for place, scores in zip(self.modules, self.by_word, strict=True)
            for order, ((word, start, end), score) in enumerate(zip(self.words, scores, strict=True))
        ]


def adapter_path(
    base: LoadedModel,
    other: LoadedModel,
    base_case: Case,
    other_case: Case,
    kind: str = "logprob",
    *,
    tolerance: float = 0.01,
    budget: int = 40,
) -> AdapterPath:
    """F_other - F_base shared among modules and positions, certified as integrated gradients are (path.py).

    Refines until the errors are within `tolerance` of the difference, or `budget` gradient evaluations are spent.
    Raises UserError for models of other shapes or tokens, equal models, a bad tolerance or budget.
    """
    both = make_pair(base, other, base_case, other_case, kind)
    along = WeightPath(both)
    pieces, scores, errors, certificate = integrate(along, tolerance, budget)
    _check_ends(both, certificate)
    shape = len(along.modules), along.width
    tokens, words, weights = _columns(both)
    return AdapterPath(
        both.keys(),
        along.modules,
        tokens,
        scores.reshape(shape),
        errors.reshape(shape),
        certificate,
        pieces,
        words,
        weights,
    )


def _columns(both: Pair) -> tuple[tuple[str, ...], tuple[tuple[str, int | None, int | None], ...], np.ndarray]:
    """Labels of all positions, the words that they make up, and the weights [position, word]: an answer's token that
    is read again is a column of its own.
    """
    case = both.base.case
    fed = [token_name(both.base.model, token) for _, ids in both.base.continuations for token in ids[:-1]]
    prompt, behind = word_weights(case), np.eye(len(fed))
    weights = np.zeros((len(prompt) + len(fed), prompt.shape[1] + len(fed)))
    weights[: len(prompt), : prompt.shape[1]] = prompt
    weights[len(prompt) :, prompt.shape[1] :] = behind
    words = [(unit.text, unit.start, unit.end) for unit in units(case)]
    return (*case.labels, *fed), (*words, *((token, None, None) for token in fed)), weights


def _check_ends(both: Pair, certificate: Certificate) -> None:
    alone = both.other.value()
    if not abs(certificate.f_input - alone) <= both.tolerance() * max(abs(alone), 1.0):
        raise UserError(
            f"'{both.other.model.label}' gives {alone:.4g} by itself and {certificate.f_input:.4g} at the path's end; "
            "expected the same: the models differ in more than their weights, such as their configuration"
        )
