"""The static site opens from disk: no network, no script, images inside, alt texts kept."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from synthetic import study

from report import site
from xai_utils.study import results

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PAGE = """---
title: "hidden"
---

# One &lt;b&gt; \\*two\\*

![A *b* &quot;c&quot; &lbrace;](figs/a.png)

| a | b |
|---|--:|
| x &vert; y | 1 |

<script>alert(1)</script>

```json
{"a": "<b>"}
```
"""


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


@pytest.fixture
def built(tmp_path, monkeypatch):
    import base64

    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    place = results.folders(study())
    (place.blog / "figs").mkdir(parents=True)
    (place.blog / "figs" / "a.png").write_bytes(base64.b64decode(PIXEL))
    (place.blog / "index.md").write_text(PAGE, encoding="utf-8")
    picture = new_output(
        "display_data", {"image/png": PIXEL, "text/plain": "<Image>"}, metadata={"image/png": {"alt": "Seen: <b>"}}
    )
    table = new_output("execute_result", {"text/html": "<table><tr><td>&lt;b&gt;</td></tr></table><script>1</script>"})
    cells = [new_markdown_cell("# Title\n\n<script>2</script>"), new_code_cell("x < 1", outputs=[picture, table])]
    place.notebooks.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), place.notebooks / "02_some_thing.ipynb")
    return site.build(study())


def test_pages_ask_nothing_of_the_network(built):
    assert sorted(path.name for path in built.iterdir()) == ["02_some_thing.html", "index.html"]
    for path in built.iterdir():
        text = path.read_text(encoding="utf-8")
        tags = Tags(text).found
        assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe")]
        assert all(url["src"].startswith("data:") for _, url in tags if "src" in url)
        assert not re.search(r"url\(|@import", text)
        links = [
            attributes["href"] for tag, attributes in tags if tag == "a" and not attributes["href"].startswith("#")
        ]
        assert {"index.html", "02_some_thing.html"} <= set(links) and all((built / link).exists() for link in links)
        assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags


def test_alt_texts_and_markup_survive_as_text(built):
    report = (built / "index.html").read_text(encoding="utf-8")
    pictures = [attributes["alt"] for tag, attributes in Tags(report).found if tag == "img"]
    assert pictures == ['A b "c" {']
    assert "hidden" not in report and "&lt;script&gt;" in report and "<table>" in report
    assert "One <b> *two*" in html.unescape(re.search("<h1>(.*?)</h1>", report)[1])
    notebook = (built / "02_some_thing.html").read_text(encoding="utf-8")
    assert [a["alt"] for tag, a in Tags(notebook).found if tag == "img"] == ["Seen: <b>"]
    assert "02 some thing" in notebook
