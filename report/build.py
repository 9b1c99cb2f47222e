"""Tables -> report: a page and its appendix as Markdown for Hugo, their figures beside them.

Facts are computed from tables (facts/), words stand in templates (template/), and page.py joins them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from report import appendix
from report.facts import Facts, facts
from report.page import Page
from report.pictures import Pictures
from xai_utils.attribution.methods import METHODS
from xai_utils.errors import UserError
from xai_utils.files import ROOT, write_text
from xai_utils.study import evidence
from xai_utils.study.config import PUBLISHED, Study, load_study
from xai_utils.study.results import folders
from xai_utils.study.tables import StudyTables, read_tables

README = ROOT / "README.md"


def write(study: Study) -> dict[str, str]:
    """Write the report of a study and its appendix as Markdown, with their figures.

    Returns the HTML that the site shows instead of a figure, by the figure's file name. The published study's report
    covers the other published pair too, which has a page of its own beside it. Raises UserError when the notebooks
    have written no scores yet.
    """
    found, folder = read_tables(study), folders(study).blog
    pictures = {"index": Pictures(found, facts(found, long_studies(found)), folder / "figs")}
    for other in beside(study):
        pictures[other.study.name] = Pictures(other, facts(other), folder / "figs", prefix=f"{other.study.name}_")
    second = [_second(stem, one) for stem, one in pictures.items() if stem != "index"]
    for stem, one in pictures.items():
        _write(folder, stem, one, Markup("\n").join(second if stem == "index" else []))
    _clear(folder)
    if study.leads:
        own = pictures["index"]
        write_text(README, with_finding(README.read_text(encoding="utf-8"), own.facts, own))
    return {name: html for one in pictures.values() for name, html in one.inserts.items()}


def _clear(folder: Path) -> None:
    """Remove the figures that no page shows; those of a published study that has not run here are its page's."""
    shown = "".join(page.read_text(encoding="utf-8") for page in folder.glob("*.md"))
    for figure in folder.glob("figs/*.png"):
        if f"figs/{figure.name}" not in shown:
            figure.unlink()


def beside(study: Study) -> list[StudyTables]:
    """The other published studies, where their notebooks have run; of another study none."""
    found = []
    for path in PUBLISHED[1:] if study.leads else ():
        try:
            found.append(read_tables(load_study(path)))
        except UserError:  # not run yet
            continue
    return found


def _write(folder: Path, stem: str, pictures: Pictures, second: Markup) -> None:
    """One study's page and its appendix."""
    tables = appendix.parts(pictures.found, long_studies(pictures.found))
    for name, template in ((stem, "index.md.j2"), (appendix_of(stem), "appendix.md.j2")):
        text, _ = render(template, pictures.facts, pictures, stem=stem, second=second, **tables)
        write_text(folder / f"{name}.md", text)


def _second(stem: str, pictures: Pictures) -> Markup:
    return Markup(render("sections/second.md.j2", pictures.facts, pictures, stem=stem)[0])


def appendix_of(stem: str) -> str:
    return "appendix" if stem == "index" else f"{stem}-appendix"


def long_studies(found: StudyTables) -> dict[str, pd.DataFrame]:
    """Tables of the long studies, where they were computed with the models of this study as they are now."""
    tables = evidence.read() if found.study.leads else {}
    return {} if evidence.outdated(tables, found.study) else tables


def context(facts: Facts, pictures: Pictures | None = None) -> dict[str, Any]:
    """What a template may name: the parts of the facts, `figure`, and what a method is in a few words."""
    parts = {name: getattr(facts, name) for name in vars(facts)}
    described = {name: METHODS[name].description for name in facts.scope.methods if name in METHODS}
    return parts | {"figure": pictures.show if pictures else _no_figure, "described": described}


def _no_figure(name: str) -> Markup:
    return Markup("")


def render(
    template: str, facts: Facts, pictures: Pictures | None = None, page: Page | None = None, **more: Any
) -> tuple[str, Page]:
    """A template with a study's facts, and the page that recorded its numbers."""
    page = page or Page()
    stem = more.pop("stem", "index")
    files = "report/tables/" if stem == "index" else f"report/tables/{stem}/"
    links = {"page": f"{stem}.md", "appendix": f"{appendix_of(stem)}.md", "files": files, "second": ""}
    return page.render(template, **context(facts, pictures) | links | more), page


def say(found: StudyTables, name: str) -> str:
    """The sentences with which a section of the report starts, as Markdown for a notebook; empty without their facts.

    `name` is that of a template in template/answers: lead, behaviour, swap, layers, words, trust, attention, claims.
    """
    own = facts(found)
    if name != "lead" and getattr(own, name) is None:
        return ""
    return render(f"answers/{name}.md.j2", own)[0]


def with_finding(readme: str, facts: Facts, pictures: Pictures) -> str:
    """The README with the report's first sentences and its first figure between the marks that are kept for them."""
    block = render("readme.md.j2", facts, pictures)[0].replace("(figs/", "(report/blog/figs/").strip()
    marks = r"(<!-- finding[^>]*-->).*?(<!-- /finding -->)"
    return re.sub(marks, lambda mark: f"{mark[1]}\n{block}\n{mark[2]}", readme, flags=re.DOTALL)
