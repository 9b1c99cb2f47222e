"""The tables of what a model reads, on bytes that can be counted by hand."""

import pandas as pd
import pytest

from tests.test_text import bytes_alone, with_tokenizer
from tests.tiny import tiny_loaded
from xai_utils.study.config import Study
from xai_utils.text.cases import prepare
from xai_utils.text.entry import TextEntry
from xai_utils.text.tokens import cut_warnings, padding_effect, token_table, tokenization_table

TEXT = "Да, no"  # 2 + 1 + 1 + 2 characters, of which the two Cyrillic ones take two bytes each


def read(model, max_tokens=16):
    entry = TextEntry(id="t", text=TEXT, language="ru", group="fact")
    study = Study(name="s", models=(model.entry,), texts=(entry,), prefix="none", max_tokens=max_tokens)
    return prepare(model, entry, study)


@pytest.fixture(scope="module")
def bytewise():
    return with_tokenizer(bytes_alone())


def test_one_row_a_token_with_its_span(bytewise):
    table = token_table([read(bytewise)])
    assert table["position"].tolist() == list(range(8))
    assert table["start"].tolist() == [0, 0, 1, 1, 2, 3, 4, 5]
    assert table["end"].tolist() == [1, 1, 2, 2, 3, 4, 5, 6]
    assert (table["text"] == "t").all()


def test_a_special_token_has_no_span():
    model = tiny_loaded("llama")
    entry = TextEntry(id="t", text="The capital")
    case = prepare(model, entry, Study(name="s", models=(model.entry,), texts=(entry,)))
    table = token_table([case])
    special = table[table["kind"] == "special"]
    assert len(special) == 1 and special["start"].isna().all() and special["end"].isna().all()


def test_tokens_a_word_leave_special_tokens_out(bytewise):
    row = tokenization_table([read(bytewise)]).iloc[0]
    words = len(read(bytewise).words)
    assert (row["tokens"], row["special"], row["characters"]) == (8, 0, 6)
    assert row["tokens_per_word"] == 8 / words
    assert (row["language"], row["group"], row["truncated"], row["padded"]) == ("ru", "fact", 0, 8)


def test_a_text_that_was_cut_is_named_with_what_it_lost(bytewise):
    whole, cut = read(bytewise), read(bytewise, max_tokens=5)
    table = tokenization_table([whole, cut])
    lost = int(table["truncated"].iloc[1])
    assert lost == 8 - len(cut.tokens) > 0
    assert cut_warnings(table) == [
        f"Warning: text 't' was cut for model '{cut.model}': {lost} tokens lost, {len(cut.tokens)} kept."
    ]
    assert cut_warnings(table[:1]) == []


def test_padding_behind_a_causal_model_changes_nothing():
    model = tiny_loaded("llama")
    entry = TextEntry(id="t", text="The capital of France is")
    case = prepare(model, entry, Study(name="s", models=(model.entry,), texts=(entry,)))
    found = padding_effect(model, case, len(case.tokens) + 5)
    assert found["positions"] == found["tokens"] + 5
    assert found["difference"] < 1e-5
    assert pd.notna(found["difference"])
