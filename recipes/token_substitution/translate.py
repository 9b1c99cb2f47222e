"""What new rows may begin as beside the mean of their pieces: the mean of the base's rows for their translations.

The idea is WECHSEL's (Minixhofer et al. 2022), which finds translations through aligned static embeddings and a
dictionary. Here the corpus itself holds translated paragraphs, so they are found by word alignment: IBM model 1
(Brown et al. 1993) in both directions, between new Russian tokens and kept English ones.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from transformers import PreTrainedTokenizerFast

from recipes.token_substitution import corpus, initialise
from recipes.token_substitution.sources import Document
from xai_utils.files import write_whole

ROUNDS = 6
LONGEST = 200  # tokens of a paragraph
NEAREST = 8  # translations of a token

Paragraphs = list[list[int]]


def rows(
    embedding: Float[torch.Tensor, "vocabulary hidden"],
    base: PreTrainedTokenizerFast,
    adapted: PreTrainedTokenizerFast,
    new: list[int],
    folder: Path,
) -> Float[torch.Tensor, "rows hidden"]:
    """For each new token c T + (1 - c) M, float32: T the mean of its translations' rows by how sure they are, M the
    mean of its pieces' rows, c in 0 to 1 how sure the translations are together. Made once under `folder`, where the
    corpus' packages are, and then found."""
    stored = folder / "translated.pt"
    if not stored.exists():
        made = _rows(embedding, base, adapted, new, folder / "packages")
        write_whole(stored, lambda file: torch.save(made, file))
    return torch.load(stored, weights_only=True)


def _rows(
    embedding: torch.Tensor,
    base: PreTrainedTokenizerFast,
    adapted: PreTrainedTokenizerFast,
    new: list[int],
    packages: Path,
) -> torch.Tensor:
    pairs = list(translated(corpus.collect(packages)[0]))
    russian, english = coded([ru for ru, _ in pairs], adapted), coded([en for _, en in pairs], base)
    there = translations(*kept_pairs(russian, english, new), len(new), len(embedding))
    sure = there.sum(axis=1)
    meant = torch.from_numpy(there @ embedding.float().numpy() / np.maximum(sure, 1e-12)[:, None]).float()
    c = torch.from_numpy(np.sqrt(sure)).float()[:, None]
    return c * meant + (1 - c) * initialise.initial_rows(embedding, base, adapted, new)


def translated(found: list[Document]) -> Iterator[tuple[str, str]]:
    """Paragraphs that stand at the same place of a training document in both languages, once each.

    What held-out text shares with them is not taken out, as it is from the text to train on: a word's translation is
    all that is read off.
    """
    by_name: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(dict)
    names = defaultdict(list)
    for document in found:
        lines = [corpus.clean(paragraph) for paragraph in document.paragraphs]
        by_name[document.kind, document.name][document.language] = [line for line in lines if line]
        names[document.kind].append(document.name)
    held = {kind: corpus.held_out_names(own) for kind, own in names.items()}
    seen = set()
    for (kind, name), both in by_name.items():
        russian, english = both.get("ru", []), both.get("en", [])
        if name in held[kind] or len(russian) != len(english):
            continue
        for pair in zip(russian, english, strict=True):
            if pair not in seen and corpus.belongs(pair[0], "ru") and corpus.belongs(pair[1], "en"):
                seen.add(pair)
                yield pair


def coded(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Paragraphs:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def kept_pairs(russian: Paragraphs, english: Paragraphs, new: list[int]) -> tuple[Paragraphs, Paragraphs]:
    """The new tokens of each Russian paragraph as places among `new`, the other tokens of each English one; only
    pairs with some of both and none too long."""
    place = {row: number for number, row in enumerate(new)}
    pairs = [
        ([place[token] for token in ru if token in place], [token for token in en if token not in place])
        for ru, en in zip(russian, english, strict=True)
    ]
    pairs = [(ru, en) for ru, en in pairs if 0 < len(ru) <= LONGEST and 0 < len(en) <= LONGEST]
    return [ru for ru, _ in pairs], [en for _, en in pairs]


def translations(russian: Paragraphs, english: Paragraphs, new: int, vocabulary: int) -> csr_array:
    """p(en | ru) p(ru | en) [new token, vocabulary] for the `NEAREST` likeliest translations of each new token."""
    there = model_1(russian, english, new, vocabulary)
    back = model_1(english, russian, vocabulary, new)
    both = csr_array(there.multiply(back.T))
    for row in range(new):
        own = both.data[both.indptr[row] : both.indptr[row + 1]]
        own[np.argsort(own)[:-NEAREST]] = 0.0
    both.eliminate_zeros()
    return both


def model_1(source: Paragraphs, target: Paragraphs, sources: int, targets: int, rounds: int = ROUNDS) -> csr_array:
    """p(target token | source token) [sources, targets] by expectation maximisation of IBM model 1, with an empty
    source word in every paragraph, which is not in the result.

    >>> table = model_1([[0, 1], [0]], [[0, 1], [0]], 2, 2, rounds=20)
    >>> table.toarray().argmax(1).tolist()
    [0, 1]
    """
    spoken = [np.append(own, sources) for own in source]
    word = np.concatenate([np.tile(ours, len(theirs)) for ours, theirs in zip(spoken, target, strict=True)])
    reached = np.concatenate([np.repeat(theirs, len(ours)) for ours, theirs in zip(spoken, target, strict=True)])
    sizes = np.concatenate([np.full(len(theirs), len(ours)) for ours, theirs in zip(spoken, target, strict=True)])
    occurrence = np.repeat(np.arange(len(sizes)), sizes)
    pairs, link = np.unique(word.astype(np.int64) * targets + reached, return_inverse=True)
    giver = pairs // targets
    likelihood = np.ones(len(pairs))
    for _ in range(rounds):
        share = likelihood[link]
        share /= np.bincount(occurrence, share)[occurrence]
        expected = np.bincount(link, share)
        likelihood = expected / np.bincount(giver, expected)[giver]
    own = giver < sources
    return csr_array((likelihood[own], (giver[own], pairs[own] % targets)), shape=(sources, targets))
