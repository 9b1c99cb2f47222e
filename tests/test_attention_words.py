"""Attention between words against loops; divergences against scipy; floors that hold by construction."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from tests.test_attention import case_of
from tests.tiny import tiny_loaded
from xai_utils.attention import layers
from xai_utils.attention.words import (
    attention_change,
    divergence,
    most_changed,
    shared_words,
    word_attention,
)
from xai_utils.errors import UserError
from xai_utils.text.cases import units, word_weights

TEXT = "Сколько планет в Солнечной системе?"


def rows_of(shape, seed=0):
    rows = np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.3), size=shape[:-1])
    return rows


def test_words_average_queries_and_sum_keys():
    model = tiny_loaded("llama")
    case = case_of(model, TEXT)
    found = word_attention(model, case)
    assert found.words == ("Сколько", "планет", "в", "Солнечной", "системе", "?")
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-6)
    weights, shares, rows = layers.weights(model, case).double().numpy(), word_weights(case), units(case)
    word = {row.text: column for column, row in enumerate(rows)}
    query, key = word["Солнечной"], word["планет"]
    expected = 0.0
    for i in range(len(case.tokens)):
        for j in range(len(case.tokens)):
            expected += shares[i, query] * weights[1, 2, i, j] * shares[j, key]
    assert found.weights[1, 2, 3, 2] == pytest.approx(expected / shares[:, query].sum(), rel=1e-6)
    start = [i for i in range(len(case.tokens)) if shares[i, query]]
    assert found.weights[1, 2, 3, 0] == pytest.approx(weights[1, 2, start, 0].mean(), rel=1e-6)
    assert found.columns == ("‹start›", *found.words, "‹other›") and (found.weights[..., -1] == 0).all()


def test_white_space_and_chat_end_are_gathered_in_other():
    model = tiny_loaded("llama")
    case = case_of(model, "The cat \n\n\n sat on the mat")
    found = word_attention(model, case)
    loose = [i for i, unit in enumerate(units(case)) if not unit.is_word and unit.tokens[0] > 0]
    assert loose and found.weights[..., -1].max() > 0
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-6)


def test_divergence_is_scipys_distance_squared():
    first, second = rows_of((2, 3, 5, 7)), rows_of((2, 3, 5, 7), seed=1)
    expected = (jensenshannon(first, second, axis=-1) ** 2).mean(-1)
    np.testing.assert_allclose(divergence(first, second), expected, rtol=1e-9)
    assert (divergence(first, first + 1e-17) >= 0).all() and divergence(first, second).max() < math.log(2)


def test_two_tokenizations_of_one_text_are_comparable():
    base = word_attention(tiny_loaded("llama"), case_of(tiny_loaded("llama"), TEXT))
    other_model = tiny_loaded("llama", seed=1, label="other", bos=True)
    other = word_attention(other_model, case_of(other_model, TEXT))
    change = attention_change(base, other)
    assert len(change) == 8 and (change["divergence"] > 0).all()
    assert change["floor"].isna().all() and change["beyond_floor"].isna().all()
    top = most_changed(change, 3)
    assert top["divergence"].tolist() == sorted(change["divergence"], reverse=True)[:3]
    assert list(change.columns[:4]) == ["study", "text", "base", "other"]


def test_identical_models_change_nothing_and_pass_no_floor():
    model = tiny_loaded("llama")
    text = word_attention(model, case_of(model, TEXT))
    again = word_attention(model, case_of(model, "Каково число планет в Солнечной системе?"))
    change = attention_change(text, text, [(again, again)])
    assert (change["divergence"] == 0).all() and (change["shared"] == 0).all()
    assert (change["floor"] > 0).all() and not change["beyond_floor"].any()


def test_a_text_reworded_to_itself_has_no_floor_and_shares_all_words():
    base_model, other_model = tiny_loaded("llama"), tiny_loaded("llama", seed=1, label="other")
    base, other = (word_attention(model, case_of(model, TEXT)) for model in (base_model, other_model))
    change = attention_change(base, other, [(base, other)])
    np.testing.assert_allclose(change["shared"], change["divergence"])
    assert (change["floor"] == 0).all() and change["beyond_floor"].all()


def test_floor_gathers_words_that_are_not_shared():
    base_model, other_model = tiny_loaded("llama"), tiny_loaded("llama", seed=1, label="other")
    texts = (TEXT, "Каково число планет в Солнечной системе?")
    base, again = (word_attention(base_model, case_of(base_model, text)) for text in texts)
    other, other_again = (word_attention(other_model, case_of(other_model, text)) for text in texts)
    change = attention_change(base, other, [(again, other_again)])

    def row(attention, word, dropped):
        weights = attention.weights[1, 3, word]
        kept = [value for column, value in enumerate(weights[:-1]) if column - 1 not in dropped]
        return [*kept, weights[-1] + sum(weights[word + 1] for word in dropped)]

    def mean(first, second, pairs, drops):
        return np.mean([jensenshannon(row(first, i, drops[0]), row(second, j, drops[1])) ** 2 for i, j in pairs])

    own, pairs = range(1, 6), list(zip(range(1, 6), range(2, 7), strict=True))
    floors = [mean(*both, pairs, ([0], [0, 1])) for both in ((base, again), (other, other_again))]
    picked = change[(change["layer"] == 1) & (change["head"] == 3)].iloc[0]
    assert picked["floor"] == pytest.approx(max(floors))
    assert picked["shared"] == pytest.approx(mean(base, other, list(zip(own, own, strict=True)), ([0], [0])))
    assert picked["beyond_floor"] == (picked["shared"] > picked["floor"])
    assert (change["shared"] <= change["divergence"] * 6 / 5 + 1e-12).all()  # five of six rows, gathered


def test_rewordings_without_common_words_give_no_floor():
    model = tiny_loaded("llama")
    text, again = (word_attention(model, case_of(model, words)) for words in (TEXT, "How many are there"))
    assert attention_change(text, text, [(again, again)])["floor"].isna().all()


def test_words_that_repeat_are_matched_in_order():
    assert shared_words(["a", "b", "a", "c"], ["A", "a", "c"]) == ([0, 2, 3], [0, 1, 2])
    assert shared_words(["a"], ["b"]) == ([], [])


def test_models_are_compared_on_the_words_that_both_read():
    base_model, other_model = tiny_loaded("llama"), tiny_loaded("llama", seed=1, label="other")
    base, other = (word_attention(model, case_of(model, TEXT)) for model in (base_model, other_model))
    cut = word_attention(other_model, case_of(other_model, TEXT, max_tokens=len(other.case.tokens) - 1))
    assert cut.words == base.words[:-1]
    weights = base.weights[:, :, :5]
    gathered = np.concatenate([weights[..., :6], weights[..., 6:].sum(-1, keepdims=True)], -1)
    expected = divergence(gathered, cut.weights).ravel()
    np.testing.assert_allclose(attention_change(base, cut)["divergence"], expected)


def test_what_cannot_be_compared_is_said_in_one_line():
    model = tiny_loaded("llama")
    text = word_attention(model, case_of(model, TEXT))
    with pytest.raises(UserError, match="has 2 x 4 heads and 'tiny' 1 x 4"):
        attention_change(text, replace(text, weights=text.weights[:1]))
