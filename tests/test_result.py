"""A result of an attribution method: from tokens or from words, as tables, and as it shows itself."""

import dataclasses
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution import integrated_gradients, perturbation, shapley
from xai_utils.attribution.masking import players
from xai_utils.attribution.result import from_tokens, from_words
from xai_utils.attribution.tables import word_rows
from xai_utils.errors import UserError
from xai_utils.plots import sentence, terminal
from xai_utils.plots.html import result_html, sentence_html
from xai_utils.text.cases import units

TEXT = 'Кошка сидела <b onclick="x">на</b> коврике\u202e'


@pytest.fixture(scope="module")
def model():
    return tiny_loaded("llama")


class Page(HTMLParser):
    """Tags, attributes and visible text of HTML."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_scores_of_tokens_are_added_up_over_words(model):
    case, target = tiny_case(model, "The capital of France is")
    scores = np.arange(len(case.tokens), dtype=float) + 1
    found = from_tokens("m", case, target, scores, keep_sink=True)
    assert np.isnan(found.scores[0]) and np.isnan(found.errors).all()
    by_hand = [
        sum(scores[i] for i, t in enumerate(case.tokens) if t.start is not None and t.end > w.start and t.start < w.end)
        for w in case.words
    ]
    assert found.words["word"].tolist() == [word.text for word in case.words]
    np.testing.assert_allclose(found.words["score"], by_hand)
    moved = from_tokens("m", case, target, scores, keep_sink=False)
    assert moved.words["score"].sum() == pytest.approx(scores.sum())  # the document's start has a row of its own


def test_scores_of_words_are_given_to_their_tokens_or_to_none(model):
    case, target = tiny_case(model, "The capital of France is")
    chosen = players(case, True)
    scores = np.arange(len(chosen), dtype=float) + 1
    shared = from_words("m", case, target, chosen, scores, 0 * scores, keep_sink=True, additive=True)
    assert np.nansum(shared.scores) == pytest.approx(scores.sum())
    alone = from_words("m", case, target, chosen, scores, 0 * scores, keep_sink=True, additive=False)
    single = [player.positions[0] for player in chosen if len(player.positions) == 1]
    assert np.flatnonzero(np.isfinite(alone.scores)).tolist() == single != []
    assert alone.words["score"].tolist() == shared.words["score"].tolist() == scores.tolist()


def test_a_word_stands_where_the_panel_agrees(model):
    case, target = tiny_case(model, "The capital of France is")
    chosen = players(case, True)
    low, high = np.array([1.0, -2.0, -1.0, 0.1, -0.1]), np.array([2.0, -1.0, 1.0, 0.9, 0.3])
    found = from_words(
        "m", case, target, chosen, (low + high) / 2, np.full(5, 0.2), keep_sink=True, additive=True, low=low, high=high
    )
    assert found.words["stands"].tolist() == [True, True, False, True, False]
    rows = [row for row in word_rows(found) if row["is_word"]]
    assert [row["stands"] for row in rows] == found.words["stands"].tolist()
    assert word_rows(found)[0]["stands"] is None  # the document's start, which is fixed
    assert "3 of 5 words stand" in repr(found)
    words = ["The", "capital", "France"]  # underlined in every picture of the sentence
    tags = [own for tag, own in Page(sentence_html(found)).tags if tag == "span"]
    assert [own["title"].split(":")[0] for own in tags if "border-bottom:2px" in own["style"]] == words
    said = terminal.lines(found)[1]
    assert [said.plain[part.start : part.end] for part in said.spans if "underline" in str(part.style)] == words
    lines = [part for part in sentence.sentences([found]).axes[0].collections if isinstance(part, LineCollection)]
    assert len(lines) == len(words)


@pytest.mark.parametrize("method", [integrated_gradients.integrated_gradients, perturbation.ablation, shapley.shapley])
def test_html_is_whole_and_holds_nothing_that_runs(model, method):
    case, target = tiny_case(model, TEXT)
    found = method(model, case, target)
    page = Page(found._repr_html_())
    assert page.open == []
    allowed = {"div", "p", "span", "b", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
    assert {tag for tag, _ in page.tags} <= allowed
    assert all(name in ("style", "title", "dir") for _, attributes in page.tags for name in attributes)
    assert 'Кошка сидела <b onclick="x">на</b> коврике‹U+202E› → ' in page.text
    hovers = [attributes["title"] for tag, attributes in page.tags if tag == "span" and "title" in attributes]
    score = found.words.set_index("word")["score"]["Кошка"]
    assert any(hover.startswith(f"Кошка: {score:+.3g}") for hover in hovers)
    assert all(line in page.text for line in found.verdicts)


def test_colours_share_a_scale_and_end_at_it(model):
    case, target = tiny_case(model, "The capital of France is")
    found = perturbation.ablation(model, case, target)

    def ground(html, word):
        tags = [attributes for tag, attributes in Page(html).tags if tag == "span"]
        return next(a["style"].split(";")[0] for a in tags if a["title"].startswith(f"{word}:"))

    strongest = found.words.loc[found.words["score"].abs().idxmax()]
    own = ground(result_html(found), strongest["word"])
    assert own == "background:" + ("#053061" if strongest["score"] > 0 else "#67001f")
    assert ground(sentence_html(found, 1e9), strongest["word"]) in ("background:#f7f6f6", "background:#f6f7f7")
    assert ground(sentence_html(found, 1e-9), strongest["word"]) == own


def test_a_long_text_shows_its_largest_words_first_and_all_of_them_on_a_click(model):
    case, target = tiny_case(model, "one two three four five six seven eight nine ten eleven twelve thirteen fourteen")
    found = from_tokens("m", case, target, np.arange(len(case.tokens), dtype=float), keep_sink=True)
    first, rest = found._repr_html_().split("<details>")
    assert first.count("<tr>") == 13 and rest.count("<tr>") == len(found.words) + 1 > 15
    assert '<td style="text-align:left">fourteen' in first and '<td style="text-align:left">one<' not in first


def test_plain_text_says_what_the_table_says(model):
    case, target = tiny_case(model, TEXT)
    found = integrated_gradients.fixed_steps(model, case, target)
    lines = repr(found).splitlines()
    assert lines[1].endswith("→ Paris.") and all("\u202e" not in line for line in lines)
    told = [line for line in lines if line.startswith("  ")]
    assert len(told) == len(found.words)
    for line, row in zip(told, found.words.itertuples(), strict=True):
        assert f"{row.score:+.3g}" in line
    assert lines[-1] == found.certificate.summary("nats")


def test_the_picture_has_the_colours_of_the_words(model):
    case, target = tiny_case(model, "The capital of France is")
    found = perturbation.ablation(model, case, target)
    bundle = found._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "image/png"}
    assert set(found._repr_mimebundle_(include={"text/plain"})) == {"text/plain"}
    pixels = np.array(Image.open(io.BytesIO(bundle["image/png"])).convert("RGB")).reshape(-1, 3)
    strongest = found.words.loc[found.words["score"].abs().idxmax(), "score"]
    assert (pixels == ((5, 48, 97) if strongest > 0 else (103, 0, 31))).all(1).sum() > 200


def test_bars_by_word_and_by_token(model):
    case, target = tiny_case(model, "The capital of France is")
    found = perturbation.ablation(model, case, target)
    for by, count in (("word", len(units(case)) - 1), ("token", len(case.tokens))):
        axes = found.plot(by).axes[0]
        assert len(axes.get_yticklabels()) == count
        widths = [bar.get_width() for bar in axes.patches]
        scores = (found.words if by == "word" else found.tokens)["score"].dropna()
        np.testing.assert_allclose(widths, scores)
    assert found.plot()._repr_png_().startswith(b"\x89PNG")  # a notebook shows it without pyplot
    with pytest.raises(UserError, match="by is 'letter'; expected word or token"):
        found.plot("letter")


def test_what_did_not_converge_is_marked(model):
    case, target = tiny_case(model, "The capital of France is")
    found = integrated_gradients.integrated_gradients(model, case, target, tolerance=1.0)
    failed = dataclasses.replace(found, certificate=dataclasses.replace(found.certificate, bound=2.0))
    assert (
        "repeating-linear-gradient" in failed._repr_html_() and "repeating-linear-gradient" not in found._repr_html_()
    )
    assert "not converged: integration error 2 of" in repr(failed) and "not converged" not in repr(found)
