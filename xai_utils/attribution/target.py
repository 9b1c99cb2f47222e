"""What is explained: one scalar of the model's output, and the function F that computes it from prompt embeddings.

Four kinds, with their units: `logprob` (log-probability of the answer string, summed over its tokens, nats), `logit`
(the raw logit of one token), `contrast` (log-probability of the answer minus that of another string; for single tokens
the difference of two logits, Yin & Neubig 2022, arXiv 2202.10419), `sum_logits` (all logits of all positions added,
which is what the original study appears to have explained). Where a text has no answer, the model's own next token
stands in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xai_utils.errors import UserError
from xai_utils.models import graphs
from xai_utils.models.batching import in_passes, positions
from xai_utils.models.loading import LoadedModel
from xai_utils.models.precision import products
from xai_utils.models.prefix import Prefix
from xai_utils.text.cases import Case

UNITS = {"logprob": "nats", "logit": "logits", "contrast": "nats", "sum_logits": "logits"}
KEPT_POSITIONS = 8  # times a pass's positions: those whose keys and values it may hold, 400 MB for the default model
WORTH = 1 / 8  # of a prompt's positions: kept keys and values of fewer cost what they save

AnswerTokens = tuple[Tensor, Tensor]  # a string's token ids, and the embeddings of all of them but the last


@dataclass(frozen=True)
class Target:
    """The scalar that is explained. `ids` are the answer's tokens, `contrast_ids` those it is compared with."""

    kind: str
    text: str
    ids: tuple[int, ...]
    contrast_ids: tuple[int, ...] = ()

    @property
    def unit(self) -> str:
        return UNITS[self.kind]

    def keys(self) -> dict[str, str]:
        return {"target": self.kind, "target_text": self.text}


def make_target(model: LoadedModel, case: Case, kind: str = "logprob") -> Target:
    """The target of a case: its answer where it has one, else the model's own next token.

    Raises UserError for an unknown kind, a `logit` of several tokens, or a `contrast` with nothing to compare with.
    """
    if kind not in UNITS:
        raise UserError(f"unknown target {kind!r}; expected one of {', '.join(UNITS)}")
    if kind == "sum_logits":
        return Target(kind, "all logits", ())
    ids = case.answer_ids or (next_token(model, case),)
    text = case.answer if case.answer is not None else str(model.tokenizer.decode(list(ids)))
    if kind == "logit" and len(ids) != 1:
        pieces = model.tokenizer.convert_ids_to_tokens(list(ids))
        raise UserError(
            f"text '{case.text_id}': the target {text!r} is {len(ids)} tokens for model '{case.model}' "
            f"({' | '.join(pieces)}) and a logit belongs to one; use target: logprob, or a target of one token"
        )
    if kind != "contrast":
        return Target(kind, text, ids)
    if not case.contrast_ids:
        raise UserError(f"text '{case.text_id}': target contrast needs a `contrast` text beside its answer; add one")
    return Target(kind, f"{text} / {case.contrast}", ids, case.contrast_ids)


def next_token(model: LoadedModel, case: Case) -> int:
    """The model's own most probable next token."""
    return int(model.logits(case.ids)[-1].argmax())


class Objective:
    """F for one model, case and target: prompt embeddings [batch, position, hidden] -> target [batch].

    The answer's embeddings are appended inside and stay fixed, so that a path or a perturbation moves the prompt alone.
    """

    def __init__(self, model: LoadedModel, case: Case, target: Target):
        self.model, self.target = model, target
        self.inputs = model.embed(torch.tensor(case.ids, device=model.device))
        self.prefix = Prefix(model, self.inputs)
        strings = [target.ids, target.contrast_ids] if target.kind == "contrast" else [target.ids]
        self.answers = [_answer(model, ids) for ids in strings if ids]
        self.length = len(case.tokens) + max(len(target.ids), len(target.contrast_ids), 1) - 1
        self.forwards = 0  # sequences evaluated so far, with or without a gradient

    def batch_size(self, since: int = 0) -> int:
        """Sequences in one pass that starts at position `since`."""
        most = positions(self.model)
        return max(min(most // (self.length - since), KEPT_POSITIONS * most // self.length), 1)

    def __call__(self, embeds: Tensor) -> Tensor:
        """F [batch] of whole prompts in one pass, as torch and captum differentiate it."""
        return self._outcomes(embeds, self.answers)[0]

    def unchanged(self, start: Float[Tensor, "position hidden"]) -> int:
        """How many positions a path from `start` leaves as they are before the first that moves, where a pass gains by
        starting behind them; else 0."""
        moving = (start != self.inputs).any(-1).nonzero()
        first = int(moving[0]) if len(moving) else 0
        return first if first >= WORTH * len(start) and self.reuses_prefix else 0

    def values(self, embeds: Tensor, since: int = 0) -> Tensor:
        """F without gradients, in chunks: [batch]; `embeds` stand for the positions from `since` on."""
        return self.outcomes(embeds, since)[0]

    @property
    def reuses_prefix(self) -> bool:
        """Whether `outcomes` may start behind the first position."""
        return self.target.kind != "sum_logits" and self.prefix.usable

    def outcomes(self, embeds: Tensor, since: int = 0, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """F [batch] and the model's own next token behind the prompt [batch], without gradients, in chunks.

        `embeds` [batch, position - since, hidden] stand for the positions from `since` on, behind the prompt's own.
        `seen` [batch, position - since] is False where later positions must not attend (visibility.py).
        """
        if since:
            self.prefix.prepare()

        @torch.no_grad()
        def part(rows: slice) -> tuple[Tensor, Tensor]:
            if since == 0 and seen is None:
                return self._whole(self._outcomes, embeds[rows])
            return self._outcomes(embeds[rows], self.answers, since, None if seen is None else seen[rows])

        with products(self.model.entry.dtype):
            found = in_passes(part, embeds, self.batch_size(since))
        self.forwards += len(embeds)
        values, own = (torch.cat(column) for column in zip(*found, strict=True))
        return values, own

    def values_and_gradients(self, embeds: Tensor, since: int = 0) -> tuple[Tensor, Tensor]:
        """F [batch] and its gradient [batch, position - since, hidden], in chunks, at the positions from `since` on.

        Raises UserError when a gradient is not finite, which names where it happened.
        """
        if since:
            self.prefix.prepare()

        @torch.enable_grad()
        def part(rows: slice) -> tuple[Tensor, Tensor]:
            if since == 0:
                return self._whole(self._differentiated, embeds[rows])
            return self._differentiated(embeds[rows], self.answers, since)

        with products(self.model.entry.dtype):
            found = in_passes(part, embeds, self.batch_size(since))
        self.forwards += len(embeds)
        values, gradients = (torch.cat(column) for column in zip(*found, strict=True))
        if not torch.isfinite(gradients).all():
            raise UserError(
                f"the gradient of model '{self.model.label}' is not finite for target {self.target.text!r}; expected "
                "finite numbers; use dtype: float32, keep_sink: true, or another baseline than zero"
            )
        return values, gradients

    # ---- one pass

    def _whole(self, function: Callable[..., tuple[Tensor, Tensor]], embeds: Tensor) -> tuple[Tensor, Tensor]:
        """`_outcomes` or `_differentiated` of whole prompts; a small batch by a recording where one has its shape."""
        if len(embeds) * self.length > positions(self.model) // 2:
            return function(embeds, self.answers)
        name = (function.__name__, self.target.kind)
        flat = itertools.chain.from_iterable(self.answers)

        def function_of(rows: Tensor, *answers: Tensor) -> tuple[Tensor, Tensor]:
            return function(rows, list(zip(answers[::2], answers[1::2], strict=True)))

        value, other = graphs.replayed(self.model.model, name, function_of, embeds, *flat)
        return value, other

    def _differentiated(self, embeds: Tensor, answers: list[AnswerTokens], since: int = 0) -> tuple[Tensor, Tensor]:
        """Target [batch] and its gradient at `embeds`."""
        leaf = embeds.detach().requires_grad_(True)
        value = self._outcomes(leaf, answers, since)[0]
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    def _outcomes(
        self,
        embeds: Tensor,
        answers: list[AnswerTokens],
        since: int = 0,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Target [batch] and the token that the model itself would put behind the prompt [batch].

        What it reads beside its arguments must be the same for all cases of a model, target kind and shape.
        """
        if self.target.kind == "sum_logits":
            logits = self.prefix.logits(embeds, 0, embeds.shape[1], seen=seen)
            real = logits if seen is None else logits * seen[..., None]
            return real.sum((1, 2)), logits[:, -1].argmax(-1)
        value, own = self._continuation(embeds, answers[0], since, seen)
        if self.target.kind == "contrast":
            value = value - self._continuation(embeds, answers[1], since, seen)[0]
        return value, own

    def _continuation(
        self, embeds: Tensor, answer: AnswerTokens, since: int, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ids, before_last = answer
        fixed = before_last.to(embeds.dtype).expand(len(embeds), -1, -1)
        if seen is not None:
            seen = torch.cat([seen, seen.new_ones(len(seen), len(ids) - 1)], 1)
        logits = self.prefix.logits(torch.cat([embeds, fixed], 1), since, len(ids), seen)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        own = logits[:, 0].argmax(-1)
        if self.target.kind != "logit":
            logits = logits.log_softmax(-1)
        return logits.gather(-1, ids.expand(len(embeds), -1)[..., None]).sum((1, 2)), own


def _answer(model: LoadedModel, ids: tuple[int, ...]) -> AnswerTokens:
    tokens = torch.tensor(ids, device=model.device)
    return tokens, model.embed(tokens[:-1])
