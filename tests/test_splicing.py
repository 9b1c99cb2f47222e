"""Prompts that are read by two tokenizers in turn: every mixture must be a whole reading of the text."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.test_alignment import TEXTS, many, read
from xai_utils.errors import UserError
from xai_utils.fields import text_problem
from xai_utils.text.splicing import segments

PAIRS = [("smollm2", "ru-ts"), ("llama-3", "smollm2"), ("mistral", "ru-ts"), ("wordpiece", "llama-3")]


@pytest.mark.parametrize(("one", "two"), PAIRS)
@given(text=TEXTS, prefix=st.sampled_from(["document_start", "none"]), seed=st.integers(0, 2**32 - 1))
@many
def test_any_mixture_is_a_whole_reading(one, two, text, prefix, seed):
    """Whatever is chosen, tokens cover the characters that their tokenizer reads, in order; each prompt is whole."""
    assume(text_problem(text) is None)
    cases = [read(name, text, prefix) for name in (one, two)]
    assume(not any(case.cut for case in cases) and all(case.tokens for case in cases))
    parts = segments(*cases)
    for side, case in enumerate(cases):
        assert [at for part in parts for at in part.positions[side]] == list(range(len(case.tokens)))
    chosen = np.random.default_rng(seed).integers(0, 2, len(parts))
    read_so_far = set()
    for part, side in zip(parts, chosen, strict=True):
        spans = [(cases[side].tokens[at].start, cases[side].tokens[at].end) for at in part.positions[side]]
        here = {at for start, stop in spans if start is not None for at in range(start, stop)}
        assert not here or not read_so_far or min(here) > max(read_so_far)
        read_so_far |= here
    every = [{at for t in case.tokens if t.start is not None for at in range(t.start, t.end)} for case in cases]
    assert every[0] & every[1] <= read_so_far <= every[0] | every[1]


@pytest.mark.parametrize(("one", "two"), PAIRS)
@given(text=TEXTS)
@many
def test_words_are_not_cut(one, two, text):
    assume(text_problem(text) is None)
    cases = [read(name, text) for name in (one, two)]
    assume(not any(case.cut for case in cases) and all(case.tokens for case in cases))
    inner = [part for part in segments(*cases) if part.start is not None]
    for word in cases[0].words:
        assert sum(part.start <= word.start and word.end <= part.end for part in inner) == 1
    for part in inner:
        assert part.name == cases[0].text[part.start : part.end]


def test_russian_words_part_as_a_person_expects():
    cases = [read(name, "Чтобы открыть файл, выберите команду") for name in ("smollm2", "ru-ts")]
    parts = segments(*cases)
    assert [part.name for part in parts] == ["document start", "Чтобы", "открыть", "файл", ",", "выберите", "команду"]
    assert [len(part.positions[1]) for part in parts] == [1] * 7
    assert [len(part.positions[0]) for part in parts] == [1, 6, 7, 5, 1, 6, 5]


def test_words_that_a_token_joins_go_together():
    """A token over two words, as of a tokenizer that joins "New York", leaves no place to change between them."""
    case = read("smollm2", "New York is")
    joined = dataclasses.replace(case.tokens[1], start=0, end=8)
    other = dataclasses.replace(case, tokens=(case.tokens[0], joined, *case.tokens[3:]))
    assert [part.name for part in segments(case, other)] == ["document start", "New York", "is"]


def test_texts_must_be_the_same_and_whole():
    case = read("smollm2", "one two three")
    with pytest.raises(UserError, match="expected one text"):
        segments(case, read("smollm2", "one two"))
    with pytest.raises(UserError, match="lost 2 tokens under 'smollm2'"):
        segments(case, read("smollm2", "one two three", max_tokens=2))
