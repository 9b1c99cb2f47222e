"""What an explorer shows: the numbers of the methods themselves, on a text that no study holds."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import xai_utils as xai
from tests.test_plots_attention import texts_inside
from xai_utils.errors import UserError
from xai_utils.evaluation.statistics import EFFECT
from xai_utils.plots.style import png
from xai_utils.text.entry import TextEntry
from xai_utils.widgets import views

TEXT, ANSWER = "The cat sat on the mat", " and the dog."
MARKUP = "<b>cat</b> costs $x$ and $y_1$ {{ z }}"


@pytest.fixture
def drawn(monkeypatch):
    """What was handed to the functions that show."""
    seen = {}

    def spy(module, name):
        draw = getattr(module, name)

        def record(*given, **options):
            seen[name] = given
            return draw(*given, **options)

        monkeypatch.setattr(module, name, record)

    spy(views, "result_html")
    spy(views, "comparison_html")
    spy(views.heatmaps, "heatmap")
    return seen


@pytest.mark.parametrize("method", ["integrated_gradients", "ablation"])
def test_a_view_holds_the_methods_scores_and_the_front_doors_card(twins, drawn, method):
    case = {"text": TEXT, "answer": ANSWER, "model": "base", "method": method}
    view = views.scores(twins, **case, baseline="eos", keep_sink=False)
    (found,) = drawn["result_html"]
    setting = {"baseline": "eos"} if method == "integrated_gradients" else {"absence": "eos"}
    own = xai.explain(TEXT, twins.models["base"], ANSWER, method=method, keep_sink=False, **setting)
    np.testing.assert_allclose(found.word_scores, own.word_scores, atol=1e-5)
    assert not np.isnan(found.word_scores[0])  # the first position was not kept
    assert found.trust.levels == own.trust.levels and found.trust.faithfulness.absences
    assert f"answer&#x27;s probability {own.trust.competence.probability:.2g}" in view.html
    assert f"{own.word_scores[1]:+.3g}" in view.html and "cat" in view.alt
    tokens = views.scores(twins, **case, baseline="eos", keep_sink=False, by="token", tests=False)
    assert f"{found.scores[1]:+.3g}" in tokens.html and "deletion" not in tokens.html


def test_settings_that_a_method_lacks_are_left_out(twins, drawn):
    common = {"text": TEXT, "answer": ANSWER, "model": "base", "method": "sensitivity"}
    views.scores(twins, **common, baseline="zero", sigma=1.0)
    large = drawn["result_html"][0].word_scores
    views.scores(twins, **common, sigma=0.01)
    assert np.nanmax(drawn["result_html"][0].word_scores) < np.nanmax(large) / 10


def test_a_typed_text_equals_the_studys_own(twins):
    case = {"text": "The capital of France is", "answer": " Paris.", "model": "base"}
    view = views.scores(twins, **case, method="integrated_gradients")
    files = list(twins.folders.cache.rglob("*.json"))
    twins.attribute("base", "capital", "integrated_gradients")
    assert list(twins.folders.cache.rglob("*.json")) == files  # computed once
    with Image.open(io.BytesIO(png(view.figure))) as picture:
        assert picture.width > 400


def test_without_an_answer_the_title_names_the_models_own(twins, drawn):
    view = views.scores(twins, text=TEXT, model="base", method="cp_lrp")
    row = views.goes_on(twins, TEXT).set_index("model").loc["base"]
    assert drawn["result_html"][0].target.text == row["next_text"]
    assert f"probability {row['next_probability']:.2g}" in view.html


def test_a_long_text_is_a_strip_and_twelve_rows(twins):
    long = "the cat and the dog ran in the garden of the house and the mat sat"
    view = views.scores(twins, text=long, answer=ANSWER, model="base", method="input_x_gradient", tests=False)
    assert view.html.count("flex:1") == len(long.split())
    first, every = view.html.split("<details>")
    assert first.count("<tr>") == 13 and "all 1" in every


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


def test_the_liveliest_head_looks_furthest_back(twins):
    found = views.interest(twins, text=TEXT, model="base")
    case = twins.on(TextEntry(id="x", text=TEXT)).case("base", "x")
    model = twins.models["base"].model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = [layer[0].numpy() for layer in model(torch.tensor([case.ids]), output_attentions=True).attentions]
    model.set_attn_implementation("sdpa")
    for layer, heads in enumerate(weights):
        for head, one in enumerate(heads):
            largest = [one[query, 1 : query - 1].max() for query in range(3, len(one))]
            assert found[layer, head] == pytest.approx(np.mean(largest), abs=1e-6)
    assert not views.interest(twins, text="a", model="base").any()


@pytest.mark.parametrize("method", ["panel_shapley", "sensitivity"])
def test_a_comparison_is_the_front_doors(twins, drawn, method):
    case = {"text": TEXT, "answer": ANSWER, "method": method}
    view = views.comparison(twins, base="base", other="twin", **case)
    (pair,) = drawn["comparison_html"]
    setting = {"draws": twins.study.draws} if method == "sensitivity" else {}
    own = xai.compare(TEXT, *twins.models.values(), ANSWER, method=method, **setting)
    np.testing.assert_allclose(pair.words["difference"], own.words["difference"], atol=1e-5)
    np.testing.assert_allclose(pair.parts["score"], own.parts["score"], atol=1e-4)
    words = pair.words
    counts = (words["difference"].abs() > EFFECT) & (words["difference"].abs() > words["floor"])
    assert view.line.startswith(f"{counts.sum()} of {len(words)} differences are large enough to count")
    assert ("one sign under all absences" in view.line) == (method == "panel_shapley")
    assert view.html.index("base: ") < view.html.index("twin: ") < view.html.index("by part")
    quick = views.comparison(twins, base="base", other="twin", **case, parts=False, tests=False)
    assert "by part" not in quick.html and "deletion" not in quick.html


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "twin"}, "both models are 'twin'"),
        ({"answer": ""}, "answer: it is empty, and two models are compared on one answer"),
        ({"answer": " "}, "answer: ' ': it is empty"),
        ({"text": " "}, "text: ' ': it is empty"),
        ({"target": "contrast"}, "needs a `contrast` text"),
        ({"other": "twins"}, "there is no model 'twins'; did you mean 'twin'"),
    ],
)
def test_what_is_refused_is_refused_before_it_is_computed(twins, monkeypatch, settings, message):
    monkeypatch.setattr(views.Asked, "explained", lambda *_: pytest.fail("computed"))
    case = {"text": TEXT, "answer": ANSWER, "base": "base", "other": "twin", "method": "ablation"}
    with pytest.raises(UserError, match=message):
        views.comparison(twins, **case | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": " "}, "text: ' ': it is empty"),
        ({"answer": "  "}, "answer: '  ': it is empty"),
        ({"target": "contrast"}, "needs a `contrast` text"),
        ({"answer": ANSWER, "contrast": ANSWER}, "give two different ones"),
        ({"answer": ANSWER, "target": "logit"}, "a logit belongs to one"),
        ({"method": "ablatoin"}, "no method 'ablatoin'; did you mean 'ablation'"),
        ({"model": "bass"}, "no model 'bass'; did you mean 'base'"),
        ({"target": "logprop"}, "no target 'logprop'; did you mean 'logprob'"),
        ({"by": "words"}, "no by 'words'; did you mean 'word'"),
        ({"sigm": 0.1}, "no setting 'sigm'; did you mean 'sigma'"),
        ({"baseline": "means"}, "absence: expected"),
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
    with pytest.raises(UserError, match="no layer '0'"):
        views.head(twins, text=TEXT, model="base", layer="0", head=0)
    with pytest.raises(UserError, match="no model 'bass'"):
        views.interest(twins, text=TEXT, model="bass")


def test_a_text_that_was_cut_is_remarked(twins):
    long = "дождь " * 90
    ask = {"base": "base", "other": "twin", "method": "input_x_gradient", "answer": ANSWER, "parts": False}
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
        views.comparison(twins, base="base", other="twin", method="input_x_gradient", parts=False, **case),
    ]
    for view in found:
        texts_inside(view.figure)
        assert "<b>cat" not in view.html and "<script" not in view.html


def test_an_answer_glued_to_the_text_is_remarked(twins):
    glued = views.scores(twins, text=TEXT, answer="ting", model="base", method="ablation")
    assert "begins without a space" in glued.line
    assert "begins" not in views.scores(twins, text=TEXT, answer=ANSWER, model="base", method="ablation").line
