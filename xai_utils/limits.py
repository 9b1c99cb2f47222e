"""What the results of a study do not show, computed from its tables: `limit(measured) -> Sentence | None`."""

from __future__ import annotations

from xai_utils.measured import Measured
from xai_utils.observations import convergence, one_model
from xai_utils.sentences import Sentence


def extent(found: Measured) -> Sentence:
    """How much everything rests on."""
    languages = {text.language for text in found.study.texts} - {None}
    facts = {"texts": len(found.study.texts), "models": len(found.study.models), "languages": len(languages)}
    form = "Everything above rests on {texts:#text/texts} and {models:#model/models}"
    if languages:
        form += ", in {languages:#language/languages}"
    return Sentence(form + "; a test over so few texts finds large effects alone.", facts)


def certificates(found: Measured) -> Sentence | None:
    """What did not converge, where something did not."""
    if found.chosen("certificates", "integrated_gradients").empty:
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
        "The study has no control models: what the new tokenizer does alone and what training added are not told apart."
    )


def given_answers(found: Measured) -> Sentence:
    """What is explained is one scalar a text."""
    given = sum(text.answer is not None for text in found.study.texts)
    return Sentence(
        "What is explained is one scalar a text: in {given} of {n} the log-probability of an answer that a person "
        "wrote, else the model's own next token. Another answer may rest on other words.",
        {"given": given, "n": len(found.study.texts)},
    )


def limits(found: Measured) -> list[Sentence]:
    """All that hold."""
    said = (limit(found) for limit in (one_model, extent, certificates, truncated, no_controls, given_answers))
    return [sentence for sentence in said if sentence is not None]
