"""Beginnings, bits per character and continuations, each computed another way on a tiny model."""

import math

import pandas as pd
import pytest
import torch

from recipes.token_substitution import initialise, measure, prepare, vocabulary
from recipes.token_substitution.corpus import Corpus, Text
from recipes.token_substitution.substituted import Substituted
from tests.tiny import CORPUS, tiny_loaded, tiny_model, tiny_tokenizer


def texts() -> list[Text]:
    long = " ".join(CORPUS * 2)
    return [
        Text("tales", "small", "a", "ru", "held-out", long),
        Text("manuals", "small", "b", "ru", "held-out", long[200:820]),
        Text("manuals", "small", "c", "en", "held-out", "Water boils at one hundred degrees."),
    ]


def nats_one_by_one(text: str) -> float:
    """The surprise of a text's windows, one forward pass for each window and no padding."""
    model, tokenizer, total = tiny_model(), tiny_tokenizer(), 0.0
    for start in range(0, len(text), measure.WINDOW):
        ids = [0, *tokenizer(text[start : start + measure.WINDOW])["input_ids"]]
        chances = model(torch.tensor([ids])).logits[0].detach().double().log_softmax(-1)
        total -= sum(float(chances[place, ids[place + 1]]) for place in range(len(ids) - 1))
    return total


def test_readings_equal_windows_read_one_by_one() -> None:
    readings = measure.read(measure.surprise_of(tiny_model()), tiny_tokenizer(), texts(), 0)
    for text, reading in zip(texts(), readings, strict=True):
        assert reading.nats == pytest.approx(nats_one_by_one(text.text), rel=1e-5)
        assert (reading.characters, reading.words) == (len(text.text), len(text.text.split()))


def test_the_summary_adds_up_before_it_divides() -> None:
    readings = [
        measure.Reading("tales", "ru", 10.0, 4, 20, 5),
        measure.Reading("manuals", "ru", 2.0, 2, 4, 1),
        measure.Reading("manuals", "en", 3.0, 3, 9, 2),
    ]
    table = measure.summary(readings, "m").set_index(["language", "kind"])
    assert table.loc[("ru", "all"), "bits_per_character"] == pytest.approx(12 / math.log(2) / 24)
    assert table.loc[("ru", "manuals"), "bits_per_character"] == pytest.approx(2 / math.log(2) / 4)
    assert table.loc[("ru", "all"), "tokens_per_word"] == 1.0
    assert table.loc[("en", "all"), "tokens"] == 3


def test_shares_are_of_the_base_s_own_row() -> None:
    base = measure.summary([measure.Reading("tales", "ru", 10.0, 40, 20, 5)], "base")
    other = measure.summary([measure.Reading("tales", "ru", 7.0, 10, 20, 5)], "trained")
    table = measure.against_base(pd.concat([base, other], ignore_index=True)).set_index(["model", "kind"])
    assert table.loc[("trained", "all"), "bits_per_character_of_base"] == pytest.approx(0.7)
    assert table.loc[("trained", "tales"), "tokens_of_base"] == pytest.approx(0.25)
    assert (table.loc["base", ["tokens_of_base", "bits_per_character_of_base"]] == 1).all(axis=None)


def test_continuations_are_the_likeliest_tokens() -> None:
    loaded = tiny_loaded("llama")
    rows = measure.continuations(loaded.model, loaded.tokenizer, 0, characters=10**6)
    ids = [0, *loaded.tokenizer(measure.PROMPTS[0][1])["input_ids"]]
    length = len(ids)
    for _ in range(96):
        logits = loaded.model(torch.tensor([ids])).logits[0, -1]
        seen = torch.tensor(sorted(set(ids)))
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / 1.2, logits[seen] * 1.2)
        ids.append(int(logits.argmax()))
        if ids[-1] == loaded.model.generation_config.eos_token_id:
            break
    expected = loaded.tokenizer.decode(ids[length:], skip_special_tokens=True)
    assert rows[0]["continuation"] == " ".join(expected.split())
    assert [(row["language"], row["prompt"]) for row in rows] == list(measure.PROMPTS)


# ---- beginnings


def test_the_mean_of_pieces_by_hand() -> None:
    base = tiny_tokenizer()
    embedding = tiny_model().get_input_embeddings().weight.detach()
    token = vocabulary.spelled(" Солнечной системе")
    ids = base(" Солнечной системе")["input_ids"]
    expected = sum(embedding[place] for place in ids) / len(ids)
    torch.testing.assert_close(initialise.mean_rows(embedding, base, [token])[0], expected)


def test_initial_rows_follow_the_order_of_the_ids() -> None:
    base, embedding = tiny_tokenizer(), tiny_model().get_input_embeddings().weight.detach()
    merges = vocabulary.train_russian([text for text in CORPUS if not text.isascii()], rows=150)
    counts = vocabulary.count_tokens(base, [text for text in CORPUS if text.isascii()])
    made = vocabulary.substitute(base, merges, counts)
    got = initialise.initial_rows(embedding, base, made.tokenizer, list(made.rows))
    for place, row in enumerate(made.rows):
        text = made.tokenizer.decode([row], clean_up_tokenization_spaces=False)
        torch.testing.assert_close(got[place], embedding[base(text)["input_ids"]].mean(0))


def test_random_rows_have_the_spread_of_the_base_s_and_repeat() -> None:
    embedding = torch.randn(1000, 64) * 3 + 1
    rows = initialise.random_rows(embedding, 2000, seed=4)
    assert rows.mean().item() == pytest.approx(1, abs=0.05) and rows.std().item() == pytest.approx(3, rel=0.05)
    assert torch.equal(rows, initialise.random_rows(embedding, 2000, seed=4))
    assert not torch.equal(rows, initialise.random_rows(embedding, 2000, seed=5))


@pytest.mark.parametrize("number", [2, 3, 17, 4096])
def test_no_shuffled_row_stays(number: int) -> None:
    rows = torch.arange(number)[:, None].float()
    shuffled = initialise.shuffled_rows(rows)
    assert sorted(shuffled[:, 0].tolist()) == rows[:, 0].tolist()
    assert not (shuffled == rows).any()
    assert torch.equal(shuffled, initialise.shuffled_rows(rows))


# ---- windows of training


def test_windows_take_the_kinds_in_turn() -> None:
    tokenizer, parts = tiny_tokenizer(), []
    words = {("ru", "a"): "кошка", ("ru", "b"): "собака", ("en", "a"): "planets"}
    for (language, kind), word in words.items():
        parts += [Text(kind, "small", f"{number}", language, "train", f" {word}" * 40) for number in range(3)]
    windows = prepare.training_windows(Corpus(tuple(parts), ()), tokenizer, 40, 12, 0, seed=1, english_share=0.25)
    assert windows.shape == (40, 12)
    said = [tokenizer.decode(window, skip_special_tokens=True) for window in windows]
    counts = {word: sum(word[1:-1] in text for text in said) for word in words.values()}
    assert counts == {"кошка": 15, "собака": 15, "planets": 10}
    assert (windows[:, 0] == 0).all()
    again = prepare.training_windows(Corpus(tuple(parts), ()), tokenizer, 20, 12, 0, seed=1, english_share=0.25)
    assert torch.equal(windows[:20], again)


def test_a_substituted_model_reads_as_the_plain_one() -> None:
    model = tiny_model("llama-tied")
    rows = list(range(400, 420))
    start = model.get_input_embeddings().weight.detach()[rows].clone()
    plain = measure.read(measure.surprise_of(tiny_model("llama-tied")), tiny_tokenizer(), texts(), 0)
    other = measure.read(Substituted(model, rows, start).surprise, tiny_tokenizer(), texts(), 0)
    assert [reading.nats for reading in other] == pytest.approx([reading.nats for reading in plain], rel=1e-5)
