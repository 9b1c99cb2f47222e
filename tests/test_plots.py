"""Figures: what they draw is what the tables say, nothing is cut off, and the same figure is the same file."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.text import Text

from tests.synthetic import alt_text
from tests.tiny import tiny_loaded
from xai_utils.attribution.integrated_gradients import fixed_path, fixed_steps, integrated_gradients
from xai_utils.attribution.result import Certificate, Piece
from xai_utils.attribution.target import make_target
from xai_utils.errors import UserError
from xai_utils.plots import path, style
from xai_utils.study.config import Study
from xai_utils.text.cases import prepare
from xai_utils.text.entry import TextEntry

KEYS = {"study": "s", "text": "t", "model": "base", "role": "base", "target": "logprob", "target_text": " Paris."}
METHOD = {"method": "integrated_gradients", "baseline": "mean", "sink": "kept", "unit": "nats"}
PROOF = {
    **{"tolerance": 0.01, "evaluations": 106, "forwards": 6, "f_input": -0.5, "f_baseline": -20.5, "delta": 0.02},
    **{"bound": 0.0021, "token_error": 0.0043, "relative_delta": 0.001, "converged": True},
}


def tables(scores, labels=None, converged=True, **other):
    """An Explainer's tables for one attribution with these scores."""
    labels = labels or [f" w{i}" for i in range(len(scores))]
    keys = KEYS | METHOD | other
    rows = [keys | {"position": i, "score": s, "error": 0.1} for i, s in enumerate(scores)]
    return {
        "attributions": pd.DataFrame([row | {"token": label} for row, label in zip(rows, labels, strict=True)]),
        "word_scores": pd.DataFrame([row | {"word": label} for row, label in zip(rows, labels, strict=True)]),
        "certificates": pd.DataFrame([keys | PROOF | {"converged": converged}]),
    }


def drawn(fig):
    """All texts of a figure with their boxes in pixels, and by how many pixels what is seen passes its edges."""
    canvas = FigureCanvasAgg(fig)
    with style.style():
        canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in fig.findobj(Text) if text.get_text() and text.get_visible()]
    seen, whole = fig.get_tightbbox(renderer), fig.bbox_inches
    passed = max(-seen.x0, -seen.y0, seen.x1 - whole.x1, seen.y1 - whole.y1) * fig.dpi
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts], passed


def rows_of(axes):
    return [(bar.get_width(), to_hex(bar.get_facecolor()), bar.get_hatch()) for bar in axes.patches]


def test_bars_are_the_scores_blue_for_and_red_against():
    panel = style.panel(tables([2.0, -1.5, 0.25]))
    (axes,) = style.bars([panel]).axes
    assert rows_of(axes) == [(2.0, style.SUPPORTS, None), (-1.5, style.OPPOSES, None), (0.25, style.SUPPORTS, None)]
    assert axes.get_xlabel() == "score (nats)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["·w0", "·w1", "·w2"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # reading order from the top


def test_errors_are_as_long_as_they_say():
    (axes,) = style.bars([style.panel(tables([2.0, -1.5]))]).axes
    ends = axes.collections[0].get_segments()
    assert np.allclose([segment[:, 0] for segment in ends], [[1.9, 2.1], [-1.6, -1.4]])


def test_what_is_not_converged_is_hatched_and_grey_and_says_so():
    panel = style.panel(tables([2.0, -1.5], converged=False))
    (axes,) = style.bars([panel]).axes
    assert all(hatch and len(set(colour[i : i + 2] for i in (1, 3, 5))) == 1 for _, colour, hatch in rows_of(axes))
    assert axes.get_title(loc="left").endswith("(not converged)")
    assert any("NOT CONVERGED" in text.get_text() for text in axes.texts) and "not converged" in panel.describe()


def test_a_kept_position_is_not_a_zero():
    panel = style.panel(tables([math.nan, 1.0, 0.0], ["<|endoftext|>", "a", "b"]))
    (axes,) = style.bars([panel]).axes
    assert [bar.get_width() for bar in axes.patches] == [1.0, 0.0]
    kept = [text for text in axes.texts if text.get_text() == "kept"]
    assert [text.xy for text in kept] == [(0, 0)] and panel.describe().count("nan") == 0
    moved = style.panel(tables([math.nan, 1.0], sink="moved"))
    assert [text.get_text() for text in style.bars([moved]).axes[0].texts][0] == "no value"


def test_the_certificate_stands_under_the_figure_once():
    both = [style.panel(tables([1.0, 2.0]), by) for by in ("token", "word")]
    notes = [text.get_text().replace("\n", " ") for axes in style.bars(both).axes for text in axes.texts]
    assert notes == [
        "F(x) = -0.5, F(baseline) = -20.5 nats. Completeness error 0.02 nats = 0.10%; bound 0.21%, worst token 0.43%, "
        "allowed 1.00%. 106 gradient evaluations: converged"
    ]


def test_a_selection_that_is_not_one_attribution_is_an_error():
    two = tables([1.0, 2.0])
    other = tables([3.0, 4.0], baseline="eos")
    joined = {name: pd.concat([two[name], other[name]]) for name in two}
    with pytest.raises(UserError, match="more than one attribution is left, with different baseline"):
        style.panel(joined, model="base")
    assert style.panel(joined, baseline="eos").scores.tolist() == [3.0, 4.0]
    with pytest.raises(UserError, match="no row has model 'twin'; expected one of 'base'"):
        style.panel(joined, model="twin")


LONG = ["Донаудампфшиффартсэлектрицитетенхауптбетрибсверкбауунтербеамтенгезельшафт", " a", "<|start_header_id|>"]


@pytest.mark.parametrize("count", [1, 3, 40, 128])
@pytest.mark.parametrize("columns", [1, 3])
def test_no_text_is_cut_off(count, columns):
    labels = [LONG[i % 3] + str(i) for i in range(count)]
    scores = np.linspace(-1e6, 1e6, count) if count > 1 else [0.0]
    panels = [style.panel(tables(scores, labels), title="A title that says which method this is")] * columns
    texts, passed = drawn(style.bars(panels, "A long title over all of it, " * 5))
    assert len(texts) > count and passed <= 1


@pytest.mark.parametrize("count", [3, 128])
def test_labels_do_not_run_into_each_other(count):
    labels = [f"слово{i}" for i in range(count)]
    texts, _ = drawn(style.bars([style.panel(tables(np.ones(count), labels))]))
    boxes = sorted((box for text, box in texts if text.startswith("слово")), key=lambda box: box.y0)
    assert len(boxes) == count
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in zip(boxes, boxes[1:], strict=False))


@pytest.mark.parametrize("text", ["$x^2$", r"\alpha $5", r"a\$b", "<b>bold</b>", "{{ x }}", "_a_ *b*", "100 %"])
def test_markup_is_drawn_letter_by_letter(text):
    shown, mathematics = Text(0, 0, style.readable(text))._preprocess_math(style.readable(text))
    assert (shown, mathematics) == (text, False)


def test_what_no_font_draws_is_named_instead_of_a_box(recwarn):
    texts, _ = drawn(style.bars([style.panel(tables([1.0, 2.0], ["\U0001f9ff", "a\u200d"]))]))
    assert {"‹U+1F9FF›", "a‹U+200D›"} <= {text for text, _ in texts}
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize("scores", [[0.0, 0.0], [math.nan, math.nan], [1e-12, -1e-12]])
def test_nothing_and_next_to_nothing_are_drawn(scores):
    panel = style.panel(tables(scores))
    texts, _ = drawn(style.bars([panel]))
    assert texts and panel.describe()


def test_panels_of_the_same_words_share_their_labels():
    fig = style.bars([style.panel(tables([1.0, 2.0]))] * 3)
    assert [bool(axes.get_yticklabels()[0].get_text()) for axes in fig.axes] == [True, False, False]


def test_the_same_figure_is_the_same_file_and_holds_its_alt_text(tmp_path):
    images = []
    for name in ("a.png", "b.png"):
        fig = style.bars([style.panel(tables([2.0, -1.5]))])
        images.append(style.save(fig, tmp_path / name, alt="Сколько planets: ' France' leads."))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() == images[0].data
    assert alt_text(tmp_path / "a.png") == images[0].alt == "Сколько planets: ' France' leads."


def test_a_figure_without_an_alt_text_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"x\.png: a figure needs an alt text"):
        style.save(style.figure(2, 2), tmp_path / "x.png", alt="  ")
    assert not list(tmp_path.iterdir())


def test_the_colour_scale_has_zero_in_its_middle():
    scale, colours = style.centred([-1.0, 4.0]), style.diverging()
    red, white, blue = (colours(scale(value))[:3] for value in (-4.0, 0.0, 4.0))
    assert red[0] > red[2] and blue[2] > blue[0] and min(white) > 0.95
    assert to_hex(colours(np.ma.masked_invalid([math.nan]))[0]) == style.NOTHING


# ---- paths


def explained(architecture="llama", **settings):
    model = tiny_loaded(architecture)
    entry = TextEntry(id="t", text="The capital of France is", answer=" Paris.")
    case = prepare(model, entry, Study(name="s", models=(model.entry,), texts=(entry,)))
    return model, case, make_target(model, case)


def line(axes, label):
    return next(one for one in axes.lines if one.get_label() == label)


def test_a_fixed_rule_s_pieces_add_up_to_captum_s_scores():
    here = explained()
    run, found = fixed_path(*here, steps=20), fixed_steps(*here, steps=20)
    pieces = run.path
    assert np.allclose(run.scores, found.scores, atol=1e-4, equal_nan=True)
    assert sum(piece.residual for piece in pieces) == pytest.approx(found.certificate.delta, abs=1e-4)
    assert all(piece.start < piece.alphas[0] < piece.end for piece in pieces)
    assert pieces[0].start == 0 and pieces[-1].end == 1


def test_a_path_shows_where_it_ends_and_where_it_should():
    here = explained()
    fixed = replace(fixed_steps(*here, steps=20), path=fixed_path(*here, steps=20).path)
    refined = integrated_gradients(*here)
    views = [path.view(fixed), path.view(refined)]
    assert [view.title.split(" from")[0] for view in views] == ["20 fixed steps", "Refined"]
    fig = path.paths(views)
    for axes, view, found in zip(fig.axes[:2], views, (fixed, refined), strict=True):
        proof = found.certificate
        ends = line(axes, "cumulative attribution").get_ydata()
        assert ends[0] == 0 and ends[-1] == pytest.approx(np.nansum(found.scores), rel=1e-4)
        assert line(axes, "F(x) - F(baseline)").get_ydata()[0] == pytest.approx(proof.f_input - proof.f_baseline)
        rise = line(axes, "F(α) - F(baseline)")
        assert rise.get_ydata()[-1] == pytest.approx(proof.f_input - proof.f_baseline, abs=1e-4)
        assert (np.diff(rise.get_xdata()) >= 0).all() and len(line(axes, "nodes").get_xdata()) == len(view.nodes[0])
        assert proof.verdict in axes.get_title(loc="left")


def test_a_path_far_off_and_one_on_the_spot_are_both_readable():
    proof = Certificate(0.01, 50, 2, -1.0, -11.0, 9990.0, 999.0, math.nan)
    piece = Piece(0.0, 1.0, np.array([0.5]), np.array([-5.0]), np.array([10000.0]), 9990.0)
    fig = path.paths([path.PathView("far $off$", [piece], proof, "nats")])
    assert fig.axes[0].get_yscale() == "symlog" and fig.axes[0].get_ylim()[1] > 10000
    assert drawn(fig)[1] <= 1


def test_an_average_over_paths_has_no_path_to_show():
    here = explained()
    found = integrated_gradients(*here, baseline="sampled", sequences=2)
    with pytest.raises(UserError, match="at baseline 'sampled' has no single path"):
        path.view(found)


# ---- noise and continuations


def doses():
    rows = []
    for sigma in (0.1, 1.0):
        for place in range(9):
            value = {"deviation": sigma * (place + 1), "deviation_error": 0.01, "keeps_prediction": 1 - sigma / 2}
            rows.append(
                {"word": "on", "start": place, "sigma": sigma, "relative_sigma": 2 * sigma, "unit": "nats", **value}
            )
    return pd.DataFrame(rows).astype({"start": "Int64"})


def test_a_dose_response_has_a_line_a_word_and_names_the_largest():
    fig = path.dose_response(doses())
    spread, kept = fig.axes
    heights = [
        one.get_ydata().tolist() for one in spread.lines if len(one.get_xdata()) == 2 and one.get_linestyle() == "-"
    ]
    assert sorted(heights) == [[pytest.approx(0.1 * n), pytest.approx(1.0 * n)] for n in range(1, 10)]
    assert len(kept.lines) == 9 and kept.lines[0].get_ydata().tolist() == [0.95, 0.5]
    marked = path.dose_response(doses(), sigma=1.0).axes[1].lines
    assert len(marked) == 10 and list(marked[-1].get_xdata()) == [2.0, 2.0]
    assert len(fig.legends[0].get_texts()) == path.NAMED
    assert "scatters the target most, by 9 nats" in path.describe_dose(doses())


def test_a_word_without_characters_has_a_line_too():
    table = doses()
    table.loc[table["start"] == 0, "start"] = pd.NA
    assert len(path.dose_response(table).axes[1].lines) == 9


def test_a_continuation_is_a_matrix_with_grey_where_nothing_was_yet():
    rows = [
        {"step": 0, "generated": " P", "position": p, "token": t, "score": s, "unit": "nats"}
        for p, t, s in [(0, "<s>", math.nan), (1, "a", 1.0)]
    ]
    rows += [
        {"step": 1, "generated": "$", "position": p, "token": t, "score": s, "unit": "nats"}
        for p, t, s in [(0, "<s>", math.nan), (1, "a", -2.0), (2, " P", 0.5)]
    ]
    proofs = pd.DataFrame({"step": [0, 1], "generated": [" P", "$"], "converged": [True, False]})
    fig = path.continuation(pd.DataFrame(rows), proofs)
    mesh = next(found for found in fig.axes[0].collections if isinstance(found, QuadMesh))
    values = np.ma.filled(mesh.get_array().reshape(2, 3), np.nan)
    assert np.array_equal(values, [[np.nan, 1.0, np.nan], [np.nan, -2.0, 0.5]], equal_nan=True)
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()] == ["·P", r"\$ (not converged)"]
    assert [patch.get_hatch() for patch in fig.axes[0].patches] == ["/////"]
    assert "' P' owes most to 'a' (1)" in path.describe_continuation(pd.DataFrame(rows), proofs)
    assert drawn(fig)[1] <= 1
