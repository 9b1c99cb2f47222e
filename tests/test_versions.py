"""The kit does not hang on the insides of one version of a library."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # which import much of their own
for name in ("modeling_gguf_pytorch_utils", "integrations.gguf.gguf_tokenizer_mapping"):
    sys.modules[f"transformers.{name}"] = None  # from now on an import raises ModuleNotFoundError
import xai_utils as xai
for module in pkgutil.walk_packages(xai.__path__, "xai_utils."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from tests.tiny import tiny_loaded
print(xai.explain("The capital of France is", tiny_loaded(), answer=" Paris.").words["score"].notna().sum())
"""


def test_the_kit_is_imported_and_explains_without_what_transformers_may_move():
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert found.stdout == "5\n", found.stderr


def test_the_transport_error_is_the_one_that_the_hub_raises():
    from huggingface_hub.errors import HfHubHTTPError

    from xai_utils.models.hub import TransportError

    families = {kind.__module__.partition(".")[0] for kind in HfHubHTTPError.__mro__}
    assert TransportError.__module__.partition(".")[0] in families and TransportError.__name__ == "TransportError"
