"""Two models on the same words: token scores of any two tokenizers, laid side by side.

Words belong to the normalised text, so alignment is a join once each model's token scores are on words: a token's
weight goes to the words whose characters it covers (text.py), which conserves the sum of additive scores. What the
join adds is the check that both models did read the same words.
"""

from __future__ import annotations

import pandas as pd

from xai_utils.study import UserError

PLACE = ["text", "word", "start", "end"]
SETTING = ["target", "target_text", "method", "baseline", "sink", "unit", "additive"]


def side_by_side(word_scores: pd.DataFrame, base: str, other: str) -> pd.DataFrame:
    """One row a word, text and setting with `_base` and `_other` columns for score, error and pieces.

    Rows that are no words (special tokens, white space) are left out: the other model may have none. A word that one
    model did not read (its text was cut) is left out too; the caller sees it by counting. Raises UserError when a model
    is not in the table, or when the same text has other words for the two models.
    """
    for label in (base, other):
        if label not in set(word_scores["model"]):
            raise UserError(f"no scores of model '{label}'; expected one of {', '.join(word_scores['model'].unique())}")
    words = word_scores[word_scores["is_word"]]
    left, right = (words[words["model"] == label] for label in (base, other))
    columns = ["study", *PLACE, *SETTING, "score", "error", "pieces"]
    joined = left[columns].merge(
        right[columns].drop(columns="study"), on=[*PLACE, *SETTING], suffixes=("_base", "_other"), validate="one_to_one"
    )
    apart = set(left["text"]) & set(right["text"]) - set(joined["text"])
    if apart:
        raise UserError(
            f"text '{min(apart)}' has other words or another target under '{other}' than under '{base}'; expected the "
            "same normalised text and answer for both; run the earlier notebooks again for both models"
        )
    return joined.assign(base=base, other=other)


def split_tokens(shares: pd.DataFrame) -> pd.DataFrame:
    """The tokens that cover characters of more than one word, whose scores are therefore split by characters."""
    counted = shares.groupby(["text", "model", "position", "token"], as_index=False).size()
    return counted[counted["size"] > 1].rename(columns={"size": "words"})
