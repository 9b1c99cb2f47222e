"""Token scores of real tokenizers on the same words: what is conserved, and what cannot be compared."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import real_tokenizers as real
from xai_utils.attribution.result import from_tokens, to_words
from xai_utils.attribution.tables import word_rows
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.fields import text_problem
from xai_utils.study.config import Study
from xai_utils.text.alignment import side_by_side
from xai_utils.text.cases import prepare, units, word_weights
from xai_utils.text.entry import TextEntry
from xai_utils.text.words import words

ALPHABETS = st.one_of(
    st.characters(exclude_categories=["Cc", "Cs", "Cn"]),
    st.sampled_from(list("абвгдежзиклмнопрстуфхцчшщъыьэюяЁё")),
    st.sampled_from(list("abcdefghijklmnopqrstuvwxyz0123456789")),
    st.sampled_from(list(" \u00a0\u200b\u200d\ufeff\u0301\u00ad?!.,–—«»'\"\n\t")),
    st.sampled_from(["👩‍👩‍👧", "🏳️‍🌈", "é", "й", "ﬁ", "日本", "한국", "नमस्ते", "ไทย", "  ", "don't", " планет "]),
)
TEXTS = st.lists(ALPHABETS, min_size=1, max_size=40).map("".join)
many = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def read(name, text, prefix="document_start", max_tokens=128):
    """A case of one text under a real tokenizer."""
    model = real.reader(name)
    entry = TextEntry(id="t", text=text)
    study = Study(name="s", models=(model.entry,), texts=(entry,), prefix=prefix, max_tokens=max_tokens)
    return prepare(model, entry, study)


def scored(case, scores):
    """The rows of `word_scores` for one case with the given token scores."""
    target = Target("logprob", " x.", ())
    found = from_tokens("m", case, target, scores, 0 * scores, baseline="mean", keep_sink=False)
    return pd.DataFrame(word_rows(found))


@pytest.mark.parametrize("name", real.NAMES)
@given(text=TEXTS, prefix=st.sampled_from(["document_start", "none"]), seed=st.integers(0, 2**32 - 1))
@many
def test_every_token_is_given_out_whole(name, text, prefix, seed):
    assume(text_problem(text) is None)
    case = read(name, text, prefix)
    assume(case.tokens)
    weights = word_weights(case)
    assert weights.shape == (len(case.tokens), len(units(case)))
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    scores = np.random.default_rng(seed).normal(size=len(case.tokens)) * 100
    assert np.nansum(to_words(scores, case)) == pytest.approx(scores.sum(), abs=1e-6)


@pytest.mark.parametrize("name", real.NAMES)
@given(text=TEXTS)
@many
def test_words_belong_to_the_text_alone(name, text):
    assume(text_problem(text) is None)
    case = read(name, text)
    if not case.cut:
        assert list(case.words) == words(case.text)
    shown = [unit.text for unit in units(case) if unit.is_word]
    assert shown == [word.text for word in case.words]


@given(text=TEXTS, pair=st.sampled_from([(a, b) for a in real.NAMES for b in real.NAMES if a < b]))
@many
def test_two_tokenizers_meet_on_the_same_words(text, pair):
    assume(text_problem(text) is None)
    cases = [read(name, text) for name in pair]
    rng = np.random.default_rng(len(text))
    scores = [rng.normal(size=len(case.tokens)) for case in cases]
    tables = [scored(case, values) for case, values in zip(cases, scores, strict=True)]
    joined = side_by_side(pd.concat(tables), *pair)
    assert len(joined) == min(len(case.words) for case in cases)
    for side, table, values in zip(("base", "other"), tables, scores, strict=True):
        rest = table[~table["is_word"]]["score"].sum()
        if not any(case.cut for case in cases):
            assert joined[f"score_{side}"].sum() + rest == pytest.approx(values.sum(), abs=1e-6)


@pytest.mark.parametrize("name", real.NAMES)
def test_a_cut_text_keeps_the_words_it_has_read(name):
    case = read(name, "Сколько планет в Солнечной системе? " * 5, max_tokens=9)
    assert case.cut > 0 and len(case.tokens) == 9
    np.testing.assert_allclose(word_weights(case).sum(1), 1)
    assert 0 < len(case.words) < len(words(case.text))


def test_the_real_tokenizers_are_what_they_claim():
    pieces = real.mistral_pieces()
    text = "Сколько планет  в Солнечной системе? 🏳️‍🌈 Don't stop, 日本!"
    assert real.tokenizer("mistral")(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)
    sizes = {name: len(real.tokenizer(name)) for name in ("smollm2", "llama-3", "mistral")}
    assert sizes == {"smollm2": 49152, "llama-3": 128001, "mistral": 32000}


def test_a_token_over_two_words_is_split_by_characters():
    case = read("mistral", "Wow!!! ok")
    tokens = [token.label for token in case.tokens]
    assert "!!!" in tokens  # one token, three words of one character each
    weights = word_weights(case)[tokens.index("!!!")]
    np.testing.assert_allclose(np.sort(weights)[-3:], 1 / 3)


def test_a_word_that_a_tokenizer_drops_has_no_score_and_loses_none():
    case = read("wordpiece", "Париж \U000f0000 столица")  # of private use: BERT's normaliser drops it
    dropped = [unit for unit in units(case) if unit.is_word and not unit.tokens]
    assert [unit.text for unit in dropped] == ["\U000f0000"]
    assert [unit.text for unit in units(case) if unit.is_word] == ["Париж", "\U000f0000", "столица"]
    scores = np.arange(1.0, len(case.tokens) + 1)
    found = to_words(scores, case)
    assert np.isnan(found[units(case).index(dropped[0])])
    assert np.nansum(found) == pytest.approx(scores.sum())


def table(model="a", text="t", target_text=" x.", listed=("one", "two")):
    starts = np.cumsum([0] + [len(word) + 1 for word in listed[:-1]])
    common = {"study": "s", "text": text, "model": model, "target": "logprob", "target_text": target_text}
    setting = {"method": "m", "baseline": "mean", "sink": "kept", "unit": "nats", "additive": True}
    return pd.DataFrame(
        [
            common
            | setting
            | {
                "word": word,
                "start": start,
                "end": start + len(word),
                "is_word": True,
                "pieces": 1,
                "score": 1.0,
                "error": 0.0,
            }
            for word, start in zip(listed, starts.tolist(), strict=True)
        ]
    )


def test_what_cannot_be_laid_side_by_side():
    with pytest.raises(UserError, match="no scores of model 'c'; expected one of a, b"):
        side_by_side(pd.concat([table("a"), table("b")]), "a", "c")
    with pytest.raises(UserError, match="text 't' has other words under 'b' than under 'a'"):
        side_by_side(pd.concat([table("a"), table("b", listed=("one", "too"))]), "a", "b")
    with pytest.raises(
        UserError, match="text 't' has another target under 'b' .*' y.' and ' x.'.*give the text an answer"
    ):
        side_by_side(pd.concat([table("a"), table("b", target_text=" y.")]), "a", "b")


def test_a_cut_text_is_compared_as_far_as_both_read_it():
    joined = side_by_side(pd.concat([table("a"), table("b", listed=("one",))]), "a", "b")
    assert joined["word"].tolist() == ["one"]


def test_a_text_that_one_model_has_not_is_left_out():
    joined = side_by_side(pd.concat([table("a"), table("a", "u"), table("b")]), "a", "b")
    assert set(joined["text"]) == {"t"}


def test_nothing_in_common_but_the_words_is_an_empty_comparison():
    other = table("b").assign(baseline="eos")  # as when other baselines of each model have converged
    assert side_by_side(pd.concat([table("a"), other]), "a", "b").empty
