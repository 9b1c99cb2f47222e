"""The GPU's benchmark on a CPU and a small shape: the same lines, ours beside captum with the same scores."""

import pytest
import torch

from benchmarks import card, shapes, works
from tests.tiny import tiny_case, tiny_loaded


@pytest.fixture
def small(monkeypatch):
    config = shapes.LlamaConfig.from_dict(
        shapes.SHAPES["SmolLM2-135M"].to_dict()
        | {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
        | {"num_attention_heads": 4, "num_key_value_heads": 2}
    )
    monkeypatch.setitem(shapes.SHAPES, "small", config)
    return "small"


def test_lines_of_two_works(small):
    names = [card.FIFTY, "ablation"]
    lines = [line for part in card.measure("cpu", [small], names, [16], "float32", 1) for line in part]
    assert [line["peer"] for line in lines] == ["ours", "captum", "ours", "captum", "batched"]
    assert all(line["seconds"] > 0 and line["share_of_limit"] > 0 for line in lines)
    assert lines[0]["ratio"] == 1 and lines[0]["model"] == "small"
    assert lines[3]["error"] <= 1e-4 and lines[4]["error"] <= 1e-4


def test_ours_and_captum_find_the_same():
    model = tiny_loaded()
    case, target = tiny_case(model, "The capital of France is", answer=None)
    ours, captum = (peer(model, case, target).scores for peer in (works.our_steps, works.captum_steps))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(captum), atol=1e-4, rtol=1e-4, check_dtype=False)


def test_a_peer_that_fails_is_a_line(small, monkeypatch):
    def broken(*_):
        raise ValueError("no such thing\nat all")

    monkeypatch.setitem(works.WORKS, "broken", {"ours": works.our_ablation, "captum": broken})
    ((ours, failed),) = card.measure("cpu", [small], ["broken"], [16], "float32", 1)
    assert ours["peer"] == "ours" and failed["error"] == "ValueError: no such thing"
