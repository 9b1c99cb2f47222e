"""Passes are counted and stopped in the thread that is watched, and nothing stays behind in the model."""

import threading

import pytest
import torch

from tests.tiny import tiny_case, tiny_loaded, tiny_model
from xai_utils.attribution.integrated_gradients import integrated_gradients
from xai_utils.attribution.target import Objective
from xai_utils.models.batching import positions
from xai_utils.models.watch import Stopped, Watch


def hooks(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_passes_are_sequences(architecture):
    model = tiny_model(architecture)
    reports = []
    with Watch([model], reports.append) as watch, torch.no_grad():
        model(input_ids=torch.ones(3, 5, dtype=torch.long))
        model(input_ids=torch.ones(1, 5, dtype=torch.long))
    assert watch.passes == pytest.approx(4)
    assert reports == pytest.approx([1.5, 3, 3.5, 4])  # two layers: each is half of a pass
    assert hooks(model) == 0


def test_a_method_spends_what_its_certificate_says():
    model = tiny_loaded()
    case, target = tiny_case(model, "The capital of France is")
    assert Objective(model, case, target).reuses_prefix and positions(model)  # tried and measured once a model
    with Watch([model.model]) as watch:
        found = integrated_gradients(model, case, target)
    kept = 1  # the pass whose keys and values the others continue
    assert watch.passes == pytest.approx(found.certificate.evaluations + found.certificate.forwards + kept)


def test_stopped_at_the_next_layer_and_no_hook_left():
    model = tiny_model()
    watch = Watch([model], lambda passes: watch.stop())
    with pytest.raises(Stopped), watch:
        model(input_ids=torch.ones(1, 5, dtype=torch.long))
    assert watch.passes == 0.5
    assert hooks(model) == 0
    model(input_ids=torch.ones(1, 5, dtype=torch.long))


def test_other_threads_go_on():
    model, shapes = tiny_model(), []

    def elsewhere():
        shapes.append(model(input_ids=torch.ones(1, 5, dtype=torch.long)).logits.shape[1])

    with Watch([model]) as watch:
        watch.stop()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert (shapes, watch.passes) == ([5], 0)
