"""What several test modules use."""

import os

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")


@pytest.fixture(scope="session")
def smollm2():
    """The default model itself, from the cache that `python -m xai_utils fetch` fills."""
    from xai_utils.models import load
    from xai_utils.study import ModelEntry

    return load(ModelEntry(label="base", role="base", model="smollm2-135m-instruct"))
