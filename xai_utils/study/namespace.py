"""Inside a kernel that several notebooks share: make it what a new one is, but for modules and models that are loaded."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from IPython.core.getipython import get_ipython

from xai_utils.files import ROOT

_first: dict[str, Any] = {}


def renew() -> None:
    """A namespace, a cell count, a folder, a path of imports, filters of warnings and figures as at a kernel's start."""
    if not _first:
        _first.update(path=list(sys.path), filters=list(warnings.filters), environment=dict(os.environ))
    get_ipython().reset(new_session=True)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(_first["environment"])
    sys.path[:], warnings.filters[:] = _first["path"], _first["filters"]  # type: ignore[index]
    for module in list(sys.modules.values()):  # what was warned of once is warned of again
        vars(module).get("__warningregistry__", {}).clear()
    if "matplotlib.pyplot" in sys.modules:
        import matplotlib
        from matplotlib import pyplot

        pyplot.close("all")
        matplotlib.rc_file_defaults()
