"""Explain a language model and its adapted twin, and say how far each number can be trusted.

    import xai_utils as xai

    model = xai.load("smollm2-135m-instruct")
    xai.explain("The capital of France is", model, answer=" Paris")

Names are imported when they are first used, so that `import xai_utils` itself takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xai_utils.api import assess, compare, explain, load, wrap
    from xai_utils.errors import UserError
    from xai_utils.study.config import Study, load_study
    from xai_utils.study.explainer import Explainer

__version__ = "0.1.0"
__all__ = ["Explainer", "Study", "UserError", "assess", "compare", "explain", "load", "load_study", "wrap"]

_HOMES = {
    "assess": "xai_utils.api",
    "compare": "xai_utils.api",
    "explain": "xai_utils.api",
    "load": "xai_utils.api",
    "wrap": "xai_utils.api",
    "Explainer": "xai_utils.study.explainer",
    "Study": "xai_utils.study.config",
    "UserError": "xai_utils.errors",
    "load_study": "xai_utils.study.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'xai_utils' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
