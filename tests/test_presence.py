"""Versions of a prompt with some tokens absent, against prompts built by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.absence import baseline_rows
from xai_utils.attribution.masking import Presence, all_subsets, branching, draw_error, evaluate, players
from xai_utils.attribution.target import Objective
from xai_utils.errors import UserError
from xai_utils.text.cases import units

TEXT = "Столица Франции - Париж"


@pytest.mark.parametrize("keep_sink", [True, False])
def test_players_cover_what_may_be_moved(keep_sink):
    case, _ = tiny_case(tiny_loaded(), TEXT)
    covered = {position for player in players(case, keep_sink) for position in player.positions}
    assert covered == set(range(keep_sink, len(case.tokens)))
    names = [units(case)[player.unit].text for player in players(case, True)]
    assert names == ["Столица", "Франции", "-", "Париж"]


def test_the_first_word_keeps_its_first_token_as_the_sink():
    case, _ = tiny_case(tiny_loaded(), "Ужин во Франции", prefix="none")
    kept, free = players(case, True)[0], players(case, False)[0]
    assert free.positions[0] == 0 and kept.positions == free.positions[1:] != ()


@pytest.mark.parametrize("baseline", ["mean", "zero", "eos", "sampled"])
def test_values_are_those_of_prompts_built_by_hand(baseline):
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT)
    presence = Presence(model, case, target, baseline)
    found = presence.removing(all_subsets(4))
    rows, objective = baseline_rows(model, case, baseline, True), Objective(model, case, target)
    for subset, values in zip(all_subsets(4), found, strict=True):
        gone = [p for player, here in zip(presence.players, subset, strict=True) if not here for p in player.positions]
        for draw, row in enumerate(rows):
            embeds = objective.inputs.clone()
            embeds[gone] = row[gone]
            with torch.no_grad():
                assert values[draw] == pytest.approx(objective(embeds[None]).item(), abs=1e-4)


def test_the_same_question_is_asked_once():
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT)
    first = Presence(model, case, target)
    values = first.removing(all_subsets(4))
    assert first.objective.forwards == 16
    again = Presence(model, case, target)
    assert np.array_equal(again.removing(all_subsets(4)), values) and again.objective.forwards == 0
    other = Presence(model, case, target, "zero")
    other.removing(all_subsets(4))
    assert other.objective.forwards == 16


def test_another_model_shares_nothing():
    for seed in (0, 1):
        model = tiny_loaded(seed=seed)
        case, target = tiny_case(model, TEXT)
        presence = Presence(model, case, target)
        presence.removing(all_subsets(4))
        assert presence.objective.forwards == 16


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gemma2", "gemma3"])
@pytest.mark.filterwarnings("ignore:.*cannot be continued")
def test_batches_and_kept_prefixes_change_nothing(architecture, monkeypatch):
    monkeypatch.setattr("xai_utils.attribution.target.positions", lambda model: 60)
    model = tiny_loaded(architecture)
    case, target = tiny_case(model, TEXT)
    objective = Objective(model, case, target)
    generator = torch.Generator().manual_seed(0)
    since = torch.randint(len(case.tokens), (40,), generator=generator)
    noise = 0.1 * torch.randn(40, *objective.inputs.shape, generator=generator)
    later = torch.arange(len(case.tokens)) >= since[:, None]
    embeds = objective.inputs + noise * later[..., None]
    values, own = evaluate(objective, since.numpy(), lambda rows: embeds[rows])
    with torch.no_grad():
        logits = [model.model(inputs_embeds=row[None]).logits[0, -1] for row in embeds]
        alone = [objective(row[None]).item() for row in embeds]
    assert values == pytest.approx(alone, abs=1e-4)
    assert own.tolist() == [int(row.argmax()) for row in logits]
    assert objective.reuses_prefix == (architecture not in ("gemma2", "gemma3"))


def test_an_unknown_cache_is_said_and_whole_passes_are_made():
    model = tiny_loaded("gemma2")
    case, target = tiny_case(model, TEXT)
    with pytest.warns(UserWarning, match="Gemma2ForCausalLM cannot be continued"):
        assert not Objective(model, case, target).reuses_prefix


def test_one_token_that_is_kept_leaves_nothing_to_ask():
    model = tiny_loaded()
    case, target = tiny_case(model, "a", prefix="none", answer=None)
    with pytest.raises(UserError, match="nothing to explain"):
        Presence(model, case, target)


def test_errors_over_draws():
    scores = np.random.default_rng(0).normal(size=(3, 8))
    assert draw_error(scores) == pytest.approx([row.std(ddof=1) / 8**0.5 for row in scores])
    assert draw_error(scores[:, :1]).tolist() == [0, 0, 0]


def positions_passed(model, work):
    """How many positions go through the first layer while `work` runs."""
    passed = []
    first = model.model.model.layers[0]
    hook = first.register_forward_hook(lambda module, inputs, output: passed.append(inputs[0].shape[:2].numel()))
    try:
        work()
    finally:
        hook.remove()
    return sum(passed)


@pytest.mark.parametrize(("subsets", "share"), [(all_subsets(8), 0.55), (1 - np.eye(8), 0.8)])
def test_beginnings_are_computed_once(subsets, share, monkeypatch):
    monkeypatch.setattr("xai_utils.attribution.target.positions", lambda model: 26)
    model = tiny_loaded()
    case, target = tiny_case(model, "The capital of France is a garden.")
    presence = Presence(model, case, target)
    plain = [presence.objective.length] * len(subsets)
    Presence(model, case, target, "eos").removing(np.ones((1, 8)))  # tries whether prefixes can be reused
    assert positions_passed(model, lambda: presence.removing(subsets)) < share * sum(plain)


@given(
    arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(2, 7)), elements=st.integers(0, 2)), st.integers(0, 3)
)
def test_branching_is_the_cheapest(kinds, answer):
    length = kinds.shape[1] + answer

    def cost(end):
        return len({tuple(row[:end]) for row in kinds.tolist()}) * end + len(kinds) * (length - end)

    assert cost(branching(kinds, length)) == min(cost(end) for end in range(1, kinds.shape[1]))
