"""What the adapter learns, and what it must not forget: the English texts of the corpus by kind, as windows of tokens.

Help is desktop help, office help and handbooks. So that the adapter changes what the model says about programs and
little else, every step also reads text of another kind, on which it is held to the base's own predictions (train.py).
That text is aphorisms alone: stories, manual pages and programs' messages are in no training window at all, and show
whether holding it there holds elsewhere.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from recipes.token_substitution import prepare
from recipes.token_substitution.corpus import Corpus, Text, grams, key_of, sentences

HELP = ("desktop help", "office help", "handbooks")
HELD = ("aphorisms",)
GROUPS: Mapping[str, Collection[str]] = {"help": HELP, "aphorisms and stories": ("aphorisms", "stories")}


def english(texts: Corpus, split: str, kinds: Collection[str]) -> list[Text]:
    """The English texts of these kinds in this half of the split."""
    return [text for text in texts.select(split, "en") if text.kind in kinds]


def windows(
    texts: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    kinds: Collection[str],
    shape: tuple[int, int],
    start: int,
    seed: int,
) -> Int[Tensor, "window position"]:
    """Training windows of `shape` from all documents of `kinds` together, so that each kind comes as often as it is
    large; `start` stands in front of each window and each document."""
    together = Corpus(tuple(replace(text, kind="") for text in english(texts, "train", kinds)), ())
    return prepare.training_windows(together, tokenizer, *shape, start, seed, english_share=1.0)


def in_training(prompts: Collection[str], texts: Corpus, kinds: Collection[str] = HELP + HELD) -> dict[str, str]:
    """Those prompts of which some run of four words stands in a training text, each with the first such run.

    A prompt of fewer words counts when all of it stands there.
    """
    wanted = {run: prompt for prompt in prompts for run in grams(key_of(prompt))}
    sizes, found = {len(run) for run in wanted}, dict[str, str]()
    for text in english(texts, "train", kinds):
        for words in map(key_of, sentences(text.text)):
            for size in sizes:
                for place in range(len(words) - size + 1):
                    run = words[place : place + size]
                    if run in wanted:
                        found.setdefault(wanted[run], " ".join(run))
    return found
