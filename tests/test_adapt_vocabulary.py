"""Token substitution on a small tokenizer, and the checkpoint's own tokenizer against the base's."""

import json
import random
import re
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from recipes.token_substitution import vocabulary
from tests.tiny import CORPUS, tiny_tokenizer
from xai_utils.files import ROOT

CHECKPOINT = ROOT / "models" / "smollm2-135m-ru-ts"
ENGLISH = [text for text in CORPUS if text.isascii()]
ROWS = 150
RUSSIAN = [text for text in CORPUS if not text.isascii()]


@pytest.fixture(scope="module")
def base() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def made(base: PreTrainedTokenizerFast) -> vocabulary.Substitution:
    merges = vocabulary.train_russian(RUSSIAN, rows=ROWS)
    return vocabulary.substitute(base, merges, vocabulary.count_tokens(base, ENGLISH))


def model_of(tokenizer: PreTrainedTokenizerFast) -> dict:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


def check_invariants(base: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> None:
    """What holds of every substitution, read from the two files alone."""
    old_file, new_file = model_of(base), model_of(new)
    assert sorted(old_file["vocab"].values()) == sorted(new_file["vocab"].values())
    assert {part for merge in new_file["merges"] for part in (*merge, "".join(merge))} <= set(new_file["vocab"])
    changed = {token for token, place in new_file["vocab"].items() if old_file["vocab"].get(token) != place}
    assert all(vocabulary.is_cyrillic(token) for token in changed)
    assert set(vocabulary.byte_letters().values()) & set(old_file["vocab"]) <= set(new_file["vocab"])
    assert base.all_special_tokens == new.all_special_tokens
    old_merges = [merge for merge in map(tuple, old_file["merges"]) if "".join(merge) in new_file["vocab"]]
    kept = [merge for merge in map(tuple, new_file["merges"]) if not vocabulary.is_cyrillic("".join(merge))]
    assert kept == [merge for merge in old_merges if not vocabulary.is_cyrillic("".join(merge))]


def check_same_cut(base: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, text: str) -> bool:
    """Where the base's cut used no token that went, the new one is the same; True where that was so."""
    old = base.tokenize(text)
    if set(old) - set(new.get_vocab()):
        return False
    assert new(text, add_special_tokens=False)["input_ids"] == base(text, add_special_tokens=False)["input_ids"]
    return True


def test_vocabulary_and_merges(base: PreTrainedTokenizerFast, made: vocabulary.Substitution) -> None:
    check_invariants(base, made.tokenizer)
    assert len(made.rows) == len(set(made.come)) == ROWS
    assert sorted(made.tokenizer.convert_tokens_to_ids(list(made.come))) == list(made.rows)


def test_what_goes_is_rare_and_needed_by_no_merge(base: PreTrainedTokenizerFast, made: vocabulary.Substitution) -> None:
    counts, model = vocabulary.count_tokens(base, ENGLISH), model_of(base)
    counted = Counter(token for text in ENGLISH for token in base.tokenize(text))
    went = [token for token in made.gone if not vocabulary.is_cyrillic(token)]
    parts = {part for merge in model["merges"] if not vocabulary.is_cyrillic("".join(merge)) for part in merge}
    assert not parts & set(went)
    stayed = [
        token
        for token in model["vocab"]
        if token not in made.gone and token not in parts and len(token) > 1 and token not in base.all_special_tokens
        if not vocabulary.is_cyrillic(token) and not any(token in merge for merge in model["merges"])
    ]
    assert max(counted[token] for token in went) <= min(counted[token] for token in stayed)
    assert counts[base.get_vocab()[went[0]]] == counted[went[0]]


def test_too_few_may_go(base: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="may"):
        vocabulary.choose_leaving(model_of(base), set(), Counter(), 10**6)
    with pytest.raises(ValueError, match="may"):
        vocabulary.substitute(base, [], Counter())


def test_russian_merges_join_whole_letters() -> None:
    merges = vocabulary.train_russian(RUSSIAN, rows=100)
    assert len(merges) == 100 - len(vocabulary.LETTERS)
    assert all(re.fullmatch(f" ?[{vocabulary.LETTERS}]+", left + right) for left, right in merges)


def test_the_first_russian_merge_is_the_commonest_pair() -> None:
    words = Counter(word for text in RUSSIAN for word in vocabulary.russian_words([text]))
    pairs = Counter()
    for word, count in words.items():
        for pair in zip(word, word[1:], strict=False):
            pairs[pair] += count
    assert pairs[vocabulary.train_russian(RUSSIAN, rows=80)[0]] == max(pairs.values())


@settings(deadline=None, max_examples=100)
@given(st.text())
def test_round_trip_of_any_unicode(text: str) -> None:
    new = _substituted()
    ids = new(text, add_special_tokens=False)["input_ids"]
    assert new.decode(ids, clean_up_tokenization_spaces=False) == text


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet=st.characters(max_codepoint=0x2FF)))
def test_text_without_cyrillic_is_cut_as_before(text: str) -> None:
    check_same_cut(tiny_tokenizer(), _substituted(), text)


def test_english_is_cut_as_before(base: PreTrainedTokenizerFast, made: vocabulary.Substitution) -> None:
    random_ = random.Random(0)
    words = " ".join(ENGLISH).split()
    same = [check_same_cut(base, made.tokenizer, " ".join(random_.sample(words, 3))) for _ in range(500)]
    assert sum(same) > 50


def test_russian_takes_fewer_tokens(base: PreTrainedTokenizerFast, made: vocabulary.Substitution) -> None:
    letters = sum(len(re.findall(f"[{vocabulary.LETTERS}]", text)) for text in RUSSIAN)
    used = [token for text in RUSSIAN for token in made.tokenizer.tokenize(text) if vocabulary.is_cyrillic(token)]
    assert sum(len(vocabulary.unspelled(token).strip()) for token in used) == letters
    assert len(used) < letters


_MADE: list[PreTrainedTokenizerFast] = []


def _substituted() -> PreTrainedTokenizerFast:
    if not _MADE:
        merges = vocabulary.train_russian(RUSSIAN, rows=ROWS)
        counts = vocabulary.count_tokens(tiny_tokenizer(), ENGLISH)
        _MADE.append(vocabulary.substitute(tiny_tokenizer(), merges, counts).tokenizer)
    return _MADE[0]


# ---- the checkpoint's tokenizer


@pytest.fixture(scope="module")
def shipped() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(CHECKPOINT)


def test_the_shipped_tokenizer_keeps_the_invariants(smollm2, shipped: PreTrainedTokenizerFast) -> None:
    check_invariants(smollm2.tokenizer, shipped)
    assert len(shipped) == len(smollm2.tokenizer) == smollm2.embedding.shape[0]


@settings(deadline=None, max_examples=100)
@given(text=st.text())
@example(text="\U00040000")  # starts with byte F1, for which the base has no token at all
def test_the_shipped_tokenizer_s_round_trip(smollm2, shipped: PreTrainedTokenizerFast, text: str) -> None:
    """Every text comes back whole, unless the base lacks one of its bytes; then it comes back as from the base."""
    before, after = (
        tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False)
        for tokenizer in (smollm2.tokenizer, shipped)
    )
    letters, known = vocabulary.byte_letters(), smollm2.tokenizer.get_vocab()
    if all(letters[byte] in known for byte in text.encode()):
        assert after == text
    assert after == before


def test_the_shipped_tokenizer_on_ordinary_sentences(smollm2, shipped: PreTrainedTokenizerFast) -> None:
    assert sum(check_same_cut(smollm2.tokenizer, shipped, text) for text in ENGLISH) == len(ENGLISH)
    for text in RUSSIAN:
        assert len(shipped.tokenize(text)) <= 0.6 * len(smollm2.tokenizer.tokenize(text))
