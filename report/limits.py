"""What the results of a study do not show, computed from its tables: `limit(measured) -> Sentence | None`."""

from __future__ import annotations

import numpy as np

from report.observations import convergence, one_model
from report.sentences import Sentence
from xai_utils.study.tables import IG, Measured

RARE = 0.001  # a probability


def extent(found: Measured) -> Sentence:
    """How much everything rests on."""
    languages = {text.language for text in found.study.texts} - {None}
    facts = {"texts": len(found.study.texts), "models": len(found.study.models), "languages": len(languages)}
    form = "Everything above rests on {texts:#text/texts} and {models:#model/models}"
    if languages:
        form += ", in {languages:#language/languages}"
    return Sentence(form + "; a test over texts finds no effect that is not large or regular.", facts)


def certificates(found: Measured) -> Sentence | None:
    """What did not converge, where something did not."""
    if found.chosen("certificates", IG).empty:
        return None
    said = convergence(found)
    return said if said is not None and said.facts["failed"] else None


def truncated(found: Measured) -> Sentence | None:
    """Texts that were cut, with the tokens they lost."""
    table = found.table("tokenization")
    cut = table[table["truncated"] > 0] if len(table) else table
    if cut.empty:
        return None
    cases = tuple(
        Sentence(
            "“{text}” under {label} by {lost:#token/tokens}", dict(zip(("text", "label", "lost"), row, strict=True))
        )
        for row in cut[["text", "model", "truncated"]].itertuples(index=False)
    )
    return Sentence(
        "{n:#text was/texts were} cut to {most} tokens: {cases}.",
        {"n": cut["text"].nunique(), "most": found.study.max_tokens, "cases": cases},
    )


def no_controls(found: Measured) -> Sentence | None:
    """A pair without controls cannot tell the new tokenizer from the training."""
    if found.adapted is None or any(model.role == "control" for model in found.study.models):
        return None
    return Sentence(
        "No control models are explained in this study: what the new tokenizer does alone and what training added are "
        "not told apart."
    )


def given_answers(found: Measured) -> Sentence:
    """What is explained is one scalar a text."""
    given = len(found.answered)
    return Sentence(
        "What is explained is one scalar a text: in {given} of {n} it asks for an answer that a person wrote, else for "
        "the model's own next token. Another answer may rest on other words.",
        {"given": given, "n": len(found.study.texts)},
    )


def unlikely_answers(found: Measured) -> Sentence | None:
    """Answers that a model would hardly give are explained all the same."""
    rows = found.chosen("certificates", IG)
    rows = rows[(rows["target"] == "logprob") & rows["text"].isin(found.answered)] if len(rows) else rows
    if rows.empty:
        return None
    table = rows.pivot_table(index="text", columns="model", values="f_input")
    parts = tuple(
        Sentence(
            "{k} of {n} under {label}",
            {"k": int((table[label] < np.log(RARE)).sum()), "n": int(table[label].count()), "label": label},
        )
        for label in found.pair
        if label in table
    )
    return Sentence(
        "The answer has a probability below {rare:.1%} in {parts}: there the scores say what moves an answer that the "
        "model would hardly give.",
        {"rare": RARE, "parts": parts},
    )


def outside_words(found: Measured) -> Sentence | None:
    """White space that is a token of its own has a score, and no word on which two models could be compared."""
    if found.adapted is None:
        return None
    rows = found.chosen("word_scores", IG)
    rows = rows[~rows["is_word"].astype(bool) & rows["score"].notna()] if len(rows) else rows
    if rows.empty:
        return None
    cases = tuple(
        Sentence(
            "{total:+.2f} {unit} on “{text}” under {label}",
            {"total": part["score"].sum(), "unit": part["unit"].iloc[0], "text": text, "label": label},
        )
        for (text, label), part in rows.groupby(["text", "model"], sort=False)
    )
    return Sentence(
        "Tokens that belong to no word (white space, special ones) are left out of the comparison: {cases}.",
        {"cases": cases},
    )


ASKED = (one_model, extent, certificates, truncated, no_controls, outside_words, given_answers, unlikely_answers)


def limits(found: Measured) -> list[Sentence]:
    """All that hold."""
    said = (limit(found) for limit in ASKED)
    return [sentence for sentence in said if sentence is not None]
