"""Training of new rows in a tiny model: losses and gradients against transformers, and resuming after a kill."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tests import killable
from tests.killable import RECIPE, ROWS, data, trainer
from tests.tiny import tiny_model
from xai_utils.adapt import train
from xai_utils.adapt.train import Recipe, Substituted, Worker
from xai_utils.study import ROOT, UserError


@pytest.fixture
def start() -> torch.Tensor:
    return torch.randn(len(ROWS), 32, generator=torch.Generator().manual_seed(3)) / 5


def by_hand(start: torch.Tensor) -> PreTrainedModel:
    """The tiny model with the rows written into its tied embedding."""
    model = tiny_model("llama-tied")
    with torch.no_grad():
        model.get_input_embeddings().weight[ROWS] = start
    return model


def test_surprise_equals_the_plain_model_s(start: torch.Tensor) -> None:
    ids, model = data(0, 6), by_hand(start)
    logits = model(ids).logits[:, :-1]
    expected = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    got = Substituted(tiny_model("llama-tied"), ROWS, start).surprise(ids)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_gradient_is_that_of_both_roles(start: torch.Tensor) -> None:
    ids, model = data(0, 6), by_hand(start)
    weight = model.get_input_embeddings().weight.requires_grad_(True)
    F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    substituted = Substituted(tiny_model("llama-tied"), ROWS, start)
    substituted.surprise(ids).mean().backward()
    torch.testing.assert_close(substituted.rows.grad, weight.grad[ROWS], atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for name, parameter in substituted.named_parameters() if name != "rows")


def test_the_output_role_alone_gives_the_same_loss_and_its_share_of_the_gradient(start: torch.Tensor) -> None:
    ids, substituted = data(0, 6), Substituted(tiny_model("llama-tied"), ROWS, start)
    features = [feature.flatten(0, 1) for feature in train.output_features(substituted, ids)]
    got = train.output_surprise(substituted.rows, *features)
    torch.testing.assert_close(got, substituted.surprise(ids).flatten().detach(), atol=1e-5, rtol=0)
    got.mean().backward()
    model = by_hand(start)
    states = model.model(ids).last_hidden_state.detach()[:, :-1].flatten(0, 1)
    head = model.get_input_embeddings().weight.detach().clone().requires_grad_(True)
    F.cross_entropy(states @ head.T, ids[:, 1:].flatten()).backward()
    torch.testing.assert_close(substituted.rows.grad, head.grad[ROWS], atol=1e-6, rtol=1e-4)


def test_fitting_the_output_lowers_the_loss_and_repeats(start: torch.Tensor) -> None:
    ids, results = data(0, 8), []
    for _ in range(2):
        substituted = Substituted(tiny_model("llama-tied"), ROWS, start)
        before = substituted.surprise(ids).mean()
        train.fit_output(substituted, ids, replace(RECIPE, fit_epochs=5), Worker())
        results.append(substituted.rows.detach())
        assert substituted.surprise(ids).mean() < before
    assert torch.equal(*results)


def test_an_untied_model_is_refused(start: torch.Tensor) -> None:
    with pytest.raises(UserError, match="tied"):
        Substituted(tiny_model("llama"), ROWS, start)


def test_the_rate_climbs_stays_and_falls() -> None:
    recipe = Recipe(steps=100, warm_up=10, fall=0.3, rate=2.0)
    rates = [train.learning_rate(step, recipe) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:71] == pytest.approx([2.0] * 61)
    assert rates[70:] == pytest.approx([2.0 * (100 - step) / 30 for step in range(70, 100)])


def test_every_window_comes_once_before_any_comes_again() -> None:
    windows = torch.arange(10)[:, None]
    recipe = replace(RECIPE, sequences=4)
    seen = torch.cat([train.batch(windows, step, recipe) for step in range(5)]).flatten().tolist()
    assert seen == [*range(10), *range(10)]


def run(folder: Path, workers: int = 1) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.killable", str(folder), str(workers)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def test_killed_anywhere_it_ends_in_the_same_rows(tmp_path: Path) -> None:
    assert run(tmp_path / "whole").wait() == 0
    random_, kills, begun = random.Random(0), 0, tmp_path / "killed" / "rows.safetensors"
    while kills < 3:
        process, before = run(tmp_path / "killed"), begun.stat().st_mtime_ns if begun.exists() else 0
        while process.poll() is None and (not begun.exists() or begun.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(random_.uniform(0, 0.02))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 1
    assert run(tmp_path / "killed").wait() == 0
    whole, killed = (load_file(tmp_path / name / "rows.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    _, log = train.finished_rows(tmp_path / "killed")
    _, expected = train.finished_rows(tmp_path / "whole")
    assert [(row["step"], row["loss"]) for row in log] == [(row["step"], row["loss"]) for row in expected]


def test_two_workers_do_what_one_does(tmp_path: Path) -> None:
    assert run(tmp_path / "two", workers=2).wait() == 0
    trainer(tmp_path / "one").run(data(1, 100), data(2, RECIPE.fit_sequences))
    one, _ = train.finished_rows(tmp_path / "one")
    two, _ = train.finished_rows(tmp_path / "two")
    assert (one - two).abs().max() < 1e-3 * (one - killable.trainer(tmp_path).model.rows).abs().max()


def test_a_run_may_be_prolonged_before_its_rate_falls(tmp_path: Path) -> None:
    planned, longer = replace(RECIPE, steps=60), replace(RECIPE, steps=80)
    begun = trainer(tmp_path / "prolonged", recipe=planned)
    begun.folder.mkdir()
    for _ in range(12):
        begun._advance(data(1, 400))
    begun._note(0.0, 0.0)
    trainer(tmp_path / "prolonged", recipe=longer).run(data(1, 400), data(2, 0))
    trainer(tmp_path / "whole", recipe=longer).run(data(1, 400), data(2, 0))
    assert torch.equal(*(train.finished_rows(tmp_path / name)[0] for name in ("prolonged", "whole")))


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run(data(1, 100), data(2, 8))
    with pytest.raises(UserError, match="other settings"):
        trainer(tmp_path, recipe=replace(RECIPE, rate=1.0)).run(data(1, 100), data(2, 8))
    with pytest.raises(UserError, match="other settings"):
        trainer(tmp_path, recipe=replace(RECIPE, steps=50)).run(data(1, 100), data(2, 8))
