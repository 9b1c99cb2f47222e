"""Targets against full logits worked out by hand: no `logits_to_keep`, no embeddings, no batches."""

import pytest
import torch
from captum.attr import IntegratedGradients

from tests.tiny import tiny_loaded
from xai_utils.attribution.target import UNITS, Objective, make_target, next_token
from xai_utils.errors import UserError
from xai_utils.study.config import Study
from xai_utils.text.cases import pad, prepare
from xai_utils.text.entry import TextEntry

ARCHITECTURES = ["llama", "gpt2", "qwen2", "gemma2"]
TEXT = "The capital of France is"


def case_of(model, text=TEXT, answer=" Paris.", contrast=" Moscow.", **settings):
    entry = TextEntry(id="t", text=text, answer=answer, contrast=contrast)
    return prepare(model, entry, Study(name="s", models=(model.entry,), texts=(entry,), **settings))


def logits_of(model, ids):
    """All logits [position, vocabulary] of one sequence of token ids, padded on the left by nothing."""
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([ids])).logits[0]


def teacher_forced(model, prompt, answer, chosen=torch.log_softmax):
    """The sum over the answer's tokens, each read behind all that stands before it, one whole pass a token."""
    total = 0.0
    for step, token in enumerate(answer):
        total += float(chosen(logits_of(model, [*prompt, *answer[:step]])[-1], -1)[token])
    return total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_log_probability_is_the_teacher_forced_sum(architecture):
    model = tiny_loaded(architecture)
    case = case_of(model)
    target = make_target(model, case, "logprob")
    assert len(target.ids) > 1 and target.text == " Paris." and target.unit == "nats"
    objective = Objective(model, case, target)
    expected = teacher_forced(model, case.ids, target.ids)
    assert float(objective.values(objective.inputs[None])) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_logit_is_the_one_of_the_next_position(architecture):
    model = tiny_loaded(architecture)
    case = case_of(model, answer=None, contrast=None)
    target = make_target(model, case, "logit")
    expected = logits_of(model, case.ids)[-1]
    assert target.ids == (int(expected.argmax()),) and target.ids[0] == next_token(model, case)
    objective = Objective(model, case, target)
    assert float(objective.values(objective.inputs[None])) == pytest.approx(float(expected.max()), abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_gets_its_rows_in_one_piece(architecture):
    """A strided input makes torch read the head's matrix once for each sequence of a batch."""
    model = tiny_loaded(architecture)
    case = case_of(model)
    objective = Objective(model, case, make_target(model, case, "logprob"))
    seen = []
    hook = model.model.get_output_embeddings().register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    objective.values_and_gradients(objective.inputs.expand(3, -1, -1))
    objective.outcomes(objective.inputs[2:].expand(3, -1, -1), since=2)
    hook.remove()
    rows = [hidden for hidden in seen if len(hidden) == 3]
    assert len(rows) == 2 and all(hidden.shape[1] == len(case.answer_ids) > 1 for hidden in rows)
    assert all(hidden.is_contiguous() for hidden in rows)


def test_a_contrast_of_single_tokens_is_a_difference_of_logits():
    model = tiny_loaded("llama")
    case = case_of(model, answer="P", contrast="M")
    target = make_target(model, case, "contrast")
    assert len(target.ids) == len(target.contrast_ids) == 1 and target.text == "P / M"
    logits = logits_of(model, case.ids)[-1]
    objective = Objective(model, case, target)
    expected = float(logits[target.ids[0]] - logits[target.contrast_ids[0]])
    assert float(objective.values(objective.inputs[None])) == pytest.approx(expected, abs=1e-4)


def test_a_contrast_of_strings_is_a_difference_of_log_probabilities():
    model = tiny_loaded("gpt2")
    case = case_of(model, contrast=" Moscow and the garden.")
    target = make_target(model, case, "contrast")
    assert len(target.ids) != len(target.contrast_ids)
    expected = teacher_forced(model, case.ids, target.ids) - teacher_forced(model, case.ids, target.contrast_ids)
    objective = Objective(model, case, target)
    assert float(objective.values(objective.inputs[None])) == pytest.approx(expected, abs=1e-4)


def test_the_sum_of_all_logits_is_that_of_every_position():
    model = tiny_loaded("qwen2")
    case = case_of(model)
    objective = Objective(model, case, make_target(model, case, "sum_logits"))
    expected = float(logits_of(model, case.ids).double().sum())
    assert float(objective.values(objective.inputs[None])) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", UNITS)
def test_gradients_are_slopes(kind):
    """Central differences in float64 along random directions."""
    model = tiny_loaded("gpt2", dtype=torch.float64)  # RMSNorm works in float32 whatever it is given
    answer = None if kind == "logit" else " Paris."
    case = case_of(model, answer=answer, contrast=" Moscow." if answer else None)
    objective = Objective(model, case, make_target(model, case, kind))
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn((5, *objective.inputs.shape), generator=generator, dtype=torch.float64)
    _, gradients = objective.values_and_gradients(objective.inputs[None])
    slopes = (gradients * directions).sum((1, 2))
    step = 1e-6
    ahead, behind = (objective.values(objective.inputs + sign * step * directions) for sign in (1, -1))
    assert torch.allclose(slopes, (ahead - behind) / (2 * step), rtol=1e-3, atol=1e-3 if kind == "sum_logits" else 1e-5)


@pytest.mark.parametrize("kind", ["logprob", "contrast", "sum_logits"])
def test_chunks_of_a_batch_give_what_each_row_gives(kind, monkeypatch):
    model = tiny_loaded("llama")
    case = case_of(model)
    objective = Objective(model, case, make_target(model, case, kind))
    rows = objective.inputs + 0.1 * torch.randn(7, *objective.inputs.shape, generator=torch.Generator().manual_seed(1))
    alone = torch.stack([objective(row[None])[0] for row in rows])
    monkeypatch.setattr("xai_utils.attribution.target.positions", lambda model: 3 * (len(case.tokens) + 8))
    assert 1 < objective.batch_size() < 7
    assert torch.allclose(objective.values(rows), alone, rtol=1e-4, atol=1e-4)
    assert torch.allclose(objective.values_and_gradients(rows)[0], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["logprob", "contrast"])
def test_a_pass_behind_what_is_unchanged_gives_what_whole_passes_give(architecture, kind):
    model = tiny_loaded(architecture)
    case = case_of(model)
    objective = Objective(model, case, make_target(model, case, kind))
    since = len(case.tokens) // 2
    noise = torch.randn(5, *objective.inputs.shape, generator=torch.Generator().manual_seed(1))
    noise[:, :since] = 0
    rows = objective.inputs + 0.1 * noise
    assert objective.unchanged(rows[0]) == since
    values, gradients = objective.values_and_gradients(rows)
    behind, slopes = objective.values_and_gradients(rows[:, since:], since)
    assert torch.allclose(behind, values, atol=1e-4)
    assert torch.allclose(slopes, gradients[:, since:], atol=1e-4 * float(gradients.abs().max()))
    assert torch.allclose(objective.values(rows[:, since:], since), values, atol=1e-4)


def test_a_short_beginning_and_a_target_of_all_logits_take_whole_passes():
    model = tiny_loaded("llama")
    case = case_of(model)
    start = Objective(model, case, make_target(model, case)).inputs.clone()
    start[len(start) // 2 :] = 0
    assert Objective(model, case, make_target(model, case)).unchanged(start) == len(start) // 2
    assert Objective(model, case, make_target(model, case, "sum_logits")).unchanged(start) == 0
    long = case_of(model, text="one two three four five six seven eight nine")
    objective = Objective(model, long, make_target(model, long))
    start = torch.zeros_like(objective.inputs)
    start[0] = objective.inputs[0]
    assert len(start) > 8
    assert objective.unchanged(start) == 0


def test_passes_are_counted():
    model = tiny_loaded("llama")
    case = case_of(model)
    objective = Objective(model, case, make_target(model, case))
    objective.values(objective.inputs.expand(4, -1, -1))
    objective.values_and_gradients(objective.inputs.expand(5, -1, -1))
    assert objective.forwards == 9


def test_padding_changes_no_attribution():
    """The padded side goes through the model itself with its mask, every position moved, by captum's own rule."""
    model = tiny_loaded("llama")
    case = case_of(model, answer="P", contrast=None)
    target = make_target(model, case)
    objective = Objective(model, case, target)
    ids, mask = (torch.tensor([row]) for row in pad(case, 48, 2))

    def padded(embeds):
        logits = model.model(inputs_embeds=embeds, attention_mask=mask.expand(len(embeds), -1)).logits
        return logits[:, len(case.tokens) - 1].log_softmax(-1)[:, target.ids[0]]

    start = 0.2 * torch.ones_like(model.embed(ids))
    whole = IntegratedGradients(padded).attribute(model.embed(ids), start, n_steps=30)[0].sum(-1)
    short = IntegratedGradients(objective).attribute(objective.inputs[None], start[:, : len(case.tokens)], n_steps=30)
    assert torch.allclose(whole[: len(case.tokens)], short[0].sum(-1), atol=1e-4)
    assert whole[len(case.tokens) :].abs().max() == 0


def test_half_precision_is_read_in_single():
    """The sum over an answer is taken in float32: exactly that of the logits as the model hands them out."""
    model = tiny_loaded("llama", dtype=torch.bfloat16)
    case = case_of(model, answer="P")
    target = make_target(model, case)
    objective = Objective(model, case, target)
    value = objective.values(objective.inputs[None])
    assert value.dtype == torch.float32
    expected = float(logits_of(model, case.ids)[-1].float().log_softmax(-1)[target.ids[0]])
    assert float(value) == pytest.approx(expected, abs=0.05)


def test_a_target_without_an_answer_is_the_model_s_own_next_token():
    model = tiny_loaded("gpt2")
    case = case_of(model, answer=None, contrast=None)
    target = make_target(model, case)
    own = int(logits_of(model, case.ids)[-1].argmax())
    assert target.ids == (own,) and target.text == model.tokenizer.decode([own])


def test_a_logit_of_several_tokens_is_an_error_that_shows_them():
    model = tiny_loaded("llama")
    pieces = model.tokenizer.convert_ids_to_tokens(model.tokenizer(" Paris.")["input_ids"])
    with pytest.raises(UserError, match=r"is 3 tokens for model 'tiny'.*use target: logprob") as error:
        make_target(model, case_of(model), "logit")
    assert " | ".join(pieces) in str(error.value)


def test_a_contrast_with_nothing_is_an_error():
    model = tiny_loaded("llama")
    with pytest.raises(UserError, match="needs a `contrast` text"):
        make_target(model, case_of(model, contrast=None), "contrast")


def test_an_unknown_kind_is_an_error_that_lists_them():
    model = tiny_loaded("llama")
    with pytest.raises(
        UserError, match="unknown target 'logits'; expected one of logprob, logit, contrast, sum_logits"
    ):
        make_target(model, case_of(model), "logits")


def test_a_gradient_that_is_not_finite_is_an_error():
    model = tiny_loaded("llama")
    case = case_of(model)
    objective = Objective(model, case, make_target(model, case))
    broken = objective.inputs[None].clone()
    broken[0, 1] = torch.inf
    with pytest.raises(UserError, match="the gradient of model 'tiny' is not finite for target ' Paris.'"):
        objective.values_and_gradients(broken)
