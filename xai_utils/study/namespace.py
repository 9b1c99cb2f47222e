"""Inside a kernel that several notebooks share: it becomes as a new one, but keeps its modules and models."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from IPython.core.getipython import get_ipython

from xai_utils.files import ROOT
from xai_utils.memory import give_back

_first: dict[str, Any] = {}


def renew() -> None:
    """Namespace, cell count, folder, path of imports, environment, warnings and figures as when a kernel starts.

    Free memory is given back.
    """
    shell = get_ipython()
    assert shell is not None
    if not _first:
        _first.update(path=list(sys.path), filters=list(warnings.filters), environment=dict(os.environ))
    shell.reset(new_session=True)
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
    give_back()
