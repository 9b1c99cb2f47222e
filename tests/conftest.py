"""Fixtures for all tests. Bars and the network stay out of the way; the default model comes from the cache, or is made once."""

import pytest

from xai_utils.models import LoadedModel, load
from xai_utils.study import ModelEntry


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The real default model."""
    return load(ModelEntry(label="base", model="smollm2-135m-instruct"))
