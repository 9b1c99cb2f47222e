"""Tables -> report: a Hugo page with its figures beside it, every number, rank and direction computed.

The template holds headings and what a method is; sentences with a number come from observations.py and claims.py, and
the template is rendered so that whatever is not a finished sentence or table is escaped as text.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from report import claims, observations, observed_methods, site
from report.evidence_sentences import chosen_methods, corpus_tested, over_corpus
from report.formats import to_markdown
from report.limits import limits
from report.sentences import Sentence, escape
from xai_utils.attribution.methods import METHODS, method_name
from xai_utils.files import ROOT, write_text, write_whole
from xai_utils.plots.style import alt_text
from xai_utils.study import evidence
from xai_utils.study.config import Study
from xai_utils.study.results import folders, rounded, score_lists
from xai_utils.study.tables import IG, ORIGINAL, Measured, measured

TEMPLATES = ROOT / "report" / "template"
README = ROOT / "README.md"
LARGEST = 8  # rows of a table of differences


class Finished(str):
    """Markdown that is not to be escaped again."""


def build(study: Study) -> Path:
    """Write the report of a study, and the site beside it; returns the page.

    Raises UserError when the notebooks have written no scores or no figures yet.
    """
    found = measured(study)
    place = folders(study)
    figures = Figures(place.figs)
    text = render(found, figures)
    shutil.rmtree(place.blog / "figs", ignore_errors=True)
    for name in sorted(figures.used):
        write_whole(place.blog / "figs" / name, partial(shutil.copyfile, place.figs / name))
    page = write_text(place.blog / "index.md", text)
    if study.published:
        write_text(README, with_finding(README.read_text(encoding="utf-8"), found, figures))
    site.build(study)
    return page


def with_finding(readme: str, found: Measured, figures: Figures) -> str:
    """The README with the report's first sentences and its first figure between the marks that are kept for them."""
    said = [observations.largest_differences(found), observations.real_differences(found)]
    picture = figures.show("words", found.adapted or found.base, headline(found)).replace(
        "(figs/", "(report/blog/figs/"
    )
    block = "\n\n".join([str(sentence) for sentence in said if sentence] + [picture.strip()])
    return re.sub(
        r"(<!-- finding[^>]*-->).*?(<!-- /finding -->)",
        lambda mark: f"{mark[1]}\n{block}\n{mark[2]}",
        readme,
        flags=re.DOTALL,
    )


def render(found: Measured, figures: Figures) -> str:
    """The page as Markdown with its front matter."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        finalize=_finished,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    said = {observation.__name__: observation(found) for observation in observations.ALL + observed_methods.ALL}
    studies = evidence.read() if found.study.published else {}  # the long studies share the published one's models
    former = evidence.outdated(studies, found.study)
    current = {} if former else studies
    text = environment.get_template("index.md.j2").render(
        title=json.dumps(title(found).plain, ensure_ascii=False).translate({ord("{"): "\\u007b"}),
        heading=title(found),
        found=found,
        said=said,
        verdicts=Finished(to_markdown(verdict_table(found, over_corpus(current)))),
        tables={name: Finished(to_markdown(table)) for name, table in tables(found).items() if len(table)},
        figure=figures.show,
        headline=headline(found),
        raw=lambda label: Finished(fenced(raw_scores(found, label))),
        corpus=corpus_tested(current),
        former=computed_before(former),
        evidence={name: sentences for name, sentences in evidence_of(found, studies, current).items() if sentences},
        limits=limits(found),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def computed_before(labels: list[str]) -> Sentence | None:
    """That the long studies are those of an earlier checkpoint, where they are."""
    if not labels:
        return None
    return Sentence(
        "**Of an earlier checkpoint**: {labels} had other files when these studies were computed. What they say of "
        "models other than the base is about those, and nothing above rests on it.",
        {"labels": tuple(labels)},
    )


def evidence_of(
    found: Measured, studies: Mapping[str, pd.DataFrame], current: Mapping[str, pd.DataFrame]
) -> dict[str, list[Sentence]]:
    """What the tables of the long studies add, by heading; how their choice of methods does on this page's cases where
    they are of this page's models (`current`)."""
    told, here = evidence.said(studies), chosen_methods(current, found.table("faithfulness"))
    return told | {"Methods": told["Methods"] + [here]} if here else told


def _finished(value: Any) -> str:
    """What the template prints: sentences and finished Markdown as they are, all else escaped."""
    if isinstance(value, Sentence | Finished):
        return str(value)
    return escape(str(value))


def title(found: Measured) -> Sentence:
    if found.adapted is None:
        return Sentence("What {label} looks at, and how far that can be trusted", {"label": found.base})
    return Sentence(
        "What changed between {base} and {other}, and how far the answer can be trusted",
        {"base": found.base, "other": found.adapted},
    )


def headline(found: Measured) -> Sentence:
    """The caption of the first figure."""
    first = found.study.texts[0]
    given = (first.target or found.study.target) == "logprob" and first.id in found.answered
    goal = "the log-probability of the answer" if given else "the target"
    rows = observations.pair_rows(found)
    if rows.empty or found.headline not in set(rows["text"]):
        return Sentence(
            "What each word adds to {goal} under {label}; the grey bar is its error.",
            {"goal": goal, "label": found.base},
        )
    return Sentence(
        "Left: what each word adds to {goal} under both models, at the {baseline} baseline. Right: the difference over "
        "its noise floor; a filled mark counts.",
        {"goal": goal, "baseline": found.study.baseline},
    )


@dataclass
class Figures:
    """The figures of a study, found by kind and model; remembers which ones a page shows."""

    folder: Path

    def __post_init__(self) -> None:
        self.used: set[str] = set()

    def show(self, kind: str, label: str, caption: Sentence | str = "") -> Finished:
        """A figure with its alt text and caption, as Markdown; nothing where the study has no such figure."""
        names = sorted(path.name for path in self.folder.glob(f"[0-9][0-9]_{kind}.{label}.png"))
        if not names:
            return Finished("")
        self.used.add(names[0])
        alt = escape(alt_text(self.folder / names[0]))
        under = f"  \n*{_finished(caption)}*" if caption else ""
        return Finished(f"![{alt}](figs/{names[0]}){under}\n")


# ---- tables of the page


def tables(found: Measured) -> dict[str, pd.DataFrame]:
    """The tables that the page prints, by name; one that there is nothing for is empty."""
    return {
        "models": models_table(found),
        "quality": quality_table(found),
        "samples": samples_table(found),
        "texts": texts_table(found),
        "methods": methods_table(found),
        "settings": settings_table(found),
        "differences": differences_table(found),
        "questions": questions_table(found),
        "leaderboard": leaderboard_table(found),
        "agreement": agreement_table(found),
    }


def models_table(found: Measured) -> pd.DataFrame:
    rows = [
        {
            "label": entry.label,
            "role": entry.role,
            "model": entry.model,
            "adapter": entry.adapter,
            "rows": entry.rows,
            "precision": entry.dtype,
        }
        for entry in found.study.models
    ]
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def quality_table(found: Measured) -> pd.DataFrame:
    """The adapted model on held-out text, before and after its training, beside its base."""
    table = found.table("evaluation")
    if table.empty:
        return table
    columns = ["language", "model", "tokens_per_word", "tokens_of_base", "bits_per_character"]
    rows = table[(table["label"] == found.adapted) & (table["kind"] == "all")]
    rows = rows[[*columns, "bits_per_character_of_base"]].sort_values("language", ascending=False, kind="stable")
    return rows.rename(columns=lambda name: str(name).replace("_of_base", ", over the base's"))


def samples_table(found: Measured) -> pd.DataFrame:
    """What the base and its adaptation write behind the same prompts."""
    table = found.table("samples")
    if table.empty:
        return table
    rows = table[(table["label"] == found.adapted) & table["model"].isin(["base", "trained"])]
    return rows[["prompt", "model", "continuation"]]


def texts_table(found: Measured) -> pd.DataFrame:
    """The texts, with the log-probability of the answer (or whatever is explained) under the pair."""
    columns = ("id", "language", "group", "text", "answer")
    table = pd.DataFrame([{name: getattr(text, name) for name in columns} for text in found.study.texts])
    rows = found.chosen("certificates", IG)
    for label in found.pair if len(rows) else []:
        value = rows[rows["model"] == label].set_index("text")["f_input"]
        table[f"target under {label}"] = table["id"].map(value)
    return table


def methods_table(found: Measured) -> pd.DataFrame:
    rows = [{"method": method_name(name), "what it is": METHODS[name].description} for name in METHODS]
    used = {method_name(name) for name in found.study.methods}
    return pd.DataFrame([row for row in rows if row["method"] in used])


def settings_table(found: Measured) -> pd.DataFrame:
    study = found.study
    names = ["prefix", "target", "baseline", "baselines", "deletions", "keep_sink", "tolerance", "budget"]
    names += ["max_tokens", "normalisation", "steps", "draws", "sigma", "seed"]
    values = {name: getattr(study, name) for name in names}
    shown = {name: ", ".join(value) if isinstance(value, tuple) else str(value) for name, value in values.items()}
    return pd.DataFrame([{"setting": name.replace("_", " "), "value": value} for name, value in shown.items()])


def differences_table(found: Measured) -> pd.DataFrame:
    """The largest differences of integrated gradients over all texts, real ones first."""
    rows = observations.pair_rows(found)
    if rows.empty:
        return rows
    rows = rows.assign(counts=observations.real(rows), size=rows["difference"].abs())
    rows = rows.sort_values(["counts", "size"], ascending=False, kind="stable").head(LARGEST)
    columns = ["text", "word", "pieces_base", "pieces_other", "score_base", "score_other", "difference", "floor"]
    return rows[[*columns, "difference_low", "difference_high", "counts"]]


def questions_table(found: Measured) -> pd.DataFrame:
    table = found.table("questions")
    columns = ["asked", "other", "n", "changed", "mean_base", "mean_other", "difference", "low", "high", "dz"]
    return table[[*columns, "p_adjusted", "verdict"]] if len(table) else table


def leaderboard_table(found: Measured) -> pd.DataFrame:
    """The deletion tests, without columns that say the same in every row."""
    table = found.table("leaderboard")
    if table.empty:
        return table
    named = table.assign(method=table["method"].map(method_name))
    return named.drop(columns=["study", "role", "texts", "baseline", "sink"])


def agreement_table(found: Measured) -> pd.DataFrame:
    """Mean rank correlation and overlap of every two methods, by model."""
    table = found.table("agreement")
    if table.empty:
        return table
    means = table.groupby(["method_a", "method_b", "model"], sort=False)[["spearman", "top_k_overlap"]].mean()
    named = means.rename(columns={"spearman": "rank correlation", "top_k_overlap": "overlap of the highest"})
    both = named.reset_index()
    return both.assign(method_a=both["method_a"].map(method_name), method_b=both["method_b"].map(method_name))


def verdict_table(found: Measured, corpus: Mapping[str, Sentence]) -> pd.DataFrame:
    """Claims of the original study with their verdicts; sentences are finished Markdown already.

    `corpus` says what became of a claim over the corpus; a column, where there is any.
    """
    rows = [
        {"the original says": verdict.claim, "here": Sentence(f"**{verdict.outcome}**"), "because": verdict.because}
        | ({"over the corpus": corpus.get(verdict.claim.form, Sentence(""))} if corpus else {})
        for verdict in claims.verdicts(found)
    ]
    return pd.DataFrame(rows)


# ---- raw scores


def raw_scores(found: Measured, label: str) -> list[dict[str, Any]]:
    """Token scores and completeness errors of one model on the first text: the study's setting, the original's."""
    here = {"model": label, "text": found.headline}
    entries = []
    for method in (IG, ORIGINAL):
        parts = [found.chosen(name, method) for name in ("attributions", "certificates")]
        if all(len(part) for part in parts):
            entries += score_lists(*(part[(part[list(here)] == here).all(axis=1)] for part in parts))
    return list(rounded(entries))


def fenced(entries: list[dict[str, Any]]) -> str:
    """JSON in a code block that neither backticks nor two braces inside it can leave; a score pair a line.

    >>> print(fenced([{"method": "x", "converged": True, "scores": [["```{{", 1.5]]}]))
    ```json
    [
     {
      "method": "x",
      "converged": true,
      "scores": [
       ["\\u0060\\u0060\\u0060{\\u007b", 1.5]
      ]
     }
    ]
    ```
    """
    text = json.dumps(entries, ensure_ascii=False, indent=1)
    for pair in (pair for entry in entries for pair in entry["scores"]):
        long = json.dumps(pair, ensure_ascii=False, indent=1).replace("\n", "\n   ")
        text = text.replace(long, json.dumps(pair, ensure_ascii=False), 1)
    return "```json\n" + text.replace("`", "\\u0060").replace("{{", "{\\u007b") + "\n```"
