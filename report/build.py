"""Tables -> report: a page and its appendix as Markdown for Hugo, their figures beside them, and the site.

Facts are computed from tables (facts/), words stand in templates (template/), and page.py joins them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from report import appendix, site
from report.facts import Facts, facts
from report.page import Page
from report.pictures import Pictures
from xai_utils.attribution.methods import METHODS
from xai_utils.files import ROOT, write_text
from xai_utils.study import evidence
from xai_utils.study.config import Study
from xai_utils.study.results import folders
from xai_utils.study.tables import Measured, measured

README = ROOT / "README.md"


def build(study: Study) -> Path:
    """Write the report of a study, its appendix, and the site; returns the page.

    Raises UserError when the notebooks have written no scores yet.
    """
    found, place = measured(study), folders(study)
    long = long_studies(found)
    told = facts(found, long)
    shutil.rmtree(place.blog / "figs", ignore_errors=True)
    pictures = Pictures(found, told, place.blog / "figs")
    page = write_text(place.blog / "index.md", render("index.md.j2", told, pictures)[0])
    write_text(place.blog / "appendix.md", render("appendix.md.j2", told, pictures, **appendix.parts(found, long))[0])
    if study.leads:
        write_text(README, with_finding(README.read_text(encoding="utf-8"), told, pictures))
    site.build(study, pictures.inserts)
    return page


def long_studies(found: Measured) -> dict[str, pd.DataFrame]:
    """Tables of the long studies, where they were computed with the models of this study as they are now."""
    tables = evidence.read() if found.study.published else {}
    return {} if evidence.outdated(tables, found.study) else tables


def context(told: Facts, pictures: Pictures | None = None) -> dict[str, Any]:
    """What a template may name: the parts of the facts, `figure`, and what a method is in a few words."""
    parts = {name: getattr(told, name) for name in vars(told)}
    described = {name: METHODS[name].description for name in told.scope.methods if name in METHODS}
    return parts | {"figure": pictures.show if pictures else _no_figure, "described": described}


def _no_figure(name: str) -> Markup:
    return Markup("")


def render(
    template: str, told: Facts, pictures: Pictures | None = None, page: Page | None = None, **more: Any
) -> tuple[str, Page]:
    """A template with a study's facts, and the page that recorded its numbers."""
    page = page or Page()
    return page.render(template, **context(told, pictures) | {"second": ""} | more), page


def say(found: Measured, name: str) -> str:
    """The sentences with which a section of the report starts, as Markdown for a notebook; empty without their facts.

    `name` is that of a template in template/answers: lead, behaviour, swap, layers, words, trust, attention, claims.
    """
    told = facts(found)
    if name != "lead" and getattr(told, name) is None:
        return ""
    return render(f"answers/{name}.md.j2", told)[0]


def with_finding(readme: str, told: Facts, pictures: Pictures) -> str:
    """The README with the report's first sentences and its first figure between the marks that are kept for them."""
    block = render("readme.md.j2", told, pictures)[0].replace("(figs/", "(report/blog/figs/").strip()
    marks = r"(<!-- finding[^>]*-->).*?(<!-- /finding -->)"
    return re.sub(marks, lambda mark: f"{mark[1]}\n{block}\n{mark[2]}", readme, flags=re.DOTALL)
