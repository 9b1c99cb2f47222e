"""Figures of attention: the pixels are the weights, every head can be found, and no label is cut off."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tests.test_attention import case_of, random_causal
from tests.tiny import tiny_loaded
from xai_utils.attention.words import attention_change, most_changed, word_attention
from xai_utils.attribution.rollout import drift
from xai_utils.plots import heatmaps, style

TEXT = "Сколько планет в Солнечной системе?"


def texts_inside(fig):
    """All visible texts; asserts that each lies within the figure."""
    canvas = FigureCanvasAgg(fig)
    with style.style():
        canvas.draw()
    renderer, found = canvas.get_renderer(), []
    beyond = set()  # ticks outside an axis' range have labels that are not drawn
    for axis in (axis for axes in fig.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis.get_major_ticks() if not low - 1e-9 <= tick.get_loc() <= high + 1e-9]
        beyond |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    for text in fig.findobj(lambda artist: hasattr(artist, "get_text")):
        if not text.get_text() or not text.get_visible() or text in beyond:
            continue
        box = text.get_window_extent(renderer)
        assert fig.bbox.x0 - 1 <= box.x0 and box.x1 <= fig.bbox.x1 + 1, text.get_text()
        assert fig.bbox.y0 - 1 <= box.y0 and box.y1 <= fig.bbox.y1 + 1, text.get_text()
        found.append(text.get_text())
    return found


def images(fig):
    return [image.get_array() for axes in fig.axes for image in axes.get_images()]


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["<|endoftext|>", "$x$", "длинное·слово" * 5] * 9, list("x" * 64)])
def test_a_heads_map_shows_its_weights_and_all_its_labels(labels):
    weights = random_causal(len(labels)).numpy()
    fig = heatmaps.heatmap(weights, labels, "base: layer 0, head 0, on a text with a title that is rather long $1$")
    drawn = images(fig)[0]
    assert drawn.mask.sum() == len(labels) * (len(labels) - 1) / 2
    np.testing.assert_allclose(drawn.filled(0), weights, atol=1e-7)
    shown = texts_inside(fig)
    if len(labels) <= 27:
        assert shown.count(style.readable(labels[0], heatmaps.LABEL)) == 2 * labels.count(labels[0])
    assert {"key: looked at", "query: looks", "attention"} <= set(shown)


def test_examples_of_groups_have_a_map_each():
    examples = {
        f"sink: layer {i}, head 0": (random_causal(n).numpy(), ["токен"] * n) for i, n in enumerate((5, 51, 26))
    }
    fig = heatmaps.group_examples(examples, "One head of each group")
    shown = texts_inside(fig)
    assert [drawn.shape[0] for drawn in images(fig)[:3]] == [5, 51, 26] and set(examples) <= set(shown)


def test_rollout_has_a_line_a_model_and_one_of_uniform_attention():
    tables = [
        drift(model, case_of(model)) for model in (tiny_loaded("llama"), tiny_loaded("llama", seed=1, label="other_1"))
    ]
    fig = heatmaps.rollout_drift(pd.concat(tables), "Rollout")
    shown = texts_inside(fig)
    lines = fig.axes[0].get_lines()
    columns = [table[column] for table in tables for column in ("rollout", "rollout_uniform")]
    for line, column in zip(lines, columns, strict=True):
        np.testing.assert_allclose(line.get_ydata(), column)
    assert {"other_1", "other_1, uniform attention"} <= set(shown)


def changed_pair(text=TEXT):
    models = tiny_loaded("llama"), tiny_loaded("llama", seed=1, label="other")
    both = [word_attention(model, case_of(model, text)) for model in models]
    again = [word_attention(model, case_of(model, "Какое число планет в Солнечной системе?")) for model in models]
    return *both, attention_change(*both, [tuple(again)])


def test_every_head_is_a_dot_at_its_means_over_texts():
    rows = [
        {"model": model, "text": text, "layer": 0, "head": head, "sink": sink, "norm_sink": sink / 4}
        for model in ("base", "twin")
        for text, more in (("a", 0.0), ("b", 0.2))
        for head, sink in ((0, 0.2 + more), (1, 0.6 + more))
    ]
    axes = heatmaps.sink_dots(pd.DataFrame(rows), "A title").axes[0]
    dots = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert list(dots) == ["base", "twin"]
    assert dots["base"].get_xdata() == pytest.approx([0.3, 0.7]) and dots["twin"].get_ydata() == pytest.approx(
        [0.075, 0.175]
    )
    assert dots["base"].get_color() != dots["twin"].get_color()


def test_change_is_mapped_beside_its_floor_with_a_dot_where_it_is_beyond():
    *_, change = changed_pair()
    change.loc[:, "beyond_floor"] = [True] + [False] * 7
    fig = heatmaps.divergence_map(change, "What changed")
    texts_inside(fig)
    for drawn, column in zip(images(fig), ("divergence", "shared", "floor"), strict=False):
        np.testing.assert_allclose(drawn.ravel(), change[column])
    (dots,) = fig.axes[1].get_lines()
    assert (dots.get_xdata().tolist(), dots.get_ydata().tolist()) == ([0], [0])


def test_change_without_a_floor_is_one_map():
    base, other, _ = changed_pair()
    fig = heatmaps.divergence_map(attention_change(base, other), "What changed")
    assert texts_inside(fig).count("models, all words (nats)") == 1 and len(images(fig)) == 1


@pytest.mark.parametrize("text", [TEXT, "Слово и ещё одно. " * 12])
def test_changed_heads_are_drawn_word_by_word(text):
    base, other, change = changed_pair(text)
    top = most_changed(change, 3)
    fig = heatmaps.changed_heads(base, other, top, "The heads that changed most")
    shown = texts_inside(fig)
    panels = [axes.get_images()[0].get_array() for axes in fig.axes[:9]]
    layer, head = int(top.iloc[1]["layer"]), int(top.iloc[1]["head"])
    assert f"layer {layer}, head {head}\n{top.iloc[1]['divergence']:.3f} nats" in shown
    np.testing.assert_allclose(panels[3][:, 0], base.weights[layer, head, :, 0])
    difference = other.weights[layer, head, -1, :-1] - base.weights[layer, head, -1, :-1]
    np.testing.assert_allclose(panels[5][-1], difference)
    assert panels[4].mask[0, 2:].all()  # the first word sees the start and itself
