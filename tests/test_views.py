"""What an explorer shows: the numbers of the methods themselves, on a text that no study holds."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.test_plots_attention import texts_inside
from xai_utils.errors import UserError
from xai_utils.evaluation.statistics import differences
from xai_utils.text.entry import TextEntry
from xai_utils.widgets import views

TEXT, ANSWER = "The cat sat on the mat", " and the dog."
MARKUP = "<b>cat</b> costs $x$ and $y_1$ {{ z }}"


@pytest.fixture
def drawn(monkeypatch):
    """What was handed to the functions that draw."""
    seen = {}

    def spy(module, name):
        draw = getattr(module, name)

        def record(*given, **options):
            seen[name] = given
            return draw(*given, **options)

        monkeypatch.setattr(module, name, record)

    spy(views.style, "bars")
    spy(views.heatmaps, "heatmap")
    spy(views.pairs, "pair")
    return seen


@pytest.mark.parametrize("by", ["word", "token"])
@pytest.mark.parametrize("method", ["integrated_gradients", "ablation"])
def test_bars_hold_the_methods_scores(twins, drawn, method, by):
    view = views.scores(
        twins, text=TEXT, answer=ANSWER, model="base", method=method, baseline="eos", keep_sink=False, by=by
    )
    own = twins.on(TextEntry(id="x", text=TEXT, answer=ANSWER))
    found = own.attribute("base", "x", method, baseline="eos", keep_sink=False)
    bars = drawn["bars"][0][0]
    np.testing.assert_array_equal(bars.scores, found.word_scores if by == "word" else found.scores)
    assert not np.isnan(bars.scores[0])  # the first position was not kept
    assert view.line == ("Certificate: converged." if found.certificate else "Ablation carries no certificate.")
    assert ("Completeness error" in view.alt) == bool(found.certificate)


def test_settings_that_a_method_lacks_are_left_out(twins, drawn):
    common = {"text": TEXT, "answer": ANSWER, "model": "base", "method": "sensitivity"}
    views.scores(twins, **common, baseline="zero", sigma=1.0)
    large = drawn["bars"][0][0].scores
    views.scores(twins, **common, sigma=0.01)
    assert np.nanmax(drawn["bars"][0][0].scores) < np.nanmax(large) / 10


def test_a_typed_text_equals_the_studys_own(twins):
    typed = views.scores(
        twins, text="The capital of France is", answer=" Paris.", model="base", method="integrated_gradients"
    )
    files = list(twins.folders.cache.rglob("*.json"))
    twins.attribute("base", "capital", "integrated_gradients")
    assert list(twins.folders.cache.rglob("*.json")) == files  # computed once
    with Image.open(io.BytesIO(typed.png())) as picture:
        picture.load()
        assert picture.info["Description"] == typed.alt


@pytest.mark.parametrize("apart", [False, True])
def test_head_by_token_is_the_models_attention(twins, drawn, apart):
    model = twins.models["base"]
    case = twins.on(TextEntry(id="x", text=TEXT)).case("base", "x")
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model.model(torch.tensor([case.ids]), output_attentions=True).attentions[1][0, 3].numpy()
    model.model.set_attn_implementation("sdpa")
    view = views.head(twins, text=TEXT, model="base", layer=1, head=3, apart=apart)
    shown, labels = drawn["heatmap"][:2]
    rest = weights[1:, 1:] / weights[1:, 1:].sum(1, keepdims=True)
    np.testing.assert_allclose(shown, rest if apart else weights, atol=1e-6)
    assert labels == case.labels[1:] if apart else case.labels
    assert f"{weights[1:, 0].mean():.0%}" in view.line


def test_head_by_word_averages_queries_and_sums_keys(twins, drawn):
    views.head(twins, text="Кошка сидела", model="base", layer=0, head=1, by="token")
    tokens = np.asarray(drawn["heatmap"][0])
    case = twins.on(TextEntry(id="x", text="Кошка сидела")).case("base", "x")
    first = [i for i, token in enumerate(case.tokens) if token.end is not None and token.end <= 5]
    second = [i for i, token in enumerate(case.tokens) if token.start is not None and token.start >= 5]
    views.head(twins, text="Кошка сидела", model="base", layer=0, head=1, by="word")
    shown, labels = drawn["heatmap"][:2]
    assert labels[1:] == ["Кошка", "сидела"]
    np.testing.assert_allclose(shown[2, 1], tokens[np.ix_(second, first)].sum(1).mean(), rtol=1e-9)
    np.testing.assert_allclose(shown.sum(1), 1)


def test_value_norms_change_the_map(twins, drawn):
    settings = {"text": TEXT, "model": "base", "layer": 1, "head": 0}
    views.head(twins, **settings)
    plain = drawn["heatmap"][0]
    views.head(twins, **settings, weighted=True)
    assert np.abs(drawn["heatmap"][0] - plain).max() > 0.01
    np.testing.assert_allclose(drawn["heatmap"][0].sum(1), 1, atol=1e-6)


def test_comparison_is_the_difference_table(twins, drawn):
    view = views.comparison(twins, text=TEXT, answer=ANSWER, base="base", other="twin", method="integrated_gradients")
    own = twins.on(TextEntry(id="own", text=TEXT, answer=ANSWER))
    found = [own.tables(["integrated_gradients"], baseline=name) for name in ("mean", "zero")]
    words, proofs = (pd.concat([tables[name] for tables in found]) for name in ("word_scores", "certificates"))
    expected = differences(words, proofs, "base", "twin", twins.study.baseline)
    pd.testing.assert_frame_equal(drawn["pair"][0], expected)
    sure = expected["beyond_floor"] & (expected["sign_stable"] == True)  # noqa: E712 - missing is not true
    assert view.line.startswith(f"{sure.sum()} of {len(expected)} differences count")


def test_comparison_takes_the_settings_of_one_model(twins, drawn):
    case = {"text": TEXT, "answer": ANSWER, "contrast": " in the garden.", "target": "contrast"}
    settings = {"method": "integrated_gradients", "baseline": "eos", "keep_sink": False}
    view = views.comparison(twins, base="base", other="twin", **case, **settings)
    table = drawn["pair"][0]
    assert view.line.endswith("All 6 certificates converged.")
    for label, column in (("base", "score_base"), ("twin", "score_other")):
        views.scores(twins, model=label, **case, **settings)
        bars = drawn["bars"][0][0]
        there = [bars.labels.index(word) for word in table["word"]]
        np.testing.assert_array_equal(table[column], bars.scores[there])


def test_a_method_without_baseline_is_compared_too(twins, drawn):
    view = views.comparison(twins, text=TEXT, answer=ANSWER, base="base", other="twin", method="sensitivity")
    assert len(drawn["pair"][0]) == 6
    assert view.line.endswith("beyond their floor. This method carries no certificate.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": " "}, "text: it is empty"),
        ({"answer": "  "}, "answer: it is empty"),
        ({"target": "contrast"}, "needs a `contrast` text"),
        ({"answer": ANSWER, "contrast": ANSWER}, "give two different ones"),
        ({"answer": ANSWER, "target": "logit"}, "a logit belongs to one"),
        ({"method": "nothing"}, "unknown method"),
    ],
)
def test_bad_input_is_said_in_one_line(twins, settings, message):
    with pytest.raises(UserError, match=message) as error:
        views.scores(twins, **({"text": TEXT, "model": "base", "method": "ablation"} | settings))
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_said(twins):
    with pytest.raises(UserError, match="no layer 2; expected 0 to 1"):
        views.head(twins, text=TEXT, model="base", layer=2, head=0)
    with pytest.raises(UserError, match="no head 4; expected 0 to 3"):
        views.head(twins, text=TEXT, model="base", layer=0, head=4)
    with pytest.raises(UserError, match="too short"):
        views.head(twins, text="a", model="base", layer=0, head=0, apart=True)
    with pytest.raises(UserError, match="two different ones"):
        views.comparison(twins, text=TEXT, base="base", other="base", method="ablation")


def test_a_text_that_was_cut_is_remarked(twins):
    long, ask = "дождь " * 90, {"base": "base", "other": "twin", "method": "input_x_gradient", "answer": ANSWER}
    cut = twins.on(TextEntry(id="x", text=long)).case("base", "x").cut
    assert cut > 0
    found = [
        views.scores(twins, text=long, model="base", method="input_x_gradient", answer=ANSWER),
        views.head(twins, text=long, model="base", layer=0, head=0),
        views.comparison(twins, text=long, **ask),
    ]
    assert all(f"its last {cut} tokens were left out" in view.line for view in found)


@pytest.mark.parametrize("text", ["ШИРОКАЯ ЩЁЛКА, " * 8, MARKUP])
def test_everything_written_is_inside_the_picture(twins, text):
    case = {"text": text, "answer": " Щука щёлкает жужжащую мошку, а жук — широкую мышку."}
    found = [
        views.scores(twins, model="base", method="input_x_gradient", **case),
        views.head(twins, text=text, model="base", layer=0, head=0),
        views.comparison(twins, base="base", other="twin", method="input_x_gradient", **case),
    ]
    for view in found:
        texts_inside(view.figure)


def test_an_answer_glued_to_the_text_is_remarked(twins):
    glued = views.scores(twins, text=TEXT, answer="ting", model="base", method="ablation")
    assert "begins without a space" in glued.line
    assert "begins" not in views.scores(twins, text=TEXT, answer=ANSWER, model="base", method="ablation").line
