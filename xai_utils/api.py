"""The front door: load a model, explain a sentence, compare two models.

A study computes the same on files: the same cases, targets, methods and defaults, kept in a cache.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xai_utils.attribution.absence import with_common_mean
from xai_utils.attribution.methods import DEFAULT_METHOD, METHODS, method_named
from xai_utils.attribution.result import Attribution
from xai_utils.attribution.swap import Swap, swap
from xai_utils.attribution.target import make_target
from xai_utils.errors import UserError, nearest
from xai_utils.evaluation.comparison import Comparison
from xai_utils.evaluation.trust import assess
from xai_utils.fields import checked
from xai_utils.models import loading
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel
from xai_utils.models.wrapping import wrap
from xai_utils.study.config import setting
from xai_utils.text.cases import Case, prepare
from xai_utils.text.entry import Reading, TextEntry

__all__ = ["assess", "compare", "explain", "load", "wrap"]

READING = Reading()
TESTED = 8  # words: up to here the deletion tests take about as long as the scores do


def load(
    name: str,
    adapter: str | None = None,
    *,
    label: str | None = None,
    revision: str | None = None,
    tokenizer: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    document_start: str | None = None,
) -> LoadedModel:
    """Load a causal language model: a built-in name, a Hub id, a folder of safetensors, or a GGUF file.

    `adapter` is a PEFT folder, which is merged into the weights. `label` names the model in results; without it the
    last part of the adapter's or model's name does. Raises UserError, one line, for whatever is wrong with a name, its
    files, the Hub or the device.
    """
    if not isinstance(name, str | Path):
        raise UserError(
            f"a {type(name).__name__} is no name of a model; expected a name, an id or a path; "
            "for a model in memory use wrap(model, tokenizer)"
        )
    entry = checked(
        ModelEntry,
        label=label or label_of(str(adapter or name)),
        role="adapted" if adapter else "base",
        model=str(name),
        adapter=None if adapter is None else str(adapter),
        revision=revision,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        document_start=document_start,
    )
    return loading.load(entry)


def label_of(name: str) -> str:
    """A label out of a model's name.

    >>> label_of("models/smollm2-135m-ru-ts/"), label_of("meta-llama/Llama-3.2-1B"), label_of("~/a b.gguf")
    ('smollm2-135m-ru-ts', 'Llama-3.2-1B', 'a-b')
    """
    last = Path(name).expanduser().name.removesuffix(".gguf")
    return re.sub(r"[^\w.-]+", "-", last).strip("-.")[:64].rstrip("-.") or "model"


def explain(
    text: str,
    model: LoadedModel,
    answer: str | None = None,
    *,
    method: str = DEFAULT_METHOD,
    contrast: str | None = None,
    target: str = "logprob",
    chat: bool = False,
    prefix: str = READING.prefix,
    max_tokens: int = READING.max_tokens,
    normalisation: str = READING.normalisation,
    **settings: Any,
) -> Attribution:
    """Explain why a model goes on with an answer: a score for every word of the text, and what is proven of them.

    Without an `answer` the model's own next token is explained. `answer` and `contrast` are written with their leading
    space. `target` is logprob, logit, contrast (which needs a `contrast`) or sum_logits; `settings` are the method's
    own (`python -m xai_utils methods`). The result carries its trust card; its deletion tests are made for up to TESTED
    words, beyond them by `assess`. Raises UserError, one line, for whatever is wrong with any of them.
    """
    line = method_named(method)
    own = {name: _setting(method, name, value) for name, value in settings.items()}
    reading = checked(Reading, prefix=prefix, max_tokens=max_tokens, normalisation=normalisation)
    case = _case(text, model, answer, contrast, chat, reading)
    found = line.function(model, case, make_target(model, case, target), **(line.fixed | own))
    return with_card(model, dataclasses.replace(found, method=method))


def with_card(
    model: LoadedModel, found: Attribution, tests: bool = True, asked: Mapping[Any, Any] | None = None
) -> Attribution:
    """An explanation with its trust card; `tests` allows deletion tests, which are made for up to TESTED words.

    `asked` is the case's row of the table `behaviour`, where it is known.
    """
    card = assess(model, found, tests=tests and len(found.words) <= TESTED, asked=asked)
    return dataclasses.replace(found, trust=card)


def compare(
    text: str,
    base: LoadedModel,
    other: LoadedModel,
    answer: str | None = None,
    *,
    parts: bool = True,
    **settings: Any,
) -> Comparison:
    """Explain one answer under two models, on one scale, and what makes the difference.

    Takes the settings of `explain`. Models of one width share the embedding that stands for an absent word. `parts`
    asks for the difference to be shared among what differs between models of one shape: how each word is read, how the
    answer is written, groups of layers (swap attribution; 2^parts mixed models). Raises UserError without an answer,
    since each model's own next word would be another question, and where `explain` does.
    """
    if base.label == other.label:
        raise UserError(f"both models are labelled {base.label!r}; give one another: load(..., label='other')")
    models = base, other = with_common_mean([base, other])
    if answer is None:
        own = [_goes_on(text, model, settings) for model in models]
        raise UserError(
            f"two models are compared on one answer, and none is given; {base.label} goes on with {own[0]!r}, "
            f"{other.label} with {own[1]!r}: use one of these, or another"
        )
    first, second = (explain(text, model, answer, **settings) for model in models)
    return compared(base, other, first, second, parts=parts)


def compared(
    base: LoadedModel, other: LoadedModel, first: Attribution, second: Attribution, *, parts: bool = True
) -> Comparison:
    """Two explanations of one answer side by side; with `parts` the difference is shared out, where it can be."""
    return Comparison(first, second, *(_shared(base, other, first, second) if parts else (None, "")))


def _goes_on(text: str, model: LoadedModel, settings: dict[str, Any]) -> str:
    """The model's own next token."""
    reading = checked(Reading, **{name: settings[name] for name in Reading.model_fields if name in settings})
    return make_target(model, _case(text, model, None, None, settings.get("chat", False), reading)).text


def _shared(base: LoadedModel, other: LoadedModel, first: Attribution, second: Attribution) -> tuple[Swap | None, str]:
    """The swap attribution of two results, or why there is none."""
    try:
        return swap(base, other, first.case, second.case, first.target.kind), ""
    except UserError as error:
        return None, str(error)


def _setting(method: str, name: str, value: Any) -> Any:
    known = METHODS[method].settings
    if name not in known:
        raise UserError(f"{method} has no setting {name!r}; {nearest(name, known) if known else 'it has none'}")
    return setting(name, value)


def _case(
    text: str, model: LoadedModel, answer: str | None, contrast: str | None, chat: bool, reading: Reading
) -> Case:
    if not isinstance(model, LoadedModel):
        raise UserError(
            f"the model is a {type(model).__name__}; expected what load('...') or wrap(model, tokenizer) gives"
        )
    entry = checked(TextEntry, id="text", text=text, answer=answer, contrast=contrast, chat=chat)
    return prepare(model, entry, reading)
