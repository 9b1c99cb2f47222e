"""Versions of a prompt with some tokens absent, against prompts built by hand."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.absence import baseline_rows
from xai_utils.attribution.masking import Removal, draw_error, players
from xai_utils.attribution.subsets import all_subsets
from xai_utils.attribution.target import Objective
from xai_utils.attribution.versions import evaluate
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.models.visibility import MaskSupport, mask_support
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
    removal = Removal(model, case, target, baseline)
    found = removal.without(all_subsets(4))
    rows, objective = baseline_rows(model, case, baseline, True), Objective(model, case, target)
    for subset, values in zip(all_subsets(4), found, strict=True):
        gone = [p for player, here in zip(removal.players, subset, strict=True) if not here for p in player.positions]
        for draw, row in enumerate(rows):
            embeds = objective.inputs.clone()
            embeds[gone] = row[gone]
            with torch.no_grad():
                assert values[draw] == pytest.approx(objective(embeds[None]).item(), abs=1e-4)


def dropped_by_hand(model, case, target, gone):
    """F of the prompt that simply lacks these positions: token ids, one pass."""
    kept = [token for position, token in enumerate(case.ids) if position not in gone]
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([[*kept, *target.ids]])).logits[0].log_softmax(-1)
    return sum(logits[len(kept) - 1 + step, token].item() for step, token in enumerate(target.ids))


def hidden_by_hand(model, case, target, gone):
    """F under a mask written out for each query and key; the last position gets the mean embedding if it is gone."""
    ids = [*case.ids, *target.ids[:-1]]
    embeds = model.embed(torch.tensor([ids])).clone()
    if len(case.ids) - 1 in gone:
        embeds[0, len(case.ids) - 1] = model.mean_embedding
    allowed = torch.ones(len(ids), len(ids)).tril().bool()
    allowed[:, list(gone)] = False
    mask = torch.zeros(1, 1, len(ids), len(ids)).masked_fill(~allowed, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits = model.model(inputs_embeds=embeds, attention_mask=mask).logits[0].log_softmax(-1)
    return sum(logits[len(case.ids) - 1 + step, token].item() for step, token in enumerate(target.ids))


def against_hand(model, absence, by_hand):
    case, target = tiny_case(model, TEXT)
    assert len(target.ids) > 1
    removal = Removal(model, case, target, absence)
    found = removal.without(all_subsets(4))
    assert found.shape == (16, 1)
    for subset, (value,) in zip(all_subsets(4), found, strict=True):
        gone = {p for player, here in zip(removal.players, subset, strict=True) if not here for p in player.positions}
        assert value == pytest.approx(by_hand(model, case, target, gone), abs=2e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gemma", "gemma2"])
@pytest.mark.parametrize("limit", [1024, 40])
def test_dropped_is_the_prompt_without_these_tokens(architecture, limit, monkeypatch):
    monkeypatch.setattr("xai_utils.attribution.target.positions", lambda model: limit)
    model = tiny_loaded(architecture)
    against_hand(model, "dropped", dropped_by_hand)
    assert mask_support(model) == MaskSupport(holes=True, trees=True)


@pytest.mark.parametrize("limit", [1024, 40])
def test_dropped_needs_no_trees(limit, monkeypatch):
    monkeypatch.setattr("xai_utils.attribution.target.positions", lambda model: limit)
    monkeypatch.setattr("xai_utils.attribution.masking.mask_support", lambda model: MaskSupport(False, False))
    against_hand(tiny_loaded("gpt2"), "dropped", dropped_by_hand)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("limit", [1024, 40])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_is_a_mask_over_keys(architecture, limit, attention, monkeypatch):
    monkeypatch.setattr("xai_utils.attribution.target.positions", lambda model: limit)
    against_hand(tiny_loaded(architecture, attention=attention), "hidden", hidden_by_hand)


@pytest.mark.parametrize("absence", ["hidden", "dropped"])
def test_what_is_hidden_or_dropped_has_no_say(absence):
    """Another token in the place of the one that is gone changes nothing, at the last word too."""
    model = tiny_loaded()
    (one, target), (other, _) = (tiny_case(model, f"The capital of {word}") for word in ("a", "c"))
    assert len(one.ids) == len(other.ids) and one.ids[:-1] == other.ids[:-1] and one.ids[-1] != other.ids[-1]
    gone = np.arange(len(one.ids))[None] == len(one.ids) - 1
    values = [Removal(model, case, target, absence).values(gone).item() for case in (one, other)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_the_sum_of_all_logits_leaves_removed_positions_out():
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT, kind="sum_logits")
    gone = np.zeros((2, len(case.ids)), dtype=bool)
    gone[0, 2:4] = True
    found = Removal(model, case, target, "dropped").values(gone)[:, 0]
    for row, value in zip(gone, found, strict=True):
        with torch.no_grad():
            whole = model.model(input_ids=torch.tensor([np.array(case.ids)[~row].tolist()])).logits.sum().item()
        assert value == pytest.approx(whole, rel=1e-4)


class Deaf(LlamaForCausalLM):
    """Ignores any attention mask, as a recurrent model does."""

    def forward(self, *args, attention_mask=None, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_model_that_ignores_masks_cannot_hide_but_can_drop():
    loaded = tiny_loaded()
    deaf = Deaf(loaded.model.config).eval().requires_grad_(False)
    deaf.load_state_dict(loaded.model.state_dict())
    model = LoadedModel(loaded.entry, deaf, loaded.tokenizer, "deaf")
    assert not mask_support(model).holes
    case, target = tiny_case(model, TEXT)
    with pytest.raises(UserError, match="model 'tiny' .Deaf. does not respect an attention mask.*leave 'hidden' out"):
        Removal(model, case, target, "hidden")
    against_hand(model, "dropped", dropped_by_hand)


def test_a_model_that_refuses_trees_can_still_hide(monkeypatch):
    def refuse(*_):
        raise ValueError("this model takes no mask of four dimensions")

    monkeypatch.setattr("xai_utils.models.visibility._branches", refuse)
    model = tiny_loaded("gpt2")
    assert mask_support(model) == MaskSupport(holes=True, trees=False)
    against_hand(model, "hidden", hidden_by_hand)


@pytest.mark.parametrize("absence", ["hidden", "dropped"])
def test_the_first_position_stays_where_words_are_hidden_or_dropped(absence):
    model = tiny_loaded()
    with pytest.raises(UserError, match=f"absence '{absence}' needs a first position that stays"):
        Removal(model, *tiny_case(model, TEXT), absence, keep_sink=False)
    with pytest.raises(UserError, match=f"absence '{absence}' has no embedding, so no path starts there"):
        baseline_rows(model, tiny_case(model, TEXT)[0], absence, True)


def test_an_unknown_absence_names_the_nearest():
    model = tiny_loaded()
    with pytest.raises(UserError, match="unknown absence 'droped'; did you mean 'dropped'"):
        Removal(model, *tiny_case(model, TEXT), "droped")


def test_the_same_question_is_asked_once():
    model = tiny_loaded()
    case, target = tiny_case(model, TEXT)
    first = Removal(model, case, target)
    values = first.without(all_subsets(4))
    assert first.objective.forwards == 16
    again = Removal(model, case, target)
    assert np.array_equal(again.without(all_subsets(4)), values) and again.objective.forwards == 0
    other = Removal(model, case, target, "zero")
    other.without(all_subsets(4))
    assert other.objective.forwards == 16


def test_another_model_shares_nothing():
    for seed in (0, 1):
        model = tiny_loaded(seed=seed)
        case, target = tiny_case(model, TEXT)
        removal = Removal(model, case, target)
        removal.without(all_subsets(4))
        assert removal.objective.forwards == 16


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
        Removal(model, case, target)


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


@pytest.mark.parametrize(
    ("absence", "subsets", "share"),
    [
        *((absence, all_subsets(8), 0.45) for absence in ("mean", "dropped", "hidden", "sampled")),
        *((absence, 1 - np.eye(8), 0.85) for absence in ("mean", "hidden")),
    ],
)
def test_beginnings_are_computed_once(absence, subsets, share, monkeypatch):
    monkeypatch.setattr("xai_utils.attribution.target.positions", lambda model: 26)
    model = tiny_loaded()
    case, target = tiny_case(model, "The capital of France is a garden.")
    removal = Removal(model, case, target, absence)
    assert removal.objective.reuses_prefix and mask_support(model).trees  # tried here, and not counted
    plain = removal.objective.length * len(subsets) * removal.draws
    assert positions_passed(model, lambda: removal.without(subsets)) < share * plain


@pytest.mark.parametrize("kind", ["logprob", "logit", "contrast"])
@pytest.mark.parametrize("absence", ["eos", "dropped", "hidden"])
@pytest.mark.parametrize("nodes", [512, 16])  # one tree, or many
def test_trees_give_what_prompts_one_by_one_give(kind, absence, nodes, monkeypatch):
    monkeypatch.setattr("xai_utils.attribution.forest.NODES", nodes)
    model = tiny_loaded()
    answer = None if kind == "logit" else " Paris."
    asked = tiny_case(model, TEXT, kind, answer, contrast=" Lyon")
    subsets = all_subsets(4)
    trees = Removal(model, *asked, absence).without(subsets)
    monkeypatch.setattr("xai_utils.attribution.masking.mask_support", lambda model: MaskSupport(True, False))
    other = Removal(tiny_loaded(), *asked, absence)
    np.testing.assert_allclose(trees, other.without(subsets), atol=1e-4)
