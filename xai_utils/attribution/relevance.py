"""One-pass methods: the relevance of every token from one forward and one backward pass under LRP's rules.

What is explained is a *centred logit*: an answer token's logit minus the model's own expectation of it,
z_answer - sum_v p_v z_v with the probabilities p held fixed, summed over the answer's tokens. Its gradient at the
logits is that of the log-probability, and under linear rules it is shared out without a rest. Under the target
`contrast` it is the difference of two centred logits (for single tokens, of two logits), under `logit` and `sum_logits`
the logits themselves.

There is no absence and no baseline, so the first position has a score too: the sum needs it. A centred logit tends to 0
as the model grows sure of the answer (p to 1), where little is left to share; a contrast is free of that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from xai_utils.attribution.lrp_rules import Rule, rules
from xai_utils.attribution.result import Attribution, Certificate, from_tokens
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case, units

VERSION = 1  # raise it when results would come out different
TOLERANCE = 1e-3  # of the sum: rounding in float32 stays far below it, a step without a rule does not

_linear: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Relevance:
    """Gradients at the prompt's embeddings under LRP's rules, and where the value went."""

    inputs: Float[Tensor, "position hidden"]
    gradient: Float[Tensor, "position hidden"]
    value: float  # the centred logit
    rest: float  # what the answer's own earlier tokens and the biases carry

    @property
    def scores(self) -> Float[np.ndarray, " position"]:
        return (self.inputs.double() * self.gradient.double()).sum(-1).cpu().numpy()


def cp_lrp(model: LoadedModel, case: Case, target: Target) -> Attribution:
    """CP-LRP, also called RelP: e_t . df/de_t, no relevance through the attention weights, with a certificate.

    Rules in lrp_rules.py; Jafari et al. 2025 (arXiv 2508.21258), Ali et al. 2022 (arXiv 2202.07304). The scores sum to
    f_input - f_baseline: f_input is the centred logit, f_baseline what the biases and the answer's own earlier tokens
    carry, 0 for an answer of one token in a model without biases. Raises UserError for an architecture without rules.
    """
    found = relevance(model, case, target, "cp")
    proof = _certificate(found)
    return from_tokens("cp_lrp", case, target, found.scores, keep_sink=False, unit="logits", certificate=proof)


def attn_lrp(model: LoadedModel, case: Case, target: Target) -> Attribution:
    """AttnLRP: e_t . df/de_t, with relevance through queries and keys (Achtibat et al. 2024, arXiv 2402.05602).

    Its scores do not sum to the centred logit: the softmax does not conserve. Raises UserError as `cp_lrp` does.
    """
    found = relevance(model, case, target, "attn")
    return from_tokens("attn_lrp", case, target, found.scores, keep_sink=False, unit="logits")


def attn_lrp_norm(model: LoadedModel, case: Case, target: Target) -> Attribution:
    """Euclidean norm of AttnLRP's gradient at a token or, over all of its tokens, at a word; it has no sign.

    In logits per unit of embedding. Raises UserError as `cp_lrp` does.
    """
    squares = relevance(model, case, target, "attn").gradient.double().square().sum(-1).cpu().numpy()
    words = np.sqrt([squares[list(unit.tokens)].sum() if unit.tokens else np.nan for unit in units(case)])
    norms, unit = np.sqrt(squares), "logits per unit"
    plain = from_tokens("attn_lrp_norm", case, target, norms, keep_sink=False, additive=False, unit=unit)
    return dataclasses.replace(plain, word_scores=words)


def _certificate(found: Relevance) -> Certificate:
    made = Certificate.of_sum(found.scores.sum(), found.value, found.rest, TOLERANCE, evaluations=1)
    return dataclasses.replace(made, exact=made.converged)


def relevance(model: LoadedModel, case: Case, target: Target, rule: Rule) -> Relevance:
    """Gradients of one case's target under a rule, from one backward pass. Raises UserError as `cp_lrp` does."""
    _check(model)
    prompt, *behind = (_leaf(model, ids) for ids in (case.ids, target.ids[:-1], target.contrast_ids[:-1]))
    with rules(model.model, rule) as biases, torch.enable_grad():
        value = _value(model, target, prompt, behind)
        gradients = torch.autograd.grad(value, [prompt, *behind, *biases], materialize_grads=True)
    if not torch.isfinite(gradients[0]).all():
        raise UserError(
            f"the relevance of model '{model.label}' is not finite for target {target.text!r}; expected finite "
            "numbers; use dtype: float32"
        )
    rest = _carried([*behind, *biases], gradients[1:])
    return Relevance(prompt.detach(), gradients[0], value.item(), rest)


def _leaf(model: LoadedModel, ids: Sequence[int]) -> Tensor:
    return model.embed(torch.tensor(ids, dtype=torch.long)).detach().clone().requires_grad_()


def _carried(parts: Iterable[Tensor], gradients: Iterable[Tensor]) -> float:
    """The sum of part times gradient over all parts."""
    pairs = zip(parts, gradients, strict=True)
    return sum((part.double() * gradient.double()).sum().item() for part, gradient in pairs)


def _value(model: LoadedModel, target: Target, prompt: Tensor, behind: list[Tensor]) -> Tensor:
    if target.kind == "sum_logits":
        return model.model(inputs_embeds=prompt[None], use_cache=False).logits.sum()
    value = _explained(model, target, torch.cat([prompt, behind[0]]), target.ids)
    if target.kind == "contrast":
        value = value - _explained(model, target, torch.cat([prompt, behind[1]]), target.contrast_ids)
    return value


def _explained(model: LoadedModel, target: Target, embeds: Tensor, ids: tuple[int, ...]) -> Tensor:
    """The centred logits of an answer's tokens added, or its one logit."""
    logits = model.model(inputs_embeds=embeds[None], use_cache=False, logits_to_keep=len(ids)).logits[0].float()
    answer = logits.gather(-1, torch.tensor(ids, device=logits.device)[:, None]).sum()
    return answer if target.kind == "logit" else answer - (logits.softmax(-1).detach() * logits).sum()


def _check(model: LoadedModel) -> None:
    """Once a model: the rules change no value, and what they leave is linear in embeddings and biases.

    Raises UserError where a logit of a few tokens misses either.
    """
    if model.model in _linear:
        return
    embeds = _leaf(model, torch.linspace(0, len(model.embedding) - 1, 6).long().tolist())

    def logits() -> Tensor:
        return model.model(inputs_embeds=embeds[None], use_cache=False, logits_to_keep=1).logits[0, -1]

    with torch.no_grad():
        plain = logits()
    with rules(model.model, "cp") as biases, torch.enable_grad():
        ruled = logits()
        gradients = torch.autograd.grad(ruled[plain.argmax()], [embeds, *biases], materialize_grads=True)
    sums = abs(_carried([embeds, *biases], gradients) - plain.max().item())
    miss = max((ruled - plain).abs().max().item(), sums)
    if not miss <= torch.finfo(plain.dtype).eps ** 0.5 * plain.abs().max().item():
        raise UserError(
            f"one-pass relevance does not add up for {type(model.model).__name__} (its sum misses a logit by "
            f"{miss:.2g}): it has a step without a rule; use panel Shapley, ablation or another method"
        )
    _linear[model.model] = True
