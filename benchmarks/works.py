"""The works: each a table of peers that do the same thing to one case, ours first.

F is the log-probability of the model's own next token. Paths and perturbations start from the end-of-text embedding at
every position but the first, save where a tool's own default is asked for. A peer returns its scores, one a free
position (a head in `attention`), and the completeness error where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import captum.attr
import numpy as np
import torch
from torch import Tensor

from benchmarks import GOAL, TO_GOAL
from xai_utils.attention import layers
from xai_utils.attribution import integrated_gradients, noise, perturbation, shapley
from xai_utils.attribution.absence import baseline_rows
from xai_utils.attribution.result import FLOOR
from xai_utils.attribution.target import Objective, Target
from xai_utils.models.loading import LoadedModel
from xai_utils.text.cases import Case

STEPS, DRAWS, SIGMA, ORDERS, SEED = 50, 30, 0.1, 4, 0
BASELINE = "eos"
MOST_STEPS = 400  # of a fixed rule before it is given up
LONG_TEXT = 64  # tokens above which sensitivity is measured with fewer draws


@dataclass(frozen=True)
class Found:
    """What a peer found: `error` is relative and of completeness, None where a method promises none."""

    scores: list[float]
    error: float | None = None


Peer = Callable[[LoadedModel, Case, Target], Found]


class Plain:
    """F as anybody would write it on a transformers model: ids or embeddings in, whole passes, all logits."""

    def __init__(self, model: LoadedModel, case: Case, target: Target):
        self.model, self.answer = model.model, target.ids[0]
        self.ids = torch.tensor([case.ids], device=model.device)
        self.inputs = model.embed(self.ids).detach()
        self.start = baseline_rows(model, case, BASELINE, True)[0][None]
        self.positions = list(range(1, len(case.ids)))

    def of_ids(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits[:, -1].log_softmax(-1)[:, self.answer]

    def of_embeddings(self, embeds: Tensor) -> Tensor:
        return self.model(inputs_embeds=embeds, use_cache=False).logits[:, -1].log_softmax(-1)[:, self.answer]

    @torch.no_grad()
    def batched(self, versions: list[Tensor], size: int) -> np.ndarray:
        chunks = [torch.stack(versions[first : first + size]) for first in range(0, len(versions), size)]
        return torch.cat([self.of_embeddings(chunk) for chunk in chunks]).double().cpu().numpy()

    @torch.no_grad()
    def completeness(self, scores: Tensor, start: Tensor) -> float:
        rise = float(self.of_embeddings(self.inputs) - self.of_embeddings(start))
        return abs(float(scores.double().sum()) - rise) / max(abs(rise), FLOOR)

    @property
    def size(self) -> int:
        """Sequences in a batch: as many as fill the device."""
        return max((16384 if self.ids.is_cuda else 1024) // self.ids.shape[1], 1)


# ---- integrated gradients


def our_steps(model: LoadedModel, case: Case, target: Target) -> Found:
    found = integrated_gradients.fixed_steps(model, case, target, baseline=BASELINE, keep_sink=True, steps=STEPS)
    return Found(found.scores[1:].tolist(), found.certificate.relative_delta)


def our_certificate(model: LoadedModel, case: Case, target: Target) -> Found:
    found = integrated_gradients.integrated_gradients(model, case, target, tolerance=GOAL, budget=4000)
    return Found(found.scores[1:].tolist(), found.certificate.bound)


def captum_steps(model: LoadedModel, case: Case, target: Target, steps: int = STEPS) -> Found:
    plain = Plain(model, case, target)
    explainer = captum.attr.LayerIntegratedGradients(plain.of_ids, model.model.get_input_embeddings())
    start = torch.full_like(plain.ids, model.tokenizer.eos_token_id)
    start[0, 0] = plain.ids[0, 0]
    batch = min(steps, STEPS)
    found = explainer.attribute(plain.ids, baselines=start, n_steps=steps, internal_batch_size=batch)
    scores = found.detach()[0].sum(-1)
    return Found(scores[1:].tolist(), plain.completeness(scores, model.embed(start)))


def inseq_steps(model: LoadedModel, case: Case, target: Target, steps: int = STEPS) -> Found:
    """inseq's own baseline and path: every position starts at the unknown token."""
    import inseq

    plain = Plain(model, case, target)
    shown = model.tokenizer.decode(case.ids)
    explainer = inseq.load_model(model.model, "integrated_gradients", tokenizer=model.tokenizer)
    answer = model.tokenizer.decode([target.ids[0]])
    found = explainer.attribute(
        shown,
        shown + answer,
        n_steps=steps,
        internal_batch_size=min(steps, STEPS),
        attributed_fn="probability",
        logprob=True,
        attr_pos_end=len(case.ids) + 1,
        show_progress=False,
    ).sequence_attributions[0]
    scores = found.target_attributions[: len(case.ids), 0].sum(-1)
    if [token.id for token in found.target[: len(case.ids)]] != case.ids:
        raise ValueError("inseq read other tokens than ours")
    start = model.embed(torch.full_like(plain.ids, model.tokenizer.unk_token_id))
    return Found(scores[1:].tolist(), plain.completeness(scores, start))


def steps_one_by_one(model: LoadedModel, case: Case, target: Target) -> Found:
    plain = Plain(model, case, target)
    nodes, weights = (array / 2 for array in np.polynomial.legendre.leggauss(STEPS))
    total = torch.zeros_like(plain.inputs)
    for node, weight in zip(nodes + 0.5, weights, strict=True):
        point = (plain.start + float(node) * (plain.inputs - plain.start)).requires_grad_()
        total += float(weight) * torch.autograd.grad(plain.of_embeddings(point).sum(), point)[0]
    scores = (total * (plain.inputs - plain.start))[0].sum(-1)
    return Found(scores[1:].tolist(), plain.completeness(scores, plain.start))


def until_goal(peer: Callable[..., Found]) -> Peer:
    """A fixed rule with the steps doubled until the error is small; the failed tries are part of the price."""

    def search(model: LoadedModel, case: Case, target: Target) -> Found:
        steps, found = STEPS, peer(model, case, target)
        while not (found.error is not None and found.error <= GOAL) and steps < MOST_STEPS:
            steps *= 2
            found = peer(model, case, target, steps)
        return found

    return search


# ---- one token away, or noised


def our_ablation(model: LoadedModel, case: Case, target: Target) -> Found:
    return Found(perturbation.ablation(model, case, target, absence=BASELINE).scores[1:].tolist())


def _without(plain: Plain) -> list[Tensor]:
    versions = [plain.inputs[0].clone() for _ in plain.positions]
    for version, position in zip(versions, plain.positions, strict=True):
        version[position] = plain.start[0, position]
    return versions


def _ablated(size: int | None) -> Peer:
    def ablate(model: LoadedModel, case: Case, target: Target) -> Found:
        plain = Plain(model, case, target)
        values = plain.batched([*_without(plain), plain.inputs[0]], size or plain.size)
        return Found((values[-1] - values[:-1]).tolist())

    return ablate


def captum_ablation(model: LoadedModel, case: Case, target: Target) -> Found:
    plain = Plain(model, case, target)
    features = torch.arange(plain.ids.shape[1], device=model.device)[None, :, None]
    with torch.no_grad():
        found = captum.attr.FeatureAblation(plain.of_embeddings).attribute(
            plain.inputs, baselines=plain.start, feature_mask=features
        )
    return Found(found[0, 1:, 0].tolist())


def draws(case: Case) -> int:
    """DRAWS, or a fifth of them where a text is long: time is linear in draws, and one by one takes an hour."""
    return DRAWS if len(case.ids) <= LONG_TEXT else DRAWS // 5


def our_sensitivity(model: LoadedModel, case: Case, target: Target) -> Found:
    found = noise.sensitivity(model, case, target, sigma=SIGMA, draws=draws(case), seed=SEED)
    return Found(found.scores[1:].tolist())


def _noised(size: int | None) -> Peer:
    def add_noise(model: LoadedModel, case: Case, target: Target) -> Found:
        plain, deviations = Plain(model, case, target), []
        for position in plain.positions:
            shape = (draws(case), plain.inputs.shape[-1])
            noise = np.random.default_rng([SEED, position]).standard_normal(shape, dtype=np.float32)
            versions = [plain.inputs[0].clone() for _ in noise]
            for version, draw in zip(versions, noise, strict=True):
                version[position] += SIGMA * torch.from_numpy(draw).to(version)
            deviations.append(float(plain.batched(versions, size or plain.size).std(ddof=1)))
        return Found(deviations)

    return add_noise


# ---- Shapley values by sampled orders


def our_shapley(model: LoadedModel, case: Case, target: Target) -> Found:
    budget = ORDERS * (len(case.ids) - 1)
    found = shapley.shapley(model, case, target, absence=BASELINE, tolerance=1e-9, budget=budget, seed=SEED)
    return Found(found.scores[1:].tolist())


def captum_shapley(model: LoadedModel, case: Case, target: Target) -> Found:
    plain = Plain(model, case, target)
    features = torch.arange(plain.ids.shape[1], device=model.device)[None, :, None]
    with torch.no_grad():
        found = captum.attr.ShapleyValueSampling(plain.of_embeddings).attribute(
            plain.inputs, baselines=plain.start, feature_mask=features, n_samples=ORDERS
        )
    return Found(found[0, 1:, 0].tolist())


def shapley_batched(model: LoadedModel, case: Case, target: Target) -> Found:
    plain, generator, gains = Plain(model, case, target), np.random.default_rng(SEED), []
    for _ in range(ORDERS):
        order, version = generator.permutation(plain.positions), plain.start[0].clone()
        versions = [version.clone()]
        for position in order:
            version[position] = plain.inputs[0, position]
            versions.append(version.clone())
        rises = np.diff(plain.batched(versions, plain.size))
        gains.append(rises[np.argsort(order)])
    return Found(np.mean(gains, axis=0).tolist())


# ---- attention


def our_attention(model: LoadedModel, case: Case, target: Target) -> Found:
    return Found(layers.head_table(model, case)["entropy"].tolist())


def attention_head_by_head(model: LoadedModel, case: Case, target: Target) -> Found:
    """The weights that transformers returns, and each head's statistics in turn: our view of raw weights alone."""
    with layers.eager(model.model), torch.no_grad():
        ids = torch.tensor([case.ids], device=model.device)
        every = model.model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    entropies = []
    for layer in every:
        for head in layer[0].double().cpu().numpy():
            rows, index = head[1:], np.arange(1, len(head))
            entropies.append(float(-(rows * np.log(np.where(rows > 0, rows, 1))).sum(1).mean()))
            rows[:, 0].mean(), rows[np.arange(len(rows)), index].mean(), rows[np.arange(len(rows)), index - 1].mean()
            distance = np.abs(index[:, None] - np.arange(len(head)))
            (rows * distance).sum(1).mean(), (rows * (distance < layers.LOCAL)).sum(1).mean()
    return Found(entropies)


WORKS: dict[str, dict[str, Peer]] = {
    "integrated gradients, 50 steps": {
        "ours": our_steps,
        "inseq": inseq_steps,
        "captum": captum_steps,
        "one by one": steps_one_by_one,
    },
    TO_GOAL: {
        "ours": our_certificate,
        "inseq": until_goal(inseq_steps),
        "captum": until_goal(captum_steps),
    },
    "ablation": {
        "ours": our_ablation,
        "captum": captum_ablation,
        "batched": _ablated(None),
        "one by one": _ablated(1),
    },
    "sensitivity": {"ours": our_sensitivity, "batched": _noised(None), "one by one": _noised(1)},
    "Shapley sampling": {"ours": our_shapley, "captum": captum_shapley, "batched": shapley_batched},
    "attention": {"ours": our_attention, "head by head": attention_head_by_head},
}


def one_pass(model: LoadedModel, case: Case, target: Target) -> None:
    """What every peer has behind it when the clock starts: a first pass, forward and back, and what is tried once a
    model, whatever is explained with it then."""
    objective = Objective(model, case, target)
    objective.values_and_gradients(objective.inputs[None])
    assert objective.reuses_prefix
