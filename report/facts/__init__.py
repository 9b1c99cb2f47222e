"""What a study found, as small typed values: computed from its tables, without a word of prose.

Templates say them. A part whose table a study has not got is None, and is not said. `numbers` gives every number that a
page may print.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from report.facts.attention import Attention, attention
from report.facts.behaviour import Behaviour, behaviour
from report.facts.claims import Claims, claims
from report.facts.difference import Layers, Swap, layers, swap
from report.facts.scope import Adaptation, Scope, adaptation, scope
from report.facts.trust import Trust, trust
from report.facts.words import Words, words
from xai_utils.study.tables import StudyTables


@dataclass(frozen=True)
class Facts:
    scope: Scope
    adaptation: Adaptation | None
    behaviour: Behaviour | None
    swap: Swap | None
    layers: Layers | None
    words: Words | None
    trust: Trust
    attention: Attention | None
    claims: Claims | None


_last: list[tuple[StudyTables, Facts]] = []  # a section's picture and its sentences ask for the same


def facts(found: StudyTables, evidence: Mapping[str, pd.DataFrame] | None = None) -> Facts:
    """All facts of a study; `evidence` holds the tables of the long studies on the same models, by name."""
    if evidence:
        return _computed(found, evidence)
    if not (_last and _last[0][0] is found):
        _last[:] = [(found, _computed(found, {}))]
    return _last[0][1]


def _computed(found: StudyTables, evidence: Mapping[str, pd.DataFrame]) -> Facts:
    asked = behaviour(found)
    headline = asked.headline.id if asked and asked.headline else found.headline
    moved = [prompt.id for prompt in asked.moved] if asked else [text.id for text in found.study.texts]
    return Facts(
        scope=scope(found),
        adaptation=adaptation(found),
        behaviour=asked,
        swap=swap(found, headline, moved),
        layers=layers(found, headline, moved),
        words=words(found, headline, moved),
        trust=trust(found, evidence, headline),
        attention=attention(found),
        claims=claims(found),
    )


def numbers(value: Any) -> Iterator[float]:
    """Every number inside facts, however deep."""
    if dataclasses.is_dataclass(value):
        names = [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        for name in [*(field.name for field in dataclasses.fields(value)), *names]:
            yield from numbers(getattr(value, name))
    elif isinstance(value, tuple):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)
