"""Translations by word alignment: the tables against expectation maximisation written out, and a planted dictionary."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.token_substitution import corpus, initialise, translate
from recipes.token_substitution.sources import Document
from recipes.token_substitution.translate import Paragraphs


def paragraphs(number: int, tokens: int, seed: int) -> Paragraphs:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, tokens, generator.integers(1, 7)).tolist() for _ in range(number)]


def written_out(source: Paragraphs, target: Paragraphs, sources: int, targets: int, rounds: int) -> np.ndarray:
    """Model 1 as Brown et al. 1993 state it, token by token, with the empty word as the last source."""
    likelihood = np.ones((sources + 1, targets))
    for _ in range(rounds):
        counts: dict[tuple[int, int], float] = defaultdict(float)
        for ours, theirs in zip(source, target, strict=True):
            for reached in theirs:
                whole = sum(likelihood[word, reached] for word in [*ours, sources])
                for word in [*ours, sources]:
                    counts[word, reached] += likelihood[word, reached] / whole
        likelihood = np.zeros_like(likelihood)
        for (word, reached), count in counts.items():
            likelihood[word, reached] = count
        likelihood /= np.maximum(likelihood.sum(1, keepdims=True), 1e-300)
    return likelihood[:-1]


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_the_table_is_that_of_expectation_maximisation_written_out(rounds: int) -> None:
    source, target = paragraphs(30, 8, seed=1), paragraphs(30, 11, seed=2)
    got = translate.model_1(source, target, 8, 11, rounds).toarray()
    np.testing.assert_allclose(got, written_out(source, target, 8, 11, rounds), atol=1e-12)


def test_a_planted_dictionary_is_found() -> None:
    meant = np.random.default_rng(3).permutation(40)
    russian = paragraphs(600, 40, seed=4)
    english = [[int(meant[token]) for token in reversed(own)] for own in russian]
    found = translate.translations(russian, english, 40, 60)
    assert found.toarray().argmax(1).tolist() == meant.tolist()
    assert (found != 0).sum(axis=1).max() <= translate.NEAREST


def test_only_new_tokens_and_kept_ones_are_aligned() -> None:
    russian, english = [[5, 70, 71], [1, 2], [71]], [[5, 70], [3], [3] * (translate.LONGEST + 1)]
    assert translate.kept_pairs(russian, english, [70, 71]) == ([[0, 1]], [[5]])


def document(name: str, language: str, *lines: str) -> Document:
    return Document("handbooks", "package", name, language, lines)


RUSSIAN, ENGLISH = "Скопируйте этот файл в другой каталог.", "Copy this file into another directory."


def test_paragraphs_pair_by_their_place_in_training_documents_of_equal_length() -> None:
    names = [f"manual{number}" for number in range(8)]
    held = corpus.held_out_names(names)
    used, uneven = [name for name in names if name not in held][:2]
    found = [document(name, language, line) for name in names for language, line in (("ru", "—"), ("en", "—"))]
    found += [document(used, "ru", RUSSIAN, "", "Второй абзац стоит здесь."), document(used, "en", ENGLISH, "12", " ")]
    found += [document(uneven, "ru", RUSSIAN, RUSSIAN), document(uneven, "en", ENGLISH)]
    found += [document(name, language, line) for name in held for language, line in (("ru", RUSSIAN), ("en", ENGLISH))]
    assert list(translate.translated(found)) == [(RUSSIAN, ENGLISH)]


def test_a_token_without_a_translation_begins_as_the_mean_of_its_pieces(
    smollm2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [smollm2.tokenizer.convert_tokens_to_ids(token) for token in ("Ġfile", "Ġdirectory", "Ġwater")]
    lines = [("A file here", "Copy house"), ("The directory file", "Copy tree house"), ("The directory", "The tree")]
    monkeypatch.setattr(corpus, "collect", lambda folder: ([], []))
    monkeypatch.setattr(translate, "translated", lambda found: iter(lines * 9))
    embedding = smollm2.embedding.detach()
    rows = translate.rows(embedding, smollm2.tokenizer, smollm2.tokenizer, new, tmp_path)
    means = initialise.initial_rows(embedding, smollm2.tokenizer, smollm2.tokenizer, new)
    torch.testing.assert_close(rows[2], means[2], atol=1e-6, rtol=0)
    meant = smollm2.tokenizer.convert_tokens_to_ids(["Ġhouse", "Ġtree"])
    for row, mean, target in zip(rows, means, meant, strict=False):
        assert torch.dist(row, embedding[target]) < 0.7 * torch.dist(mean, embedding[target])
    monkeypatch.setattr(translate, "translated", lambda found: pytest.fail("made twice"))
    assert torch.equal(translate.rows(embedding, smollm2.tokenizer, smollm2.tokenizer, new, tmp_path), rows)
