"""Residual-guided integration against closed forms and against very many plain steps."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from tests.tiny import tiny_loaded
from xai_utils.attribution.absence import baseline_rows
from xai_utils.attribution.integrated_gradients import EmbeddingPath
from xai_utils.attribution.path import (
    FIRST_ROUND,
    SMOOTH,
    _interlace,
    _Interval,
    _Known,
    _smooth_pieces,
    _worst,
    integrate,
)
from xai_utils.attribution.patterson import rule
from xai_utils.attribution.target import Objective, make_target
from xai_utils.errors import UserError
from xai_utils.study.config import Study
from xai_utils.text.cases import prepare
from xai_utils.text.entry import TextEntry


class Polynomial:
    """F(e) = sum of c * e**power: integrated gradients are c * (x**power - b**power), in closed form."""

    def __init__(self, inputs, coefficients, power):
        self.inputs, self.coefficients, self.power = inputs, coefficients, power
        self.forwards = self.gradients = 0

    def unchanged(self, start):
        return 0

    def values(self, embeds, since=0):
        self.forwards += len(embeds)
        return (self.coefficients * embeds**self.power).sum((1, 2))

    def values_and_gradients(self, embeds, since=0):
        self.gradients += len(embeds)
        return self.values(embeds), self.power * self.coefficients * embeds ** (self.power - 1)


class Step(Polynomial):
    """A steep rise in the middle of the path: F = tanh(sharpness * (mean entry - 0.37))."""

    sharpness = 400.0

    def values(self, embeds, since=0):
        self.forwards += len(embeds)
        return torch.tanh(self.sharpness * (embeds.mean((1, 2)) - 0.37))

    def values_and_gradients(self, embeds, since=0):
        self.gradients += len(embeds)
        leaf = embeds.clone().requires_grad_()
        value = torch.tanh(self.sharpness * (leaf.mean((1, 2)) - 0.37))
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def case_of(text, answer, model):
    entry = TextEntry(id="t", text=text, answer=answer)
    study = Study(name="s", models=(model.entry,), texts=(entry,))
    return prepare(model, entry, study)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_rules_are_nested_and_exact(level):
    nodes, weights = rule(level)
    coarse, _ = rule(level - 1)
    assert len(nodes) == 2 ** (level + 2) - 1
    assert np.array_equal(nodes, np.sort(nodes))
    assert np.allclose(nodes[1::2], coarse, atol=1e-14)
    assert np.array_equal(_interlace(nodes[::2], nodes[1::2]), nodes)
    degree = (3 * len(nodes) + 1) // 2  # of exactness, Patterson 1968
    for power in range(degree + 1):
        assert weights @ nodes**power == pytest.approx(1 / (power + 1), abs=1e-12)


def test_polynomial_is_exact():
    generator = torch.Generator().manual_seed(0)
    inputs, start, coefficients = torch.rand(3, 5, 4, generator=generator, dtype=torch.float64)
    objective = Polynomial(inputs, coefficients, 5)
    _, scores, errors, certificate = integrate(EmbeddingPath(objective, start), 0.01, 1000)
    assert np.allclose(scores, (coefficients * (inputs**5 - start**5)).sum(1).numpy(), rtol=1e-12)
    assert certificate.evaluations == FIRST_ROUND
    assert certificate.converged
    assert certificate.bound < 1e-12
    assert errors.max() < 1e-4


def test_refinement_goes_where_the_error_is():
    objective = Step(torch.ones(2, 3, dtype=torch.float64), None, None)
    pieces, scores, _, certificate = integrate(
        EmbeddingPath(objective, torch.zeros(2, 3, dtype=torch.float64)), 0.001, 1000
    )
    rise = np.tanh(400 * 0.63) + np.tanh(400 * 0.37)
    assert certificate.converged
    assert scores.sum() == pytest.approx(rise, rel=1e-3)
    assert scores[0] == pytest.approx(scores[1])
    narrow = min(pieces, key=lambda piece: piece.end - piece.start)
    assert narrow.start - 0.05 < 0.37 < narrow.end + 0.05
    assert pieces[0].start == 0
    assert pieces[-1].end == 1
    assert all(a.end == b.start for a, b in zip(pieces, pieces[1:], strict=False))


def test_forward_passes_alone_find_the_step():
    objective = Step(torch.ones(2, 3, dtype=torch.float64), None, None)
    objective.sharpness = 40
    known = _Known(EmbeddingPath(objective, torch.zeros(2, 3, dtype=torch.float64)))
    pieces = _smooth_pieces(known, 0.01, 70)
    assert objective.gradients == 0
    assert [start for start, _ in pieces] == [0.0, *(end for _, end in pieces[:-1])]
    fine = np.linspace(0, 1, 201)
    for start, end in pieces:
        values = np.tanh(40 * (start + (end - start) * fine - 0.37))
        quartic = np.polyfit(fine[::50], values[::50], 4)
        assert np.abs(np.polyval(quartic, fine) - values).max() <= 1.5 * SMOOTH * 0.01 * known.scale
    assert min(end - start for start, end in pieces) <= 1 / 16 < max(end - start for start, end in pieces)
    assert len(_smooth_pieces(known, 0.01, 3)) <= 3


def test_budget_is_never_passed_and_failure_is_said():
    objective = Step(torch.ones(2, 3, dtype=torch.float64), None, None)
    objective.sharpness = 1e6
    for budget in (FIRST_ROUND, 40, 100):
        objective.gradients = 0
        *_, certificate = integrate(EmbeddingPath(objective, torch.zeros(2, 3, dtype=torch.float64)), 1e-6, budget)
        assert certificate.evaluations == objective.gradients <= budget
        assert not certificate.converged
        assert certificate.verdict == "not converged"


def test_small_difference_is_measured_against_the_floor():
    inputs = torch.ones(2, 3, dtype=torch.float64)
    objective = Polynomial(inputs, torch.full((2, 3), 1e-9, dtype=torch.float64), 3)
    *_, certificate = integrate(EmbeddingPath(objective, torch.zeros_like(inputs)), 0.01, 1000)
    assert certificate.scale == 0.1
    assert certificate.converged


@pytest.mark.parametrize(
    ("setting", "part"), [({"tolerance": 0.0}, "tolerance is 0.0"), ({"budget": FIRST_ROUND - 1}, "first round takes")]
)
def test_bad_settings_are_said(setting, part):
    objective = Polynomial(torch.ones(2, 3), torch.ones(2, 3), 2)
    arguments = {"tolerance": 0.01, "budget": 1000} | setting
    with pytest.raises(UserError, match=part):
        integrate(EmbeddingPath(objective, torch.zeros(2, 3)), **arguments)


@pytest.mark.parametrize("baseline", ["mean", "eos", "zero"])
def test_agrees_with_20000_midpoint_steps(baseline):
    model = tiny_loaded("llama", dtype=torch.float64)
    case = case_of("The capital of France", " is Paris.", model)
    objective = Objective(model, case, make_target(model, case))
    start = baseline_rows(model, case, baseline, keep_sink=True)[0]
    _, scores, errors, certificate = integrate(EmbeddingPath(objective, start), 0.01, 2000)
    assert certificate.converged
    alphas = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    step = objective.inputs - start
    plain = torch.zeros(len(case.tokens), dtype=torch.float64)
    for chunk in alphas.split(1000):
        _, gradients = objective.values_and_gradients(start + chunk[:, None, None] * step)
        plain += torch.einsum("nph,ph->p", gradients, step) / 20000
    assert np.abs(scores - plain.numpy()).max() <= 0.01 * certificate.scale
    assert (np.abs(scores - plain.numpy()) <= errors + 1e-4 * certificate.scale).all()


def test_deep_random_model_from_zero_is_reported_not_converged():
    model = tiny_loaded("llama-28")
    case = case_of("The capital of France", " is Paris.", model)
    objective = Objective(model, case, make_target(model, case))
    start = baseline_rows(model, case, "zero", keep_sink=False)[0]
    *_, certificate = integrate(EmbeddingPath(objective, start), 0.01, 200)
    assert not certificate.converged
    assert dataclasses.asdict(certificate)["evaluations"] <= 200


@pytest.mark.parametrize("seed", range(5))
def test_a_round_takes_no_piece_that_could_be_spared(seed):
    """Against all sets of pieces: none that is smaller leaves the others within the tolerance."""
    intervals = [_Interval(0, 1, 0, np.zeros(7), np.zeros(7), np.zeros((7, 1)), 0.0)] * 7
    errors = np.random.default_rng(seed).exponential(0.01, 7)
    unproven = np.stack([errors, np.zeros(7)])
    sizes = [
        len(chosen)
        for count in range(8)
        for chosen in itertools.combinations(range(7), count)
        if errors.sum() - errors[list(chosen)].sum() <= 0.02
    ]
    assert len(_worst(intervals, unproven, 0.02, 1000)) == min(sizes)
    assert len(_worst(intervals, unproven, 0.02, 8 * 2)) == min(2, *sizes)  # eight evaluations a piece
    assert not _worst(intervals, unproven, 1.0, 1000)
