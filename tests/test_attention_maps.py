"""Maps for pictures: pooled as a loop would, whole where they are small."""

import numpy as np

from tests.test_attention import case_of
from tests.tiny import tiny_loaded
from xai_utils.attention import layers
from xai_utils.attention.maps import head_map, map_labels, maps


def test_maps_of_a_long_text_are_pooled_and_of_a_short_one_are_not():
    loaded = tiny_loaded("llama")
    case = case_of(loaded)
    weights = layers.weights(loaded, case)
    assert np.array_equal(maps(loaded, case), weights.numpy())
    pooled = maps(loaded, case, size=5)
    length = len(case.tokens)
    block = [token * 5 // length for token in range(length)]
    rows = [token for token in range(length) if block[token] == 3]
    expected = [weights[1, 2, rows][:, [b == column for b in block]].sum(1).mean().item() for column in range(5)]
    np.testing.assert_allclose(pooled[1, 2, 3], expected, atol=1e-6)
    assert map_labels(case, size=5) == [case.labels[block.index(column)] for column in range(5)]
    assert map_labels(case) == case.labels
    assert pooled.shape == (2, 4, 5, 5) and np.allclose(pooled.sum(-1), 1, atol=1e-6)


def test_one_heads_map_is_its_part_of_all_weights():
    loaded = tiny_loaded("gpt2")
    case = case_of(loaded)
    assert np.array_equal(head_map(loaded, case.ids, 1, 2), layers.weights(loaded, case)[1, 2].numpy())
