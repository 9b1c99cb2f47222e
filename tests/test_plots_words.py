"""Grids of word scores, the gallery of a notebook, and trust cards as pictures."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from tests.synthetic import alt_text
from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution.methods import METHODS
from xai_utils.attribution.subsets import exact_shapley
from xai_utils.errors import UserError
from xai_utils.evaluation.trust import Competence, Completeness, Controls, Faithfulness, Stability, TrustCard
from xai_utils.plots import trust, words
from xai_utils.plots.gallery import Gallery
from xai_utils.plots.sentence import colours
from xai_utils.plots.style import NOTHING, Bars, bars

TEXT = "The capital of France is"


def explained(*methods, text=TEXT, model=None):
    model = model or tiny_loaded()
    case, target = tiny_case(model, text)
    return [METHODS[name].function(model, case, target, **METHODS[name].fixed) for name in methods]


def cells(axes):
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_a_grid_holds_the_words_scores_row_by_row():
    results = explained("panel_shapley", "ablation")
    grid = words.grid(results)
    assert grid.words == ("The", "capital", "of", "France", "is") and not grid.scaled and grid.unit == "nats"
    for row, result in zip(grid.scores, results, strict=True):
        assert row.tolist() == result.words["score"].tolist()
    assert grid.stands[0].tolist() == results[0].words["stands"].tolist() and not grid.stands[1].any()
    assert grid.tops == [result.words.loc[result.words["score"].idxmax(), "word"] for result in results]


def test_rows_of_one_unit_share_a_scale_and_rows_of_two_do_not():
    panel, ablation, gradient = explained("panel_shapley", "ablation", "attn_lrp_norm")
    common = words.grid([panel, ablation])
    reach = np.abs(common.scores).max()
    drawn = cells(words.grids([common]).axes[0])
    expected = [colours(score, reach)[0] for row in common.scores for score in row]
    assert [to_hex(cell.get_facecolor()) for cell in drawn] == expected
    apart = words.grid([panel, gradient])
    assert apart.scaled and apart.unit == "logits per unit or nats"
    drawn = cells(words.grids([apart]).axes[0])
    expected = [colours(score, np.abs(row).max())[0] for row in apart.scores for score in row]
    assert [to_hex(cell.get_facecolor()) for cell in drawn] == expected


def test_what_did_not_converge_is_hatched_and_what_has_no_score_is_grey():
    grid = words.Grid("t", ("a", "b"), ("x", "y"), np.array([[1.0, np.nan], [2.0, -1.0]]), np.zeros((2, 2), bool),
                      (True, False), "nats", False)  # fmt: skip
    axes = words.grids([grid], "Two rows").axes[0]
    assert [bool(cell.get_hatch()) for cell in cells(axes)] == [False, False, True, True]
    assert to_hex(cells(axes)[1].get_facecolor()) == NOTHING
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b (not converged)"]
    assert grid.tops == ["x", "x"]


def test_a_panel_s_rows_are_its_shapley_values_and_their_mean():
    model = tiny_loaded()
    (found,) = explained("panel_shapley", model=model)
    names = ("mean", "dropped", "eos", "zero")
    grid = words.by_absence(found, names)
    assert grid.rows == (*names, "mean of these")
    case, target = found.case, found.target
    for name, row in zip(names, grid.scores, strict=False):
        alone = METHODS["shapley"].function(model, case, target, absence=name)
        assert row == pytest.approx(alone.words["score"].to_numpy(float), abs=1e-4)
    assert grid.scores[:-1].mean(0) == pytest.approx(grid.scores[-1], abs=1e-9)
    one_sign = np.abs(np.sign(grid.scores[:-1]).sum(0)) == len(names)
    assert grid.stands[-1].tolist() == one_sign.tolist() and not grid.stands[:-1].any()
    assert exact_shapley(np.array([0.0, 2.0, 3.0, 6.0])).tolist() == [2.5, 3.5]  # what notebook 04 works out by eye


def test_other_texts_and_methods_without_a_panel_are_refused():
    one, other = explained("ablation")[0], explained("ablation", text="The cat sat on the mat")[0]
    with pytest.raises(UserError, match="one text and 2 are given"):
        words.grid([one, other])
    with pytest.raises(UserError, match="ablation has no scores by absence"):
        words.by_absence(one, ["mean"])


def test_the_gallery_saves_the_sentence_as_alt_text_and_shows_both(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("xai_utils.plots.gallery.display", lambda *parts: shown.extend(parts))
    show = Gallery(tmp_path)
    fig = bars([Bars("t", "score", ("a",), np.array([1.0]))])
    show("02_x", fig, "**“a”** adds the most,\n`1` nat.")
    assert alt_text(tmp_path / "02_x.png") == "“a” adds the most, 1 nat."
    assert shown[0].data.startswith(b"\x89PNG") and shown[1].data.startswith("**“a”**")
    show("02_y", None, "")
    assert len(shown) == 2 and not (tmp_path / "02_y.png").exists()
    show("02_z", fig, "")
    assert alt_text(tmp_path / "02_z.png") == "Figure 02_z"


def card(probability=0.7, level="passes"):
    return TrustCard(
        Competence(level, probability, 1, None),
        Completeness("passes", "exact", 1e-7, 1e-7),
        Stability("doubtful", 0.4, 0.6, False),
        Faithfulness("fails", 0.1, 0.3, 0.5, 3),
        Controls("unknown", {}),
    )


def test_a_card_s_values_stand_where_they_are_and_are_told():
    lines = trust.checks(card())
    assert [line.level for line in lines] == ["passes", "passes", "doubtful", "fails", "unknown"]
    assert [line.value for line in lines[:4]] == pytest.approx([0.7, 1.0, 0.6, 0.1])
    assert [line.shown for line in lines] == ["0.7", "exact", "0.60", "0.10", "not known"]
    for line in lines[2:4]:
        expected = "passes" if line.value >= line.passes else "fails" if line.value < line.fails else "doubtful"
        assert line.level == expected
    fig = trust.cards({"base": card(), "twin": card(0.2, "doubtful")}, "One text")
    assert [axes.get_title(loc="left") for axes in fig.axes] == ["base", "twin"]
    points = [line.get_xdata()[0] for line in fig.axes[1].get_lines()]
    assert points == pytest.approx([0.2, 1.0, 0.6, 0.1, 0.5])
