"""The static site: it opens from disk, asks nothing of the network, and is fit to be read on a screen of any width."""

from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from report import site
from report.clean import clean_html
from tests.synthetic import study
from xai_utils.files import write_text
from xai_utils.study import results
from xai_utils.study.config import load_study

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PAGE = """---
title: "hidden"
---

# One &lt;b&gt; \\*two\\*

## A section

![A *b* &quot;c&quot; &lbrace;](figs/a.png)

![Inserted](figs/b.png)

| a | b |
|---|--:|
| x &vert; y | 1 |

<script>alert(1)</script>

[a notebook](../../notebooks/02_some_thing.ipynb)

```json
{"a": "<b>"}
```
"""

WIDE = """[...document.querySelectorAll('main p, main h1, main h2, main img')]
  .filter(e => e.getBoundingClientRect().right > innerWidth && !e.closest('.scroll, pre')).length"""


class Seen(HTMLParser):
    """Tags with their attributes, and the text that a reader sees outside code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag in ("pre", "code", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, text: str) -> None:
        self.text += "" if self.inside else text

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in tags]


@pytest.fixture
def built(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    place = results.folders(study())
    (place.blog / "figs").mkdir(parents=True)
    (place.blog / "figs" / "a.png").write_bytes(base64.b64decode(PIXEL))
    (place.blog / "index.md").write_text(PAGE, encoding="utf-8")
    picture = new_output(
        "display_data", {"image/png": PIXEL, "text/plain": "<Image>"}, metadata={"image/png": {"alt": "Seen: <b>"}}
    )
    table = new_output(
        "execute_result",
        {
            "text/html": "<style>td {background: url(https://a.b/c)}</style>"
            "<table><thead><tr><th>h</th></tr></thead>"
            "<tr><td onclick='x()' style='color: red'>&lt;b&gt;</td></tr></table>"
            "<script>1</script>"
        },
    )
    markdown = "# Title\n\nwords\n\n<script>2</script>\n\n[next](03_more.ipynb#part)"
    cells = [new_markdown_cell(markdown), new_code_cell("x < 1", outputs=[picture, table])]
    place.notebooks.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), place.notebooks / "02_some_thing.ipynb")
    return site.build(study(), {"b.png": '<p class="sentence">spans</p>'}, site.notebooks(study()))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The site of the published study, from the committed report and notebooks."""
    folder = tmp_path_factory.mktemp("site")
    study = load_study("studies/default.yaml")
    every = [*site.reports(study, {}), *site.notebooks(study)]
    for page in every:
        write_text(folder / f"{page.stem}.html", site.whole(page, every, folder))
    return folder


def seen(path: Path) -> Seen:
    return Seen(path.read_text(encoding="utf-8"))


def test_pages_ask_nothing_of_the_network(built, published):
    for folder in (built, published):
        for path in folder.glob("*.html"):
            page = seen(path)
            assert not page.all("script", "link", "iframe", "object", "form")
            assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
            assert all((folder / a["src"]).exists() for _, a in page.tags if "src" in a)
            assert not re.search(r"url\(|@import", path.read_text(encoding="utf-8"))
            assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")


def test_links_between_pages_lead_to_pages(built, published):
    local = [a["href"] for path in published.glob("*.html") for a in seen(path).all("a") if ":" not in a["href"]]
    assert local and all((published / link.split("#")[0]).exists() for link in local if not link.startswith("#"))
    report = [a["href"] for a in seen(built / "index.html").all("a")]
    assert "02_some_thing.html" in report and "#section-1" in report
    assert "03_more.html#part" in [a["href"] for a in seen(built / "02_some_thing.html").all("a")]


def test_every_page_has_a_title_a_head_of_a_table_and_code(published):
    paths = list(published.glob("*.html"))
    assert {"index.html", "02_integrated_gradients.html"} <= {path.name for path in paths}
    for path in paths:
        page = seen(path)
        assert page.all("h1") and page.all("pre", "code"), path.name
        assert page.all("th"), path.name
        assert not re.search(r"</?(h[1-6]|p|th|td|thead|table|div|span|img|style)\b[^>]*>", page.text), path.name
        assert all(image["alt"] for image in page.all("img")), path.name


def test_alt_texts_and_markup_survive_as_text(built):
    page = seen(built / "index.html")
    assert [image["alt"] for image in page.all("img")] == ['A b "c" {'] and "spans" in page.text
    assert "hidden" not in page.text and "<script>alert(1)</script>" in page.text
    text = (built / "index.html").read_text(encoding="utf-8")
    assert "One <b> *two*" in html.unescape(re.search("<h1>(.*?)</h1>", text)[1])
    notebook = seen(built / "02_some_thing.html")
    assert [image["alt"] for image in notebook.all("img")] == ["Seen: <b>"]
    assert notebook.all("h1") and notebook.all("th") and notebook.all("td") == [{"style": "color: red;"}]
    assert "02 some thing" in notebook.text and "alert" not in notebook.text


def test_pictures_are_files_that_open_by_themselves(built):
    page = seen(built / "index.html")
    (image,) = page.all("img")
    assert (built / image["src"]).read_bytes() == base64.b64decode(PIXEL)
    assert image["src"] in [a.get("href") for a in page.all("a")]


@pytest.mark.parametrize(
    "wrong",
    [
        "<script>x</script>",
        "<SCRIPT\n>x</SCRIPT >",
        "<img src=x onerror=y>",
        '<a href="javascript:x">a</a>',
        '<a href="data:text/html,x">a</a>',
        '<svg onload="x"></svg>',
        '<iframe srcdoc="x"></iframe>',
        '<div style="background: url(https://a.b)">a</div>',
        '<img src="https://a.b/c.png">',
        '<img src="data:image/svg+xml;base64,AA==">',
        "<scr<script></script>ipt>x</script>",
        '<form action="x"><button>a</button></form>',
    ],
)
def test_nothing_that_acts_or_fetches_is_left(wrong):
    left = Seen(clean_html(f"<p>before</p>{wrong}<p>after</p>"))
    assert not left.all("script", "svg", "iframe", "form", "button")
    names = {name for _, attributes in left.tags for name in attributes}
    assert not names & {"onerror", "onload", "src", "href", "srcdoc", "action"}
    assert not [a["style"] for _, a in left.tags if "url" in (a.get("style") or "")]
    assert "before" in left.text and "after" in left.text


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_no_page_is_wider_than_the_screen(published, browser, width):
    view = browser.new_page(viewport={"width": width, "height": 800})
    asked: list[str] = []
    view.on("request", lambda request: asked.append(request.url))
    for path in sorted(published.glob("*.html")):
        view.goto(path.as_uri())
        assert view.evaluate("document.documentElement.scrollWidth") <= width, path.name
        assert view.evaluate(WIDE) == 0, path.name
        assert view.locator("h1").first.is_visible()
    assert asked and not [url for url in asked if not url.startswith("file:")]
    view.close()
