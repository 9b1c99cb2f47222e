"""The report's figures: drawn from tables, with titles and alt texts that the template `figures.j2` says."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Image
from markupsafe import Markup
from matplotlib.figure import Figure

from report.facts import Facts, facts
from report.facts.attention import table_of_heads
from report.facts.behaviour import behaviour
from report.page import Page, escape
from xai_utils.attribution.result import Attribution
from xai_utils.plots import heatmaps, layers, leaderboard, sentence, swap, trust
from xai_utils.plots.html import sentence_html
from xai_utils.plots.style import save
from xai_utils.study.comparison import behaviours
from xai_utils.study.explainer import Explainer
from xai_utils.study.from_tables import cards_of, results_of
from xai_utils.study.results import folders
from xai_utils.study.tables import StudyTables

OTHERS = 2  # prompts whose words the page shows beside the headline's


def _sentence(found: StudyTables, facts: Facts, title: str) -> Figure | None:
    results = coloured(found, facts, [facts.words.here.id]) if facts.words else []
    return sentence.sentences(results, title) if results else None


def _sentences(found: StudyTables, facts: Facts, title: str) -> Figure | None:
    results = coloured(found, facts, others(facts))
    return sentence.sentences(results, title) if results else None


def _swap(found: StudyTables, facts: Facts, title: str) -> Figure | None:
    text = headline(found, facts)
    panels = [
        draw(table)
        for name, draw in (("bridge", swap.steps), ("swap", swap.parts))
        if len(table := pair_rows(found, name, text))
    ]
    return swap.waterfalls(panels, title) if panels else None


def _layers(found: StudyTables, facts: Facts, title: str) -> Figure | None:
    text = headline(found, facts)
    table, proofs = (pair_rows(found, name, text) for name in ("adapter_path_words", "adapter_path_certificates"))
    if table.empty:
        return None
    entry = next(entry for entry in found.study.texts if entry.id == text)
    return layers.layer_maps([layers.layer_map(table, proofs.iloc[0], f"{entry.text} →{entry.answer}")], title)


def _trust(found: StudyTables, facts: Facts, title: str) -> Figure | None:
    by_model = cards_of(found, facts.words.here.id, facts.words.method) if facts.words else {}
    return trust.cards(by_model, title) if by_model else None


def _heads(found: StudyTables, facts: Facts, title: str) -> Figure | None:
    table = table_of_heads(found)
    return heatmaps.divergence_map(table, title) if len(table) else None


def _leaderboard(found: StudyTables, facts: Facts, title: str) -> Figure | None:
    table = pd.DataFrame(map(vars, facts.trust.board))
    return leaderboard.shares(table, title, facts.trust.ceiling) if len(table) else None


def headline(found: StudyTables, facts: Facts) -> str:
    """The text that the page speaks of first."""
    return facts.behaviour.headline.id if facts.behaviour and facts.behaviour.headline else found.headline


def pair_rows(found: StudyTables, name: str, text: str) -> pd.DataFrame:
    """The rows of a table about two models that are of the study's pair and one text."""
    table = found.table(name)
    if table.empty:
        return table
    return table[(table["text"] == text) & (table["base"] == found.base) & (table["other"] == found.adapted)]


def others(facts: Facts) -> list[str]:
    """The prompts whose words are shown beside the headline's: those that the page shows, else the first ones."""
    if facts.words is None:
        return []
    scored = [one.id for one in facts.words.sentences if one.id != facts.words.here.id]
    shown = [prompt.id for prompt in facts.behaviour.shown if prompt.id in scored] if facts.behaviour else []
    return (shown or scored)[:OTHERS]


def coloured(found: StudyTables, facts: Facts, texts: list[str]) -> list[Attribution]:
    """Word scores of the page's method, text by text, the models of the pair by turns."""
    if facts.words is None:
        return []
    every = [results_of(found, text, facts.words.method) for text in texts]
    return [made[label] for made in every for label in found.pair if label in made]


def picture(found: StudyTables, name: str) -> Figure | None:
    """One figure of the report, for a notebook; None where there is nothing to draw."""
    return Pictures(found, facts(found), folders(found.study).figs).figure(name)


def leading(book: Explainer) -> str:
    """The text of a study that its notebooks look at: the report's headline, by the models' behaviour alone."""
    asked = StudyTables(book.study, {"behaviour": behaviours(book)})
    asked_for = behaviour(asked)
    return asked_for.headline.id if asked_for and asked_for.headline else asked.headline


def there(facts: Facts, name: str) -> bool:
    """Whether the facts that a figure and its title state are there."""
    change = facts.attention.change if facts.attention else None
    needs = {"heads": change, "leaderboard": facts.trust.best, "swap": facts.swap, "layers": facts.layers}
    return needs.get(name, facts.words) is not None


DRAWN: dict[str, Callable[[StudyTables, Facts, str], Figure | None]] = {
    "sentence": _sentence,
    "sentences": _sentences,
    "swap": _swap,
    "layers": _layers,
    "trust": _trust,
    "heads": _heads,
    "leaderboard": _leaderboard,
}


@dataclass
class Pictures:
    """The figures of one report, drawn when a page shows them; `inserts` holds HTML that the site shows instead."""

    found: StudyTables
    facts: Facts
    folder: Path
    prefix: str = ""  # of the files' names, where pages share a folder
    inserts: dict[str, str] = field(default_factory=dict)

    def show(self, name: str) -> Markup:
        """A figure as Markdown; nothing where the study has nothing to draw."""
        if self.draw(name) is None:
            return Markup("")
        if name in ("sentence", "sentences") and self.facts.words:
            texts = [self.facts.words.here.id] if name == "sentence" else others(self.facts)
            results = coloured(self.found, self.facts, texts)
            reach = sentence.reach_of(results)
            title = f"<p><b>{html.escape(self._said(f'{name}_title'))}</b></p>"
            self.inserts[f"{self.prefix}{name}.png"] = title + "".join(sentence_html(one, reach) for one in results)
        return Markup(f"![{escape(self._said(f'{name}_alt'))}](figs/{self.prefix}{name}.png)\n")

    def draw(self, name: str) -> Image | None:
        """Draw and save one figure; None where the study has nothing to draw."""
        fig = self.figure(name)
        return save(fig, self.folder / f"{self.prefix}{name}.png", alt=self._said(f"{name}_alt")) if fig else None

    def figure(self, name: str) -> Figure | None:
        """One figure with its title; None where the study has nothing to draw."""
        draw = DRAWN.get(name)
        return draw(self.found, self.facts, self._said(f"{name}_title")) if draw and there(self.facts, name) else None

    def _said(self, macro: str) -> str:
        parts: dict[str, Any] = {name: getattr(self.facts, name) for name in vars(self.facts)}
        return Page().line("figures.j2", macro, **parts)
