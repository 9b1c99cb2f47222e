"""Passes side by side give what one pass gives, are watched like it, and leave torch's threads as they were."""

import threading

import pytest
import torch

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.target import Objective
from xai_utils.models import batching
from xai_utils.models.batching import in_passes
from xai_utils.models.watch import Stopped, Watch


@pytest.fixture
def cores(monkeypatch):
    """Two cores, of which each is worth its while."""
    before = torch.get_num_threads()
    monkeypatch.setattr(batching, "LEAST_PER_CORE", 1)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def objective(cores):
    model = tiny_loaded()
    return Objective(model, *tiny_case(model, "The capital of France is"))


def versions(objective, count):
    shares = torch.linspace(0.1, 1, count)[:, None, None]
    return shares * objective.inputs


def plain(objective, embeds):
    """F of whole prompts, each in a pass of its own, and its gradient."""
    leaf = embeds.clone().requires_grad_(True)
    values = torch.cat([objective._outcomes(row[None], objective.answers)[0] for row in leaf])
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_values_and_gradients_are_those_of_single_passes(objective, count, monkeypatch):
    monkeypatch.setattr(Objective, "batch_size", lambda self, since=0: 2)
    embeds = versions(objective, count)
    expected, gradient = plain(objective, embeds)
    for found in (objective.values(embeds), objective.values_and_gradients(embeds)[0]):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(objective.values_and_gradients(embeds)[1], gradient, atol=1e-5, rtol=1e-4)
    assert objective.forwards == 3 * count


def test_parts_come_in_order_each_on_one_core_of_its_own(cores):
    together = threading.Barrier(2, timeout=10)  # broken unless two parts are under way at once

    def part(rows):
        together.wait()
        return rows.start, rows.stop, torch.get_num_threads()

    found = in_passes(part, torch.zeros(8, 3, 1), batch_size=4)
    assert found == [(0, 2, 1), (2, 4, 1), (4, 6, 1), (6, 8, 1)]
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert torch.get_num_threads() == 2 and seen == [2]


def test_passes_side_by_side_are_watched(objective):
    embeds, _ = versions(objective, 6), objective.batch_size()  # memory is measured once a model
    with Watch([objective.model.model]) as watch:
        objective.values_and_gradients(embeds)
    assert watch.passes == pytest.approx(6)
    watch = Watch([objective.model.model], lambda passes: watch.stop())
    with pytest.raises(Stopped), watch:
        objective.values_and_gradients(embeds)
    assert watch.passes < 2
