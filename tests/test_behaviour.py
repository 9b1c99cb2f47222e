"""Behaviour: an answer's probability, rank and margin against transformers' own loss and generation."""

import dataclasses
import math

import pytest
import torch

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.evaluation.behaviour import CONTINUATION, behaviour


@pytest.fixture(scope="module")
def model():
    return tiny_loaded("llama")


def loss(model, case, ids):
    """Negative log-probability of a continuation by the model's own loss, prompt positions left out."""
    row = torch.tensor([[*case.ids, *ids]])
    labels = row.clone()
    labels[:, : len(case.ids)] = -100
    return float(model.model(input_ids=row, labels=labels).loss) * len(ids)


def test_probability_rank_and_margin(model):
    case, _ = tiny_case(model, "The capital of France is")
    case = dataclasses.replace(case, answer=" a b", answer_ids=(7, 11), contrast=" c", contrast_ids=(13,))
    row = behaviour(model, case).iloc[0]
    assert math.log(row["probability"]) == pytest.approx(-loss(model, case, (7, 11)), abs=1e-4)
    assert row["margin"] == pytest.approx(loss(model, case, (13,)) - loss(model, case, (7, 11)), abs=1e-4)
    logits = model.model(input_ids=torch.tensor([case.ids])).logits[0, -1]
    assert row["rank"] == logits.argsort(descending=True).tolist().index(7) + 1
    assert row["next_text"] == model.tokenizer.decode([int(logits.argmax())])
    assert row["next_probability"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)


def test_the_continuation_is_the_one_that_transformers_generates(model):
    case, _ = tiny_case(model, "The capital of France is")
    ids = torch.tensor([case.ids])
    made = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=CONTINUATION, do_sample=False)
    own = model.tokenizer.decode(made[0, len(case.ids) :], skip_special_tokens=True)
    assert behaviour(model, case).iloc[0]["continuation"] == own


def test_without_an_answer_its_columns_are_missing(model):
    case, _ = tiny_case(model, "The capital of France is")
    case = dataclasses.replace(case, answer=None, answer_ids=(), contrast=None, contrast_ids=())
    row = behaviour(model, case).iloc[0]
    assert row[["probability", "rank", "margin"]].isna().all() and row["next_text"]
