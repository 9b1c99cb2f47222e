"""What several test modules use."""

import os
import shutil

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")


@pytest.fixture(scope="session")
def smollm2():
    """The default model itself, from the cache that `python -m xai_utils fetch` fills."""
    from xai_utils.models.entry import ModelEntry
    from xai_utils.models.loading import load

    return load(ModelEntry(label="base", role="base", model="smollm2-135m-instruct"))


@pytest.fixture(scope="session")
def twins(tmp_path_factory):
    """An Explainer on one text and two tiny models, `base` and `twin`, with a cache of its own."""
    from tests.tiny import tiny_loaded
    from xai_utils.study import explainer
    from xai_utils.study.config import Study
    from xai_utils.text.entry import TextEntry

    models = [tiny_loaded("llama", label="base"), tiny_loaded("llama", seed=1, label="twin", role="adapted")]
    texts = (TextEntry(id="capital", text="The capital of France is", answer=" Paris."),)
    study = Study(name="tiny", models=tuple(model.entry for model in models), texts=texts, draws=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(explainer, "load", lambda entry: next(m for m in models if m.label == entry.label))
        book = explainer.Explainer(study)
        assert len(book.models) == 2  # loaded now, by the patched `load`
    return book


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium. Without one the tests skip; on CI they fail, else nobody would see a broken page."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missed = pytest.fail if os.environ.get("CI") else pytest.skip
        missed("no Chromium, which this test needs; on Debian: apt-get install chromium")
    switches = ["--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        switches.append("--no-sandbox")  # Chromium refuses to start as root with one
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=switches)
        yield opened
        opened.close()
