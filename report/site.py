"""The report and the executed notebooks as static HTML: one folder that opens from disk, without network or scripts.

Pictures lie beside the pages and open in full size by a click; tables scroll by themselves.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mistune
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from mistune.util import safe_entity
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from report.clean import clean_html
from xai_utils.files import ROOT, write_text, write_whole
from xai_utils.study.config import Study
from xai_utils.study.results import folders

TEMPLATES = ROOT / "report" / "template"
PAGES = {  # of the report, by the stem of their Markdown
    "index": "Report",
    "lora": "The second pair",
    "appendix": "Appendix",
    "lora-appendix": "Appendix to the second pair",
}

SHOWN = r'<span class="word" tabindex="0" style="\1" data-value="\2">'  # a value on hover, and on touch, by CSS alone


@dataclass(frozen=True)
class Page:
    """A page of the site: its file name without ending, its name in the navigation, its body as HTML."""

    stem: str
    name: str
    body: str


def build(study: Study, inserts: Mapping[str, str], executed: Sequence[Page]) -> Path:
    """Write a page for each part of the report and each notebook of a study; returns the folder.

    `inserts` holds HTML by the name of the picture that it stands in for; `executed` the pages of the notebooks.
    """
    folder = folders(study).blog.parent / "site"
    shutil.rmtree(folder, ignore_errors=True)
    every = [*reports(study, inserts), *executed]
    for page in every:
        write_text(folder / f"{page.stem}.html", whole(page, every, folder))
    return folder


def reports(study: Study, inserts: Mapping[str, str]) -> list[Page]:
    """The report's pages, those that are there."""
    texts = [path for path in (folders(study).blog / f"{stem}.md" for stem in PAGES) if path.exists()]
    return [Page(path.stem, PAGES[path.stem], report(path, inserts)) for path in texts]


def notebooks(study: Study) -> list[Page]:
    """A page for each executed notebook."""
    there = sorted(folders(study).notebooks.glob("[0-9][0-9]_*.ipynb"))
    return [Page(path.stem, path.stem.replace("_", " "), notebook(path)) for path in there]


def whole(page: Page, pages: list[Page], folder: Path) -> str:
    """One HTML file: navigation, the headings of the page, its body with pictures as files and tables that scroll."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=True, keep_trailing_newline=True
    )
    body, headings = with_anchors(pictures(page.body, folder))
    body = re.sub(r'<span style="([^"]*)" title="([^"]*)">', SHOWN, body)
    body = re.sub(r"<table.*?</table>", r'<div class="scroll" tabindex="0">\g<0></div>', body, flags=re.DOTALL)
    colours = HtmlFormatter().get_style_defs(".highlight")
    return environment.get_template("page.html.j2").render(
        page=page, pages=pages, headings=headings, body=Markup(body), colours=Markup(colours)
    )


def pictures(body: str, folder: Path) -> str:
    """Pictures inside the page become files that are named by their content, each a link to itself."""

    def outside(found: re.Match[str]) -> str:
        data = base64.b64decode(found["data"])
        name = f"figs/{hashlib.sha256(data).hexdigest()[:16]}.{found['kind']}"
        write_whole(folder / name, lambda file: file.write_bytes(data))
        return f'<a href="{name}"><img{found["before"]}src="{name}"{found["after"]}></a>'

    pattern = r'<img(?P<before>[^>]*?)src="data:image/(?P<kind>png|jpeg);base64,(?P<data>[^"]*)"(?P<after>[^>]*?)/?>'
    return re.sub(pattern, outside, body)


def with_anchors(body: str) -> tuple[str, list[tuple[str, str]]]:
    """The body with an id on every heading of the second level, and these ids with the headings as text.

    >>> with_anchors("<h2>One <em>a</em></h2>")
    ('<h2 id="section-1">One <em>a</em></h2>', [('section-1', 'One a')])
    """
    found: list[tuple[str, str]] = []

    def anchored(heading: re.Match[str]) -> str:
        name = f"section-{len(found) + 1}"
        text = re.sub(r'<a class="anchor-link".*?</a>', "", heading[1])
        found.append((name, html.unescape(re.sub(r"<[^>]*>", "", text)).strip()))
        return f'<h2 id="{name}">{text}</h2>'

    return re.sub(r"<h2[^>]*>(.*?)</h2>", anchored, body, flags=re.DOTALL), found


class _Embedding(mistune.HTMLRenderer):
    """HTML with local pictures inside, or what stands in for them; markup in the text stays text."""

    def __init__(self, folder: Path, inserts: Mapping[str, str]) -> None:
        super().__init__(escape=True)
        self.folder, self.inserts = folder, inserts

    def text(self, text: str) -> str:
        """Character references of the Markdown stay what they are; mistune would escape them once more."""
        return safe_entity(text)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        if Path(url).name in self.inserts:
            return self.inserts[Path(url).name]
        data = base64.b64encode((self.folder / url).read_bytes()).decode()
        alt = html.unescape(html.unescape(re.sub(r"<[^>]*>", "", text)))
        return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, _page(url), title)


def _page(url: str) -> str:
    """Where a link of the repository leads on the site.

    >>> _page("../../notebooks/02_a.ipynb"), _page("appendix.md#x"), _page("https://a.b/c.md")
    ('02_a.html', 'appendix.html#x', 'https://a.b/c.md')
    """
    return url if ":" in url else re.sub(r"^(?:.*/)?([^/#]+)\.(?:ipynb|md)(?=#|$)", r"\1.html", url)


def report(path: Path, inserts: Mapping[str, str]) -> str:
    """The body of one of the report's Markdown files as HTML, without its front matter."""
    text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(mistune.create_markdown(renderer=_Embedding(path.parent, inserts), plugins=["table"])(text))


def notebook(path: Path) -> str:
    """The body of an executed notebook as HTML: nbconvert's plain template, cleaned of all that acts."""
    exporter = HTMLExporter(
        template_name="basic", sanitize_html=True, embed_images=True, filters={"clean_html": clean_html}
    )
    body, _ = exporter.from_filename(str(path))
    return re.sub(r'(?<=href=")[^"]*\.ipynb(?=[#"])', lambda link: _page(link[0]), str(body))
