"""Normalising, tokenising, spans and words: properties over random Unicode, and small cases worked out by hand."""

import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel
from transformers import PreTrainedTokenizerFast

from tests.tiny import CORPUS, tiny_loaded, tiny_tokenizer
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.study.config import Study
from xai_utils.text.cases import Case, Token, pad, prepare, units, word_weights
from xai_utils.text.entry import TextEntry
from xai_utils.text.tokenise import continuation_ids
from xai_utils.text.words import normalise, told_apart, words

TINY = tiny_loaded("llama")


def with_tokenizer(tokenizer: PreTrainedTokenizerFast, **entry: object) -> LoadedModel:
    """The tiny Llama, which is never run here, behind another tokenizer."""
    return LoadedModel(TINY.entry.model_copy(update=entry), TINY.model, tokenizer, "test")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Unigram over "▁"-marked pieces, as SentencePiece models of Llama 1 and Gemma have it; bytes as a last resort."""
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")} | {"▁"})
    pieces = [("<unk>", 0.0), ("▁план", -3.0), ("▁the", -3.0), ("ет", -4.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] + [(letter, -8.0) for letter in letters]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always", split=False)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<unk>")


def bytes_alone() -> PreTrainedTokenizerFast:
    """Every byte a token: all letters beyond ASCII are several tokens with one span."""
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def words_alone() -> PreTrainedTokenizerFast:
    """White space parts tokens and is in none of them; unknown words are one token."""
    vocabulary = {"<unk>": 0} | {word: index for index, word in enumerate(" ".join(CORPUS).split(), 1)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = {
    "byte-level": tiny_tokenizer(),
    "with-bos": tiny_tokenizer(bos=True),
    "sentencepiece": sentencepiece(),
    "bytes": bytes_alone(),
    "words": words_alone(),
}


def case_of(text: str, model: LoadedModel | None = None, prefix: str = "document_start", **settings: object) -> Case:
    model = model or TINY
    entry_keys = {key: settings.pop(key) for key in ("answer", "contrast", "chat") if key in settings}
    entry = TextEntry(id="t", text=text, **entry_keys)
    return prepare(model, entry, Study(name="s", models=(model.entry,), texts=(entry,), prefix=prefix, **settings))


visible = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40).filter(
    lambda text: any(unicodedata.category(c)[0] not in "CZ" for c in unicodedata.normalize("NFC", text))
)
mixed = st.lists(
    st.sampled_from(
        ["Сколько", " план", "ет", "?", "  ", "\n", "the", "й", "e\u0301", "👩\u200d👩\u200d👧", "中文", "'s", "-"]
    ),
    min_size=1,
    max_size=12,
).map("".join)
readable_texts = st.one_of(visible, mixed.filter(lambda text: bool(text.strip())))
quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", TOKENIZERS)
@quick
@given(text=readable_texts)
@example(text="Сколько планет в Солнечной системе?")
@example(text="a\u0301\u0323")
@example(text="x   y")
def test_every_token_s_weight_adds_up_to_one(name, text):
    case = case_of(text, with_tokenizer(TOKENIZERS[name]))
    weights = word_weights(case)
    assert weights.shape == (len(case.tokens), len(units(case)))
    assert np.allclose(weights.sum(1), 1) and (weights >= 0).all()


@pytest.mark.parametrize("name", TOKENIZERS)
@quick
@given(text=readable_texts)
@example(text="x   y")
def test_weights_are_shares_of_characters_counted_one_by_one(name, text):
    case = case_of(text, with_tokenizer(TOKENIZERS[name]))
    rows, weights = units(case), word_weights(case)
    owner = {c: (word.start, word.end) for word in case.words for c in range(word.start, word.end)}
    for position, token in enumerate(case.tokens):
        inside = [owner[c] for c in range(token.start or 0, token.end or 0) if c in owner]
        for column, unit in enumerate(rows):
            if inside:
                expected = inside.count((unit.start, unit.end)) / len(inside) if unit.is_word else 0
            else:
                expected = float(not unit.is_word and unit.tokens == (position,))
            assert weights[position, column] == pytest.approx(expected)
            assert (position in unit.tokens) == (weights[position, column] > 0)


@pytest.mark.parametrize("name", TOKENIZERS)
@quick
@given(text=readable_texts)
def test_spans_rise_and_every_word_belongs_to_a_token(name, text):
    case = case_of(text, with_tokenizer(TOKENIZERS[name]))
    spans = [(token.start, token.end) for token in case.tokens if token.start is not None]
    assert spans == sorted(spans) and all(0 <= start <= end <= len(case.text) for start, end in spans)
    assert all(unit.tokens for unit in units(case))
    assert sorted({position for unit in units(case) for position in unit.tokens}) == list(range(len(case.tokens)))


@quick
@given(text=readable_texts)
def test_words_cover_all_that_can_be_seen_and_nothing_twice(text):
    found = words(text)
    assert [text[word.start : word.end] for word in found] == [word.text for word in found]
    assert all(a.end <= b.start for a, b in zip(found, found[1:], strict=False))
    covered = {c for word in found for c in range(word.start, word.end)}
    assert all(text[c].isspace() for c in set(range(len(text))) - covered)


def test_words_of_a_sentence_with_marks():
    assert [word.text for word in words("Сколько планет, из-за 3.14?")] == [
        *("Сколько", "планет", ",", "из", "-", "за", "3.14", "?")
    ]


def test_normal_forms_differ_as_named():
    assert normalise(" ﬁn ", "NFC") == "ﬁn" and normalise(" ﬁn ", "NFKC") == "fin"
    assert normalise(" e\u0301 ", "none") == "e\u0301" and normalise("e\u0301") == "é"
    assert case_of("и\u0306од").text == "йод" and case_of("и\u0306од", normalisation="none").text == "и\u0306од"


def test_a_leading_space_belongs_to_the_word_that_follows():
    for name in ("byte-level", "words"):
        case = case_of("the cat sat", with_tokenizer(TOKENIZERS[name]))
        rows = {unit.text: unit for unit in units(case)}
        texts = "".join(case.text[case.tokens[p].start : case.tokens[p].end] for p in rows["cat"].tokens)
        assert texts == " cat"


def test_one_letter_of_two_tokens_is_labelled_in_order_and_stays_whole():
    case = case_of("й?", with_tokenizer(bytes_alone()), prefix="none")
    assert case.labels == ["й₁", "й₂", "?"]
    assert [unit.tokens for unit in units(case)] == [(0, 1), (2,)]
    assert np.array_equal(word_weights(case), [[1, 0], [1, 0], [0, 1]])


def test_a_token_over_two_words_is_shared_by_characters():
    case = case_of("abc")
    halves = Case("s", "t", "m", "base", "don.x", (Token(1, "don.x", 0, 5, "text"),), tuple(words("don.")) + ())
    assert np.allclose(word_weights(halves), [[3 / 4, 1 / 4]])
    assert len(case.words) == 1


def test_white_space_and_special_tokens_have_rows_of_their_own():
    case = case_of("a\n\n\n b", with_tokenizer(bytes_alone()), prefix="none")
    assert [(unit.text, unit.is_word) for unit in units(case)] == [
        *(("a", True), ("⏎", False), ("⏎", False), ("⏎", False), (" ", False), ("b", True))
    ]
    prefixed = case_of("a b")
    assert [token.kind for token in prefixed.tokens][0] == "special" and units(prefixed)[0].text == "<|endoftext|>"


def test_the_prefix_is_put_once_and_only_where_the_tokenizer_puts_none():
    assert case_of("The cat").ids[0] == tiny_tokenizer().convert_tokens_to_ids("<|endoftext|>")
    assert case_of("The cat", prefix="none").ids == tiny_tokenizer()("The cat")["input_ids"]
    own = case_of("The cat", with_tokenizer(tiny_tokenizer(bos=True)))
    assert own.ids == tiny_tokenizer(bos=True)("The cat")["input_ids"]
    assert own.ids.count(tiny_tokenizer().bos_token_id) == 1


@pytest.mark.parametrize("bos", [False, True])
def test_a_chat_holds_the_template_once(bos):
    tokenizer = tiny_tokenizer(bos)
    case = case_of("The cat sat", with_tokenizer(tokenizer), chat=True)
    rendered = "<|im_start|>user\nThe cat sat<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(case.ids) == rendered
    assert case.ids.count(tokenizer.bos_token_id) == rendered.count("<|im_start|>")
    inside = [token for token in case.tokens if token.kind == "text"]
    assert "".join(token.label for token in inside) == "The cat sat"
    assert [word.text for word in case.words] == ["The", "cat", "sat"]


def test_a_chat_without_a_template_is_an_error():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template; expected .*; set chat: false"):
        case_of("The cat sat", with_tokenizer(tokenizer), chat=True)


@quick
@given(text=readable_texts, limit=st.integers(2, 12))
def test_what_is_cut_is_counted(text, limit):
    whole, short = case_of(text, max_tokens=128), case_of(text, max_tokens=limit)
    assert short.ids == whole.ids[:limit] and short.cut == max(len(whole.ids) + whole.cut - limit, 0)
    assert short.padding == limit - len(short.ids)
    reach = max((token.end for token in short.tokens if token.end is not None), default=0)
    assert short.words == tuple(word for word in whole.words if word.start < reach)


def test_answers_are_tokenised_apart_and_read_back():
    case = case_of("The capital of France is", answer=" Paris.", contrast=" Moscow.")
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(case.answer_ids) == " Paris." and tokenizer.decode(case.contrast_ids) == " Moscow."
    assert list(case.answer_ids) == tokenizer(" Paris.")["input_ids"]


def test_sentencepiece_answers_do_not_get_two_spaces():
    tokenizer = sentencepiece()
    prompt = tokenizer("the capital", add_special_tokens=False)["input_ids"]
    ids = continuation_ids(tokenizer, prompt, " the")
    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["▁the"]


def test_a_chat_s_answer_starts_a_line():
    case = case_of("The capital of France is", answer=" Paris.", chat=True)
    assert tiny_tokenizer().decode(case.answer_ids) == "Paris."


def test_an_answer_that_cannot_be_written_is_an_error():
    with pytest.raises(UserError, match="answer ' верблюд' cannot be written in the vocabulary"):
        case_of("The cat", with_tokenizer(words_alone()), answer=" верблюд")


def test_a_text_beyond_the_positions_is_an_error():
    with pytest.raises(UserError, match="needs 302 positions with its answer and model 'tiny' has 256; lower"):
        case_of("я " * 400, with_tokenizer(bytes_alone()), max_tokens=300, answer="ab"[:1] + "b")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gemma2"])
def test_padding_changes_no_logit(architecture):
    model = tiny_loaded(architecture)
    case = case_of("Сколько планет в Солнечной системе?", model)
    ids, mask = pad(case, 128, 2)
    assert len(ids) == len(mask) == 128 and sum(mask) == len(case.tokens)
    with torch.no_grad():
        padded = model.model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask])).logits
        plain = model.model(input_ids=torch.tensor([case.ids])).logits
    assert torch.allclose(padded[:, : len(case.tokens)], plain, atol=1e-4)


@given(st.text())
def test_words_are_told_apart_and_keep_their_text(text):
    read = [word.text for word in words(normalise(text))]
    labels = told_apart(read)
    assert len(set(labels)) == len(labels) == len(read)
    assert all(label == word or label.startswith(f"{word} (") for label, word in zip(labels, read, strict=True))


def test_a_prompt_of_which_nothing_is_left_is_refused():
    """A chat template's own tokens can take all that max_tokens allows."""
    entry = TextEntry(id="t", text="The capital of France is", chat=True)
    study = Study.model_validate({"name": "s", "models": [TINY.entry], "texts": [entry], "max_tokens": 3})
    with pytest.raises(UserError, match="text 't': max_tokens 3 leaves nothing of it for model 'tiny'") as caught:
        prepare(TINY, entry, study)
    needed = int(str(caught.value).split("expected ")[1].split(" ")[0])
    assert len(prepare(TINY, entry, study.model_copy(update={"max_tokens": needed})).words) == 5
    assert prepare(TINY, entry, study.model_copy(update={"max_tokens": needed})).cut == 0
