"""Two models on the same words: token scores of any two tokenizers, laid side by side.

Words belong to the normalised text, so alignment is a join once each model's token scores are on words: a token's
weight goes to the words whose characters it covers (text.py), which conserves the sum of additive scores. What the
join adds is the check that both models did read the same words.
"""

from __future__ import annotations

import pandas as pd

from xai_utils.errors import UserError

WORD_KEYS = ["text", "word", "start", "end"]
SETTING = ["target", "target_text", "method", "baseline", "sink", "unit", "additive"]


def side_by_side(word_scores: pd.DataFrame, base: str, other: str) -> pd.DataFrame:
    """One row a word, text and setting with `_base` and `_other` columns for score, error, pieces and a panel's range.

    Rows that are no words (special tokens, white space) are left out: the other model may have none. A word that one
    model did not read (its text was cut) is left out too; the caller sees it by counting. Raises UserError when a model
    is not in the table, or when the same text has other words or no common target for the two models.
    """
    for label in (base, other):
        if label not in set(word_scores["model"]):
            raise UserError(f"no scores of model '{label}'; expected one of {', '.join(word_scores['model'].unique())}")
    words = word_scores[word_scores["is_word"].astype(bool)]
    left, right = (words[words["model"] == label] for label in (base, other))
    for text in sorted(set(left["text"]) & set(right["text"])):
        _check_same(left[left["text"] == text], right[right["text"] == text], text, base, other)
    ranges = [name for name in ("low", "high") if name in words]
    columns = ["study", *WORD_KEYS, *SETTING, "score", "error", "pieces", *ranges]
    joined = left[columns].merge(
        right[columns].drop(columns="study"),
        on=[*WORD_KEYS, *SETTING],
        suffixes=("_base", "_other"),
        validate="one_to_one",
    )
    return joined.assign(base=base, other=other)


def _check_same(left: pd.DataFrame, right: pd.DataFrame, text: str, base: str, other: str) -> None:
    """The same words, of which a cut text has fewer, and at least one target in common."""
    read = [sorted(set(part[["start", "end", "word"]].itertuples(index=False, name=None))) for part in (left, right)]
    both = min(map(len, read))
    if read[0][:both] != read[1][:both]:
        raise UserError(
            f"text '{text}' has other words under '{other}' than under '{base}'; expected the same normalised text for "
            "both; run the earlier notebooks again for both models"
        )
    goals = [set(part[["target", "target_text"]].itertuples(index=False, name=None)) for part in (left, right)]
    if not goals[0] & goals[1]:
        raise UserError(
            f"text '{text}' has another target under '{other}' than under '{base}' ({goals[1].pop()[1]!r} and "
            f"{goals[0].pop()[1]!r}); expected one for both; give the text an answer"
        )
