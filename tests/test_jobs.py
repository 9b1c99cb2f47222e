"""One case to compute: its name in the cache, and its result as text and back."""

import dataclasses

import numpy as np
import pytest

from tests.tiny import tiny_case, tiny_loaded
from xai_utils.attribution import integrated_gradients, perturbation
from xai_utils.errors import UserError
from xai_utils.study import jobs


@pytest.fixture(scope="module")
def model():
    return tiny_loaded("llama")


def test_code_version_follows_imports():
    before = jobs.code_version("xai_utils.attribution.integrated_gradients")
    jobs.code_version.cache_clear()
    assert jobs.code_version("xai_utils.attribution.integrated_gradients") == before
    assert jobs.code_version("xai_utils.text.cases") != before


def test_an_attribution_comes_back_from_its_text_as_it_was(model):
    case, target = tiny_case(model, "The capital of France is")
    found = integrated_gradients.integrated_gradients(model, case, target, budget=60, tolerance=1.0)
    back = jobs.from_json(jobs.to_json(found), case, target)
    for field in dataclasses.fields(found):
        one, other = getattr(found, field.name), getattr(back, field.name)
        if field.name == "path":
            one, other = ([dataclasses.astuple(piece) for piece in path] for path in (one, other))
        np.testing.assert_equal(other, one)
    assert len(back.path) == 2


def test_the_key_changes_with_all_that_a_result_depends_on(model):
    case, target = tiny_case(model, "The capital of France is")
    other_case, other_target = tiny_case(model, "The capital of Spain is", answer=" Madrid.")
    other_model = dataclasses.replace(model, revision="another")
    moved = dataclasses.replace(model, reference=model.embedding[0])
    asked = (model, case, target, perturbation.ablation, {"seed": 0})
    changed = {0: (other_model, moved), 1: (other_case,), 2: (other_target,), 3: (perturbation.sensitivity,), 4: ({},)}
    keys = {jobs.case_key(*asked[:place], new, *asked[place + 1 :]) for place in changed for new in changed[place]}
    assert len(keys | {jobs.case_key(*asked)}) == 7


def test_a_reason_is_one_line_and_names_the_kind_of_a_surprise():
    assert jobs.reason(UserError("what; do")) == "what; do"
    assert jobs.reason(ValueError("two\nlines")) == "ValueError: two lines"
    assert jobs.reason(MemoryError()) == "MemoryError"
