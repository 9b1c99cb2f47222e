"""Llama 3's own tokenizer file: its 14 tokens of the original's sentence, under the original's labels."""

from tests.real_tokenizers import tokenizer
from tests.tiny import tiny_loaded
from xai_utils.models.loading import LoadedModel
from xai_utils.study.config import Study
from xai_utils.text.cases import prepare
from xai_utils.text.entry import TextEntry

SENTENCE = "Сколько планет в Солнечной системе?"
# The keys of the original report's two tables of scores, in order.
ORIGINAL = [
    "<|begin_of_text|>",
    "С",
    "к",
    "олько",
    " план",
    "ет",
    " в",
    " С",
    "олн",
    "еч",
    "ной",
    " систем",
    "е",
    "?",
]


def test_the_sentence_is_cut_into_the_original_s_tokens() -> None:
    llama = tokenizer("llama-3")
    ids = llama(SENTENCE)["input_ids"]
    assert len(ids) == len(ORIGINAL) == 14
    assert [llama.decode([identifier]) for identifier in ids] == ORIGINAL


def test_our_labels_are_the_original_s_keys() -> None:
    tiny = tiny_loaded("llama")
    model = LoadedModel(tiny.entry, tiny.model, tokenizer("llama-3"), "test")
    entry = TextEntry(id="planets", text=SENTENCE)
    case = prepare(model, entry, Study(name="original", models=(model.entry,), texts=(entry,)))
    assert [token.label for token in case.tokens] == ORIGINAL
    assert [SENTENCE[token.start : token.end] for token in case.tokens[1:]] == ORIGINAL[1:]
    assert case.tokens[0].kind == "special" and case.tokens[0].start is None
