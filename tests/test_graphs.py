"""When a pass is recorded and when it is replayed. A recording itself needs a GPU: `python -m benchmarks.agree`."""

import pytest
import torch

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attention.layers import eager
from xai_utils.attribution.target import Objective
from xai_utils.models import graphs
from xai_utils.models.watch import Watch


class Recording:
    """What a CUDA graph does, as far as a caller can tell: the same function on buffers of its own."""

    def __init__(self, function, inputs):
        self.function, self.inputs, self.replays = function, tuple(value.clone() for value in inputs), 0

    def replay(self, inputs):
        self.replays += 1
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.function(*self.inputs)


@pytest.fixture
def made(monkeypatch):
    """The recordings that are made, on a CPU that passes for a GPU."""
    found = []

    def record(model, function, inputs):
        found.append(Recording(function, inputs))
        return found[-1]

    monkeypatch.setattr(graphs, "_on_gpu", lambda inputs: True)
    monkeypatch.setattr(graphs, "_record", record)
    return found


@pytest.fixture
def model():
    return tiny_loaded()


def objective(model, text="The capital of France is", kind="logprob"):
    return Objective(model, *tiny_case(model, text, kind, contrast=" London."))


def test_the_second_pass_of_a_shape_is_recorded_and_later_ones_are_replayed(made, model):
    own = objective(model)
    for expected in (0, 1, 1):
        own.values(own.inputs[None])
        assert len(made) == expected
    assert made[0].replays == 2
    own.values(own.inputs.expand(2, -1, -1))
    own.values_and_gradients(own.inputs[None])
    assert len(made) == 1  # other shapes, and a gradient


@pytest.mark.parametrize("kind", ["logprob", "contrast", "sum_logits"])
def test_a_recording_serves_other_texts_of_the_same_length(made, model, kind):
    """The recording is made on one text and replayed on another, with another answer of as many tokens."""
    first, second = objective(model, "cat dog", kind), objective(model, "dog cat", kind)
    assert first.inputs.shape == second.inputs.shape and not torch.equal(first.inputs, second.inputs)
    plain = Objective(tiny_loaded(), *tiny_case(model, "dog cat", kind, contrast=" London."))
    expected = plain._differentiated(plain.inputs[None], plain.answers)
    for own in (first, first, second):
        values, gradients = own.values_and_gradients(own.inputs[None])
    assert made[0].replays == 2
    torch.testing.assert_close(values, expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(gradients, expected[1], atol=1e-4, rtol=1e-4)


def test_a_changed_model_is_recorded_anew_and_a_hooked_or_watched_one_runs(made, model):
    own = objective(model)

    def ask():
        own.values(own.inputs[None])
        return len(made), sum(recording.replays for recording in made)

    assert [ask(), ask()] == [(0, 0), (1, 1)]
    hook = model.model.model.layers[0].register_forward_hook(lambda *_: None)
    assert [ask(), ask()] == [(1, 1), (1, 1)]
    hook.remove()
    with Watch([]):
        assert ask() == (1, 1)
    with eager(model.model):
        assert [ask(), ask()] == [(1, 1), (2, 2)]
    layer = model.model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    assert [ask(), ask()] == [(2, 2), (3, 3)]


def test_a_batch_that_fills_half_a_pass_is_not_recorded(made, model, monkeypatch):
    own = objective(model)
    monkeypatch.setattr("xai_utils.attribution.target.positions", lambda model: 4 * own.length)
    for count, expected in ((2, 1), (3, 1)):
        for _ in range(3):
            own.values(own.inputs.expand(count, -1, -1))
        assert len(made) == expected


def test_only_so_many_recordings_are_kept(made, model, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_RECORDINGS", 2)
    own = objective(model)
    for count in (1, 2, 3, 1):  # the first is forgotten when the third comes
        own.values(own.inputs.expand(count, -1, -1))
    assert not made


def test_a_model_that_cannot_be_recorded_runs_and_says_so_once(model, monkeypatch):
    """Here there is no GPU to record on, which fails as a pass does that waits for one."""
    if torch.cuda.is_available():
        pytest.skip("recording works here")
    monkeypatch.setattr(graphs, "_on_gpu", lambda inputs: True)
    own = objective(model)
    expected = own.values(own.inputs[None])
    with pytest.warns(UserWarning, match="cannot be recorded"):
        again = own.values(own.inputs[None])
    assert torch.equal(own.values(own.inputs[None]), again) and torch.equal(expected, again)
