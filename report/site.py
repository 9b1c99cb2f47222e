"""The report and the executed notebooks as static HTML: one folder that opens from disk, without network or scripts.

Images are inside the pages, with their alt texts; tables scroll sideways on a phone.
"""

from __future__ import annotations

import base64
import html
import re
import shutil
from pathlib import Path
from typing import Any

import mistune
import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from mistune.util import safe_entity
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from xai_utils.files import ROOT, write_text
from xai_utils.study.config import Study
from xai_utils.study.results import folders

TEMPLATES = ROOT / "report" / "template"


def build(study: Study) -> Path:
    """Write index.html and a page a notebook beside the study's report; returns the folder."""
    place = folders(study)
    folder = place.blog.parent / "site"
    shutil.rmtree(folder, ignore_errors=True)
    notebooks = sorted(place.notebooks.glob("[0-9][0-9]_*.ipynb"))
    links = [("index.html", "Report"), *((f"{path.stem}.html", name(path)) for path in notebooks)]
    write_text(folder / "index.html", page("Report", report(place.blog / "index.md"), links))
    for path in notebooks:
        write_text(folder / f"{path.stem}.html", page(name(path), notebook(path), links))
    return folder


def name(path: Path) -> str:
    """
    >>> name(Path("02_integrated_gradients.ipynb"))
    '02 integrated gradients'
    """
    return path.stem.replace("_", " ")


def page(title: str, body: str, links: list[tuple[str, str]]) -> str:
    """One whole page around a body of HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=True, keep_trailing_newline=True
    )
    colours = HtmlFormatter().get_style_defs(".highlight")
    return environment.get_template("page.html.j2").render(
        title=title, body=Markup(body), links=links, colours=Markup(colours)
    )


class _Embedding(mistune.HTMLRenderer):
    """HTML with local images inside; markup in the text stays text."""

    def __init__(self, folder: Path) -> None:
        super().__init__(escape=True)
        self.folder = folder

    def text(self, text: str) -> str:
        """Character references of the Markdown stay what they are; mistune would escape them once more."""
        return safe_entity(text)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        data = base64.b64encode((self.folder / url).read_bytes()).decode()
        alt = html.unescape(html.unescape(re.sub(r"<[^>]*>", "", text)))
        return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'


def report(path: Path) -> str:
    """The body of the report's Markdown as HTML, without its front matter."""
    text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(mistune.create_markdown(renderer=_Embedding(path.parent), plugins=["table"])(text))


def notebook(path: Path) -> str:
    """The body of an executed notebook as HTML: nbconvert's plain template, cleaned of scripts."""
    exporter = HTMLExporter(template_name="basic", sanitize_html=True, embed_images=True)
    body, _ = exporter.from_notebook_node(_read(path))
    return str(body)


def _read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)
