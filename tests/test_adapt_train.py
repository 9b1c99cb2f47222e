"""Training of new rows in a tiny model: losses and gradients against transformers, and resuming after a kill."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from recipes.token_substitution import train
from recipes.token_substitution.pipeline import free_port
from recipes.token_substitution.substituted import Features, Substituted, output_surprise
from recipes.token_substitution.train import Memory, Recipe, Worker
from tests import killable, killing
from tests.killable import RECIPE, ROWS, data, trainer
from tests.tiny import tiny_model
from xai_utils.errors import UserError


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
    fixed = Features(*(feature.detach() for feature in substituted.features(ids)))
    output_surprise(substituted.rows, fixed).mean().backward()
    model = by_hand(start)
    states = model.model(ids).last_hidden_state.detach()[:, :-1].flatten(0, 1)
    head = model.get_input_embeddings().weight.detach().clone().requires_grad_(True)
    F.cross_entropy(states @ head.T, ids[:, 1:].flatten()).backward()
    torch.testing.assert_close(substituted.rows.grad, head.grad[ROWS], atol=1e-6, rtol=1e-4)


def steps_of(recipe: Recipe, worker: Worker, number: int) -> tuple[Memory, list[torch.Tensor]]:
    """A memory after `number` steps whose states are the numbers of sequence, step and position."""
    memory, seen = Memory(recipe, worker), []
    for step in range(number):
        whole = torch.stack(torch.meshgrid(*map(torch.arange, (4, 1, 6)), indexing="ij"), -1)[:, 0].float()
        whole[..., 1] = step
        own = whole[worker.rank :: worker.workers]
        memory.keep(step, Features(own, own[..., 0].long(), own[..., 1], own[..., 2]))
        seen += [part.state for part in memory.drawn(step)]
    return memory, seen


def test_replay_draws_evenly_from_the_last_steps_alone() -> None:
    recipe = replace(RECIPE, remembered=5, replays=1, replayed=6000)
    _, seen = steps_of(recipe, Worker(), 12)
    assert [set(states[:, 1].tolist()) for states in (seen[0], seen[2], seen[11])] == [
        {0},
        {0, 1, 2},
        {7, 8, 9, 10, 11},
    ]
    _, counts = seen[11].unique(dim=0, return_counts=True)
    assert len(counts) == 4 * 5 * 6 and counts.min() > 20 and counts.max() < 85  # 50 expected, deviation 7


def test_workers_draw_between_them_what_one_draws() -> None:
    recipe = replace(RECIPE, remembered=5, replays=2, replayed=50)
    _, whole = steps_of(recipe, Worker(), 7)
    shares = [steps_of(recipe, Worker(rank, 2), 7)[1] for rank in (0, 1)]
    for together, *apart in zip(whole, *shares, strict=True):
        expected, got = (sorted(map(tuple, states.tolist())) for states in (together, torch.cat(apart)))
        assert expected == got


def test_replay_trains_the_output_role_further(start: torch.Tensor, tmp_path: Path) -> None:
    text, left = data(1, 1).repeat(400, 1), {}
    for replays in (0, 2):
        run_ = trainer(tmp_path / str(replays), recipe=replace(RECIPE, replays=replays, steps=10))
        run_.run(text)
        left[replays] = run_.model.surprise(text[:1]).mean().item()
    assert left[2] < left[0]


def test_probability_is_shared_among_the_text_s_tokens_and_the_new_ones(start: torch.Tensor) -> None:
    ids, model = data(0, 6) % 100, by_hand(start)
    logits = model(ids).logits[:, :-1]
    among = torch.cat([ids.unique(), torch.tensor(ROWS)])
    left_out = torch.full((512,), -torch.inf).index_fill(0, among, 0.0)
    expected = F.cross_entropy((logits + left_out).transpose(1, 2), ids[:, 1:], reduction="none")
    got = Substituted(tiny_model("llama-tied"), ROWS, start, among=ids.unique()).surprise(ids)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


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


def test_killed_anywhere_it_ends_in_the_same_rows(tmp_path: Path) -> None:
    killing.finished(killable.alone, tmp_path / "whole")
    assert killing.killed(killable.alone, tmp_path / "killed", file=tmp_path / "killed" / "rows.pt", times=4) >= 1
    killing.finished(killable.alone, tmp_path / "killed")
    whole, killed = (train.read_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    told = [{name: checkpoint.pop(name) for name in ("recipe", "machine", "data")} for checkpoint in (whole, killed)]
    assert told[0] == told[1] and told[0]["data"]
    for checkpoint in (whole, killed):
        checkpoint["log"] = [(row["step"], row["loss"]) for row in checkpoint["log"]]
    torch.testing.assert_close(killed, whole, rtol=0, atol=0)


def test_two_workers_gather_what_one_sees(tmp_path: Path) -> None:
    port = free_port()
    both = [killing.started(killable.work, rank, 2, port, tmp_path / "two", 1) for rank in (0, 1)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    killing.finished(killable.work, 0, 1, 0, tmp_path / "one", 1)
    one, two = (train.read_checkpoint(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(two["memory"], one["memory"], atol=1e-5, rtol=1e-4)
    (_, moments_one), (_, moments_two) = (state["optimiser"]["state"][0]["GG"] for state in (one, two))
    largest = moments_one.abs().max()  # sums in another order round otherwise; half of the data would move them by half
    assert (moments_two - moments_one).abs().max() < 0.01 * largest and largest > 1e-5


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run(data(1, 100))
    with pytest.raises(UserError, match=r"other settings \(rate\)"):
        trainer(tmp_path, recipe=replace(RECIPE, rate=1.0)).run(data(1, 100))
    with pytest.raises(UserError, match=r"other settings \(text\)"):
        trainer(tmp_path).run(data(2, 100))


def test_tokens_without_a_share_are_refused_before_training(start: torch.Tensor, tmp_path: Path) -> None:
    known = torch.arange(100)
    model = Substituted(tiny_model("llama-tied"), ROWS, start, among=known)
    text = data(1, 100) % 100
    text[3, 5], text[4, 2] = 417, ROWS[7]
    with pytest.raises(UserError, match=r"holds 1 tokens .* \(417 the first\)"):
        train.Trainer(model, RECIPE, tmp_path / "run").run(text)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("together", [1, 3])
def test_a_step_in_parts_is_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    seen = {}
    for parts in (train.TOGETHER, together):
        monkeypatch.setattr(train, "TOGETHER", parts)
        run_ = trainer(tmp_path / str(parts), recipe=replace(RECIPE, steps=1, replays=0))
        run_.run(data(1, 100))
        seen[parts] = run_.model.rows.grad, run_.log[0]["loss"]
    (whole, loss), (summed, same) = seen.values()
    torch.testing.assert_close(summed, whole, atol=1e-7, rtol=1e-5)
    assert same == pytest.approx(loss, rel=1e-6) and whole.abs().max() > 1e-5
