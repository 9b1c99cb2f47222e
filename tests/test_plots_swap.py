"""Waterfalls and layer maps: bars and cells are the tables' numbers, at their places, and nothing is cut off."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.text import Text

from tests.test_plots import drawn
from xai_utils.errors import UserError
from xai_utils.plots import layers, swap
from xai_utils.plots.style import OPPOSES, SUPPORTS, centred, diverging

KEYS = {"study": "s", "text": "t", "base": "base", "other": "ru-ts", "target": "logprob", "target_text": " Файл"}
UNIT = {"unit": "nats"}
ENDS = {"f_base": -13.5, "f_other": -0.5}
PARTS = [
    ("файл", "reading", -1.5),
    ("команду", "reading", 4.0),
    ("answer", "writing", 8.5),
    ("MLP, layers 0-9", "layers", 2.0),
]


def parts_table(exact=True, error=0.0):
    common = KEYS | UNIT | ENDS | {"exact": exact, "error": error, "start": 0, "end": 1}
    return pd.DataFrame([common | {"part": name, "kind": kind, "score": score} for name, kind, score in PARTS])


def steps_table(names):
    return pd.DataFrame([KEYS | UNIT | ENDS | {"step": name, "score": 13.0 / len(names)} for name in names])


def bars_of(axes):
    return [(bar.get_x(), bar.get_width(), to_hex(bar.get_facecolor())) for bar in axes.patches]


def test_bars_go_from_the_base_to_the_other_model():
    fall = swap.parts(parts_table())
    fig = swap.waterfalls(
        [swap.steps(steps_table(["tokenizer", "input_rows", "output_rows"])), fall], "From base to ru-ts"
    )
    scores = [score for *_, score in PARTS]
    starts = -13.5 + np.cumsum([0, *scores[:-1]])
    colours = [SUPPORTS if score > 0 else OPPOSES for score in scores]
    steps, parts = fig.axes
    for (left, width, colour), start, score, wanted in zip(bars_of(parts), starts, scores, colours, strict=True):
        assert (left, width, colour) == (pytest.approx(start), pytest.approx(score), wanted)
    ends = parts.lines[-1].get_xdata()
    assert ends.tolist() == pytest.approx([-13.5, -0.5])
    labels = [label.get_text() for label in parts.get_yticklabels()]
    assert labels == ["base", "файл", "команду", "the answer as it is written", "MLP, layers 0-9", "ru-ts"]
    assert [label.get_text() for label in steps.get_yticklabels()][1] == "tokenizer, rows untrained"
    assert steps.get_ylim() == parts.get_ylim() and steps.get_xlim() == parts.get_xlim()
    texts, passed = drawn(fig)
    assert passed <= 1 and {"+8.50", "-1.50", "-13.50", "-0.50"} <= {text for text, _ in texts}


def test_without_a_control_the_rows_hold_the_tokenizer():
    fall = swap.steps(steps_table(["input_rows", "output_rows", "body"]))
    assert fall.labels == ("prompt: tokens, input rows", "answer: spelling, output rows", "all other weights")


def test_sampled_scores_show_their_errors():
    fall = swap.parts(parts_table(exact=False, error=0.3))
    assert fall.title == "By part (sampled, with standard errors)"
    (axes,) = swap.waterfalls([fall]).axes
    assert len(axes.containers) == 2 * len(PARTS)  # a bar and its error each


def test_the_finding_is_said():
    said = swap.parts(parts_table()).describe()
    assert said == "By part: base -13.5, ru-ts -0.5 nats; largest: 'the answer as it is written' +8.5."


def test_one_text_at_a_time():
    two = pd.concat([parts_table(), parts_table().assign(text="u")])
    with pytest.raises(UserError, match="one text, pair of models and target"):
        swap.parts(two)
    with pytest.raises(UserError, match="one text, pair of models and target"):
        layers.layer_map(map_table(np.ones((2, 2))).assign(target_text=[" a", " b"] * 2))


WORDS = ["<|endoftext|>", "To", "open", " File"]
CERTIFICATE = pd.Series({"bound": 0.002, "relative_delta": 0.001, "converged": True})


def map_table(scores, halves=()):
    """Rows of a map with one module a layer; `halves` names what the last levels are that stand outside the layers."""
    places = [(layer, "mlp") for layer in range(len(scores) - len(halves))] + [(None, half) for half in halves]
    rows = [
        KEYS
        | UNIT
        | {"layer": layer, "module": "m", "half": half, "order": order, "word": WORDS[order], "score": score}
        for (layer, half), line in zip(places, scores, strict=True)
        for order, score in enumerate(line)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0).astype({"layer": "Int64"})


def test_cells_and_margins_are_the_scores():
    scores = np.random.default_rng(0).normal(size=(7, 4))
    one = layers.layer_map(map_table(scores), CERTIFICATE, "What made it likelier")
    two = layers.layer_map(map_table(scores * 0.1))
    np.testing.assert_allclose(one.scores, scores)
    fig = layers.layer_maps([one, two], "To open")
    above, main, side = (axes for axes in fig.subfigs[0].axes if axes.get_visible())
    mesh = next(part for part in main.get_children() if isinstance(part, QuadMesh))
    np.testing.assert_allclose(mesh.get_array(), scores)
    wanted = diverging()(centred(scores)(scores.ravel()))
    fig.draw_without_rendering()
    np.testing.assert_allclose(mesh.get_facecolors(), wanted)
    np.testing.assert_allclose([bar.get_height() for bar in above.patches], scores.sum(0))
    np.testing.assert_allclose([bar.get_width() for bar in side.patches], scores.sum(1))
    assert [label.get_text() for label in main.get_xticklabels()] == ["<|endoftext|>", "To", "open", "·File"]
    assert [label.get_text() for label in main.get_yticklabels()] == ["0", "5"]
    small = next(part for part in fig.subfigs[1].axes[1].get_children() if isinstance(part, QuadMesh))
    assert small.norm.vmax == mesh.norm.vmax  # one scale of colours for both
    texts, passed = drawn(fig)
    assert passed <= 1
    assert any("integration error at most 0.20%" in text for text, _ in texts)


def test_what_stands_outside_the_layers_has_rows_of_its_own():
    scores = np.arange(20.0).reshape(5, 4)
    one = layers.layer_map(map_table(scores, ["input", "rest", "head"]))
    assert one.levels == ("input rows", "0", "1", "other", "output rows")
    np.testing.assert_allclose(one.scores, scores[[2, 0, 1, 3, 4]])


def test_modules_of_a_layer_are_added_and_layers_without_any_are_empty():
    table = pd.concat([map_table(np.ones((3, 2))), map_table(np.ones((3, 2))).assign(half="attention")])
    one = layers.layer_map(table[table["layer"] != 1])
    assert one.scores.tolist() == [[2, 2], [0, 0], [2, 2]]


def test_what_did_not_converge_says_so():
    bad = pd.Series({"bound": 0.4, "relative_delta": 0.1, "converged": False})
    one = layers.layer_map(map_table(np.ones((2, 2))), bad)
    assert "NOT CONVERGED (integration error 40%)" in one.describe()
    title = next(text for text in layers.layer_maps([one]).findobj(Text) if "NOT CONVERGED" in text.get_text())
    assert to_hex(title.get_color()) == OPPOSES


def deletion_table():
    common = KEYS | UNIT | {"removed": 5}
    rows = [("one", 0.5, -0.1, 0.6, 0.1, 0.2), ("two", 0.05, 0.0, 0.3, 0.1, 0.2)]
    names = ("text", "highest", "lowest", "best", "random", "random_95")
    return pd.DataFrame([common | dict(zip(names, row, strict=True)) for row in rows])


def test_dots_of_undone_layers_stand_at_the_shares_of_the_table():
    table = deletion_table()
    fig = layers.undone(table, "How much goes?")
    (axes,) = fig.axes
    spans, *dots = axes.collections
    for name, collection in zip(("best", "highest", "lowest"), dots, strict=True):
        assert collection.get_offsets().tolist() == [[share, place] for place, share in enumerate(table[name])]
    assert [line[:, 0].tolist() for line in spans.get_segments()] == [[0.1, 0.2], [0.1, 0.2]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    told = layers.describe_undone(table)
    assert "27.5% of the difference" in told and "random layers 10.0%" in told and "on 1 of 2 texts" in told
    texts, passed = drawn(fig)
    assert passed <= 1 and "share of the difference undone by 5 layers" in {text for text, _ in texts}


def test_a_map_over_texts_sums_modules_and_words_and_keeps_layers_without_any():
    common = {name: value for name, value in KEYS.items() if name != "text"} | UNIT
    rows = [("b", 0, 1.0), ("b", 0, 2.0), ("b", 2, -1.0), ("a", 2, 4.0), ("a", None, 9.0)]
    table = pd.DataFrame([common | {"text": text, "layer": layer, "score": score} for text, layer, score in rows])
    found = layers.over_texts(table.astype({"layer": "Int64"}))
    assert found.levels == ("0", "1", "2") and found.words == ("b", "a") and found.across == "prompt"
    assert found.scores.tolist() == [[3.0, 0.0], [0.0, 0.0], [-1.0, 4.0]]
    labels = [axes.get_ylabel() for panel in layers.layer_maps([found]).subfigs for axes in panel.axes]
    assert "by prompt" in labels
