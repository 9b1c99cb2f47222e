"""The size of a pass against memory that is measured, and against none."""

import gc
import warnings
import weakref

import psutil
import pytest
import torch

from tests.tiny import tiny_loaded
from xai_utils.models import batching


class Linear(torch.nn.Module):
    """A model of one frozen layer and a square: what it keeps for its gradient is known."""

    width = 16

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(self.width, self.width).requires_grad_(False)

    def forward(self, inputs_embeds, **_):
        return type("Output", (), {"logits": self.layer(inputs_embeds) ** 2})


class Loaded:
    label, device = "linear", torch.device("cpu")

    def __init__(self):
        self.model = Linear()

    def embed(self, ids):
        return torch.randn(*ids.shape, Linear.width)


def test_what_a_pass_keeps_is_counted_without_the_weights():
    """The square keeps its input, 16 numbers of 4 bytes a position; the frozen layer keeps its weight alone."""
    assert batching.kept_per_position(Loaded()) == Linear.width * 4


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_a_pass_keeps_is_what_stays_taken(architecture):
    """Against torch's own account of what was taken and not given back while the graph lives."""
    model = tiny_loaded(architecture)
    embeds = model.embed(torch.zeros(1, batching.PROBE, dtype=torch.long)).requires_grad_()
    with torch.profiler.profile(profile_memory=True) as account:
        logits = model.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits
    taken = sum(event.self_cpu_memory_usage for event in account.key_averages())
    assert logits.requires_grad
    assert batching.kept_per_position(model) * batching.PROBE == pytest.approx(taken, rel=0.1)


def test_a_pass_takes_what_is_enough_or_what_fits(monkeypatch):
    model = Loaded()
    monkeypatch.setattr(batching, "free", lambda device: 2**40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert batching.positions(model) == batching.ENOUGH
    tight = Loaded()
    monkeypatch.setattr(batching, "free", lambda device: 100 * Linear.width * 4)
    said = f"'linear': not enough memory: passes hold 25 positions, not {batching.ENOUGH}"
    with pytest.warns(UserWarning, match=said):
        assert batching.positions(tight) == int(100 * batching.SHARE)
    monkeypatch.setattr(batching, "free", lambda device: 0)
    assert batching.positions(tight) == 25  # once a model: a batch does not change in the middle of a study
    with pytest.warns(UserWarning):
        assert batching.positions(Loaded()) == 1


def test_free_memory_is_that_of_the_machine():
    gc.collect()
    assert abs(batching.free(torch.device("cpu")) - psutil.virtual_memory().available) < 2**30


@pytest.mark.parametrize(
    ("launch", "each", "memory", "expected"),
    [(0.0, 1e-6, 10**6, 4096), (0.01, 1e-6, 10**6, 131072), (0.01, 1e-4, 10**6, 4096), (0.01, 1e-6, 6000, 4096)],
)
def test_a_gpu_gets_as_many_as_pay_or_as_fit(monkeypatch, launch, each, memory, expected):
    """On a card whose passes take `launch` seconds and `each` a position, with so many positions of memory."""
    model = Loaded()
    monkeypatch.setattr(Loaded, "device", torch.device("cuda"))
    monkeypatch.setattr(batching, "kept_per_position", lambda model: 1.0)
    monkeypatch.setattr(batching, "free", lambda device: memory / batching.SHARE)
    monkeypatch.setattr(batching, "_seconds", lambda model, size: launch + each * size)
    assert batching.positions(model) == expected


def test_a_measured_model_can_be_freed():
    model = tiny_loaded()
    assert batching.kept_per_position(model) > 0
    weight = weakref.ref(model.model.model.layers[0].mlp.up_proj.weight)
    del model
    gc.collect()
    assert weight() is None


def test_a_pass_is_timed_in_any_grad_mode():
    """It takes a gradient, also where whoever asks computes without."""
    with torch.no_grad():
        assert 0 < batching._seconds(tiny_loaded(), 2 * batching.PROBE) < 10
